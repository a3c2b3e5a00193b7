"""What would run into what: boxes seen from above, on the same level."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from wm_gym.envs.carla_light.actors import Actor
from wm_gym.envs.carla_light.geometry import boxes_overlap
from wm_gym.envs.carla_light.layout import Pose

_LEVEL_M = 2.5
"""Actors whose heights differ by more pass above each other."""
_FASTEST_M_S = 60.0
_CELL_M = 25.0


class Scenery:
    """What stands beside the roads and does not move, found by place.

    Args:
        obstacles: Buildings and poles; their numbers are those of no actor.
    """

    def __init__(self, obstacles: Iterable[Actor]) -> None:
        self._cells: dict[tuple[int, int], list[Actor]] = defaultdict(list)
        for obstacle in obstacles:
            reach, pose = obstacle.reach, obstacle.pose
            for column in range(int((pose.x - reach) // _CELL_M), int((pose.x + reach) // _CELL_M) + 1):
                for row in range(int((pose.y - reach) // _CELL_M), int((pose.y + reach) // _CELL_M) + 1):
                    self._cells[column, row].append(obstacle)

    def near(self, pose: Pose, reach: float) -> list[Actor]:
        """All that may be within some metres of a place, and more."""
        columns = {int((pose.x - reach) // _CELL_M), int((pose.x + reach) // _CELL_M)}
        rows = {int((pose.y - reach) // _CELL_M), int((pose.y + reach) // _CELL_M)}
        found: dict[int, Actor] = {}
        for column in columns:
            for row in rows:
                for obstacle in self._cells.get((column, row), ()):
                    found[id(obstacle)] = obstacle
        return list(found.values())


def neighbours(solid: Sequence[Actor], seconds: float) -> list[list[Actor]]:
    """For each actor those that it could touch within a time."""
    if not solid:
        return []
    places = np.array([(actor.pose.x, actor.pose.y, actor.reach) for actor in solid])
    room = places[:, None, 2] + places[None, :, 2] + 2 * _FASTEST_M_S * seconds
    near = (np.abs(places[:, None, 0] - places[None, :, 0]) < room) & (
        np.abs(places[:, None, 1] - places[None, :, 1]) < room
    )
    np.fill_diagonal(near, False)
    found: list[list[Actor]] = [[] for _ in solid]
    for first, second in zip(*(indices.tolist() for indices in np.nonzero(near)), strict=True):
        found[first].append(solid[second])
    return found


def obstacle(actor: Actor, pose: Pose, others: Iterable[Actor]) -> Actor | None:
    """The first of the others that an actor would run into at a pose; whoever drives away from an overlap may."""
    extent = actor.blueprint.extent
    for other in others:
        there, far = other.pose, actor.reach + other.reach
        if abs(there.x - pose.x) > far or abs(there.y - pose.y) > far or abs(there.z - pose.z) > _LEVEL_M:
            continue
        size = other.blueprint.extent
        if boxes_overlap(pose, extent, there, size) and not boxes_overlap(actor.pose, extent, there, size):
            return other
    return None
