"""What would run into what: boxes seen from above, on the same level."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from wm_gym.envs.carla_light.actors import Actor
from wm_gym.envs.carla_light.blueprints import BLUEPRINTS
from wm_gym.envs.carla_light.geometry import boxes_overlap
from wm_gym.envs.carla_light.layout import Pose

_LEVEL_M = 2.5
"""Actors whose heights differ by more pass above each other."""
_FASTEST_M_S = 60.0
_CELL_M = 10.0
_LONGEST_REACH_M = max(math.hypot(*blueprint.extent[:2]) for blueprint in BLUEPRINTS.values())
"""Metres from the middle of the largest actor to its corners."""


class Scenery:
    """What stands beside the roads and does not move, found by place.

    Each cell of a grid lists all that an actor whose middle is in it could touch.

    Args:
        obstacles: Buildings and poles; their numbers are those of no actor.
    """

    def __init__(self, obstacles: Iterable[Actor]) -> None:
        self._cells: dict[tuple[int, int], list[Actor]] = defaultdict(list)
        for obstacle in obstacles:
            reach, pose = obstacle.reach + _LONGEST_REACH_M, obstacle.pose
            for column in range(int((pose.x - reach) // _CELL_M), int((pose.x + reach) // _CELL_M) + 1):
                for row in range(int((pose.y - reach) // _CELL_M), int((pose.y + reach) // _CELL_M) + 1):
                    self._cells[column, row].append(obstacle)

    def near(self, pose: Pose) -> Sequence[Actor]:
        """All that an actor could touch at a place, and more."""
        return self._cells.get((int(pose.x // _CELL_M), int(pose.y // _CELL_M)), ())


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
