"""What is ahead of a vehicle on its route: the first road user in the way."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wm_gym.envs.carla.route import Route
from wm_gym.envs.carla.state import EgoState, RoadUser

CORRIDOR_M = 1.3
"""Half the width in metres of the strip along the route that must be clear."""
_LEVEL_M = 3.0
"""Metres of height by which a road user on the same road differs from it at most; bridges are higher."""
_PEDESTRIAN_S = (0.7, 1.4, 2.1)
"""Pedestrians are expected where they will be after so many seconds, too."""


def first_on_route(
    route: Route, distance: float, sight: float, ego: EgoState, users: Sequence[RoadUser]
) -> tuple[float, float] | None:
    """The first road user on the strip along the route.

    Args:
        route: The route.
        distance: Of the ego vehicle, metres along the route.
        sight: How far to look, metres along the route.
        ego: The ego vehicle.
        users: The others.

    Returns:
        Metres along the route from ``distance`` to the nearest side of the road user, and its speed along the route in
        m/s, not negative; ``None`` where the strip is clear.
    """
    near = [user for user in users if math.hypot(user.x - ego.x, user.y - ego.y) < sight + user.half_length]
    if not near:
        return None
    at = np.arange(distance, min(distance + sight, route.length) + 1e-9, 1.0)
    if len(at) == 0:
        return None
    way = np.stack([np.interp(at, route.distances, route.points[:, axis]) for axis in (0, 1)], axis=1)
    headings = np.radians(np.interp(at, route.distances, np.unwrap(route.headings, period=360)))
    forward = np.stack((np.cos(headings), np.sin(headings)), axis=1)
    heights = None if route.heights is None else np.interp(at, route.distances, route.heights)

    nearest: tuple[float, float] | None = None
    for user in near:
        offsets = outline(user)[:, None] - way  # (points, len(at), 2)
        closest = np.argmin(np.einsum("pnk,pnk->pn", offsets, offsets), axis=1)
        offset, direction = offsets[np.arange(len(offsets)), closest], forward[closest]
        along = at[closest] + np.einsum("pk,pk->p", offset, direction) - distance
        across = np.abs(direction[:, 0] * offset[:, 1] - direction[:, 1] * offset[:, 0])
        inside = (across < CORRIDOR_M) & (along > 0) & (along < sight) & on_level(user, at, heights)[closest]
        if not inside.any():
            continue
        gap = float(along[inside].min())
        if nearest is None or gap < nearest[0]:
            index = int(np.argmax(np.where(inside, -along, -np.inf)))
            turned = math.radians(user.yaw) - float(headings[closest[index]])
            nearest = gap, max(0.0, user.speed * math.cos(turned))
    return nearest


def on_level(user: RoadUser, along: NDArray[np.float64], heights: NDArray[np.float64] | None) -> NDArray[np.bool_]:
    """Whether a road user is on the same level as each of the places along a route, not on a bridge above or below."""
    if heights is None or user.z is None:
        return np.ones(len(along), dtype=bool)
    return np.abs(heights - user.z) < _LEVEL_M


def outline(user: RoadUser) -> NDArray[np.float64]:
    """Points ``(n, 2)`` on a road user's box, at most about a metre apart, and on the way that a pedestrian takes."""
    yaw = math.radians(user.yaw)
    forward, right = np.array((math.cos(yaw), math.sin(yaw))), np.array((-math.sin(yaw), math.cos(yaw)))
    along = np.linspace(-user.half_length, user.half_length, 2 + int(2 * user.half_length))
    across = np.linspace(-user.half_width, user.half_width, 2 + int(2 * user.half_width))
    sides = [along[:, None] * forward + side * user.half_width * right for side in (-1, 1)]
    ends = [across[:, None] * right + end * user.half_length * forward for end in (-1, 1)]
    points = np.concatenate((*sides, *ends)) + np.array((user.x, user.y))
    if user.kind != "pedestrian":
        return points
    return np.concatenate([points, *(points + user.speed * seconds * forward for seconds in _PEDESTRIAN_S)])
