"""The ground under the wheels: which lane a place is on, how high it is there, and what applies to traffic.

Roads may lie above each other. A place is therefore looked up with its height: what is on a bridge stays on it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from wm_gym.envs.angles import wrap_degrees
from wm_gym.envs.carla_light.layout import Points

_CELL_M = 1.0
_REACH_M = 6.0
"""A place so far from the middle of the nearest lane still counts as beside it, at its height."""
_LEVEL_M = 2.5
"""Heights that differ by more are different levels; bridges are higher than that."""
_MAX_LEVELS = 3
NOWHERE = -1


class RoadSurface:
    """Lanes as samples of their centre lines, found by place.

    Args:
        points: ``(N, 3)`` metres.
        yaws: ``(N,)`` degrees, the direction of the traffic.
        slopes: ``(N,)`` metres of rise for each metre in that direction.
        limits: ``(N,)`` km/h; not a number where none is known.
        lights: ``(N,)`` number of the traffic light that a vehicle there is at, or -1.
    """

    def __init__(
        self,
        points: Points,
        yaws: Points,
        slopes: Points,
        limits: Points,
        lights: NDArray[np.int64],
    ) -> None:
        self._low_x, self._low_y = (float(value) - 2 * _REACH_M for value in points[:, :2].min(axis=0))
        high_x, high_y = (float(value) + 2 * _REACH_M for value in points[:, :2].max(axis=0))
        self._columns = math.ceil((high_x - self._low_x) / _CELL_M)
        self._rows = math.ceil((high_y - self._low_y) / _CELL_M)
        levels = self._levels(points)
        # Plain numbers: one place is looked up at a time, thousands of times a second.
        self._cells: list[list[int]] = [level.tolist() for level in levels]
        self.x, self.y, self.z = (points[:, axis].tolist() for axis in range(3))
        self.yaw: list[float] = yaws.tolist()
        self.slope: list[float] = slopes.tolist()
        self.limit: list[float] = limits.tolist()
        self.light: list[int] = lights.tolist()
        self._cos: list[float] = np.cos(np.radians(yaws)).tolist()
        self._sin: list[float] = np.sin(np.radians(yaws)).tolist()

    def _levels(self, points: Points) -> list[NDArray[np.int32]]:
        """For each level that there is, the nearest sample of each cell ``(rows * columns,)``, or -1."""
        column = ((points[:, 0] - self._low_x) / _CELL_M).astype(np.int64)
        row = ((points[:, 1] - self._low_y) / _CELL_M).astype(np.int64)
        heights = points[:, 2]
        levels = [np.full(self._rows * self._columns, NOWHERE, np.int32) for _ in range(_MAX_LEVELS)]
        reach = math.ceil(_REACH_M / _CELL_M)
        steps = [(dx, dy) for dx in range(-reach, reach + 1) for dy in range(-reach, reach + 1)]
        steps = sorted((step for step in steps if math.hypot(*step) <= reach), key=lambda step: math.hypot(*step))
        samples = np.arange(len(points), dtype=np.int32)
        for dx, dy in steps:  # from near to far: what is there already is nearer
            cells, waiting = (row + dy) * self._columns + column + dx, samples
            for level in levels:
                there = level[cells]
                free = there == NOWHERE
                level[cells[free]] = waiting[free]
                above = ~free & (np.abs(heights[there] - heights[waiting]) > _LEVEL_M)
                cells, waiting = cells[above], waiting[above]
        return [level for level in levels if (level != NOWHERE).any()]

    def locate(self, x: float, y: float, z: float) -> int:
        """The number of the sample that is nearest to a place, on the level that is nearest in height.

        Returns:
            ``NOWHERE`` where no lane is near.
        """
        column, row = int((x - self._low_x) / _CELL_M), int((y - self._low_y) / _CELL_M)
        if not (0 <= column < self._columns and 0 <= row < self._rows):
            return NOWHERE
        cell = row * self._columns + column
        found = self._cells[0][cell]
        for level in self._cells[1:]:
            other = level[cell]
            if other != NOWHERE and abs(self.height(other, x, y) - z) < abs(self.height(found, x, y) - z):
                found = other
        return found

    def height(self, sample: int, x: float, y: float) -> float:
        """Height of the road at a place near a sample, metres."""
        along = (x - self.x[sample]) * self._cos[sample] + (y - self.y[sample]) * self._sin[sample]
        return self.z[sample] + self.slope[sample] * along

    def turned(self, sample: int, yaw: float) -> float:
        """Degrees in [-180, 180) by which a heading differs from the direction of the traffic."""
        return wrap_degrees(yaw - self.yaw[sample])
