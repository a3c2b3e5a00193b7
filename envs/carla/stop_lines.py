"""Stop lines of traffic lights: where they are, and whether a vehicle has crossed one.

Metres and degrees in CARLA's frame: left-handed (x forward, y right), yaw clockwise seen from above.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wm_gym.envs.angles import wrap_degrees
from wm_gym.envs.carla.route import Route

if TYPE_CHECKING:
    import carla

Point = tuple[float, float]

_SAME_DIRECTION = 90.0
"""Degrees between a vehicle's heading and a stop line's, below which the light is for the vehicle."""
_WIDEST_LANE = 20.0
"""Metres: a line that starts further away than this from a place does not reach it."""
_LINE_LANES = 1.2
"""Length of a line in widths of its lane, as the leaderboard has it."""
_LEVEL = 3.0
"""Metres of height between a route and a line on the same road at most; bridges are higher."""
_ADVANCE_STEP = 0.5
_LONGEST_ADVANCE = 100.0
"""Metres from a light's trigger to its junction at most; beyond, the light is for no junction."""


@dataclass(frozen=True)
class StopLine:
    """A line across one lane.

    Attributes:
        light_id: Id of the traffic light's actor.
        start: Its end on the left of the traffic, metres. It reaches a little into the lanes beside its own.
        end: Its end on the right.
        heading: Direction of the traffic that stops there, degrees.
        road_id: Of the lane.
        lane_id: Of the lane.
        height: Of the road there, metres, or ``None`` where it is not known.
    """

    light_id: int
    start: Point
    end: Point
    heading: float
    road_id: int
    lane_id: int
    height: float | None = None

    @property
    def lane(self) -> tuple[int, int]:
        """Ids of its road and lane."""
        return self.road_id, self.lane_id

    def beyond(self, point: Point) -> float:
        """Metres by which a point lies beyond the infinite line in the direction of the traffic, negative before it."""
        across_x, across_y = self.end[0] - self.start[0], self.end[1] - self.start[1]
        ahead = (point[0] - self.start[0]) * across_y - (point[1] - self.start[1]) * across_x
        return ahead / math.hypot(across_x, across_y)

    def part_before_crossing(self, before: Point, after: Point) -> float | None:
        """Where a step crosses the line in the direction of the traffic.

        Returns:
            The part of the step, in (0, 1], that lies before the line, or ``None`` where it does not cross. A step that
            ends on the line crosses it, one that begins there does not: steps in a row cross it once.
        """
        behind, ahead = self.beyond(before), self.beyond(after)
        if not behind < 0 <= ahead:
            return None
        part = behind / (behind - ahead)
        x, y = before[0] + part * (after[0] - before[0]), before[1] + part * (after[1] - before[1])
        across_x, across_y = self.end[0] - self.start[0], self.end[1] - self.start[1]
        along = (x - self.start[0]) * across_x + (y - self.start[1]) * across_y
        return part if 0 <= along <= across_x**2 + across_y**2 else None


def stop_lines(lights: Iterable[carla.TrafficLight]) -> tuple[StopLine, ...]:
    """The stop lines of traffic lights, one for each lane that a light is for, where the lane enters the junction.

    The simulator says in which lanes a light's trigger lies, which may be well before the junction. As in the
    leaderboard, the line is at the junction, and 1.2 times as wide as the lane.
    """
    lines: dict[tuple[int, int, int], StopLine] = {}
    for light in lights:
        for found in light.get_stop_waypoints():
            waypoint = _at_junction(found)
            location, yaw = waypoint.transform.location, waypoint.transform.rotation.yaw
            half = _LINE_LANES * waypoint.lane_width / 2
            right_x, right_y = -half * math.sin(math.radians(yaw)), half * math.cos(math.radians(yaw))
            line = StopLine(
                light_id=light.id,
                start=(location.x - right_x, location.y - right_y),
                end=(location.x + right_x, location.y + right_y),
                heading=float(wrap_degrees(yaw)),
                road_id=waypoint.road_id,
                lane_id=waypoint.lane_id,
                height=location.z,
            )
            lines.setdefault((light.id, *line.lane), line)
    return tuple(lines.values())


def _at_junction(waypoint: carla.Waypoint) -> carla.Waypoint:
    """The last waypoint of its lane before the junction; itself, if it is in one or none comes."""
    here, advanced = waypoint, 0.0
    while not here.is_junction:
        following = here.next(_ADVANCE_STEP)
        advanced += _ADVANCE_STEP
        if not following or advanced > _LONGEST_ADVANCE:
            return waypoint
        if following[0].is_junction:
            break
        here = following[0]
    return here


def crossed(lines: Iterable[StopLine], before: Point, after: Point, heading: float) -> list[StopLine]:
    """The stop lines that a vehicle has crossed in a step, in the direction of their traffic.

    Args:
        lines: Stop lines.
        before: A point of the vehicle at the beginning of the step, metres. The leaderboard takes its rear end, so that
            a vehicle that stops on the line has not run the light.
        after: The same point at the end of the step.
        heading: The vehicle's yaw, degrees. One that faces the other way crosses no line, even by reversing.
    """
    (x, y), reach = before, math.dist(before, after) + _WIDEST_LANE
    return [
        line
        for line in lines
        if abs(line.start[0] - x) < reach
        and abs(line.start[1] - y) < reach
        and line.part_before_crossing(before, after) is not None
        and abs(wrap_degrees(heading - line.heading)) < _SAME_DIRECTION
    ]


def ahead(lines: Iterable[StopLine], route: Route, distance: float, reach_m: float) -> tuple[StopLine, float] | None:
    """The next stop line on a route.

    Args:
        lines: Stop lines.
        route: The route; a line counts where the route crosses it in the direction of its traffic.
        distance: Where to begin, metres along the route.
        reach_m: How far to look, metres along the route.

    Returns:
        The line and the metres along the route from ``distance`` to it, or ``None`` where there is none within reach.
    """
    stop = min(distance + reach_m, route.length)
    begin = max(distance, 0.0)
    if stop <= begin:
        return None
    first, last = np.searchsorted(route.distances, (begin, stop))
    at = np.concatenate(([begin], route.distances[first:last], [stop]))
    way_x, way_y = (np.interp(at, route.distances, route.points[:, axis]) for axis in (0, 1))
    low_x, high_x = float(way_x.min()) - _WIDEST_LANE, float(way_x.max()) + _WIDEST_LANE
    low_y, high_y = float(way_y.min()) - _WIDEST_LANE, float(way_y.max()) + _WIDEST_LANE
    nearest: tuple[StopLine, float] | None = None
    for line in lines:
        start_x, start_y = line.start
        if not (low_x < start_x < high_x and low_y < start_y < high_y):
            continue
        end_x, end_y = line.end
        beyond = (way_x - start_x) * (end_y - start_y) - (way_y - start_y) * (end_x - start_x)
        for index in np.flatnonzero((beyond[:-1] < 0) & (beyond[1:] >= 0)).tolist():
            part = line.part_before_crossing((way_x[index], way_y[index]), (way_x[index + 1], way_y[index + 1]))
            if part is None:
                continue
            if route.heights is not None and line.height is not None:
                height = float(np.interp(at[index], route.distances, route.heights))
                if abs(height - line.height) > _LEVEL:
                    continue
            gap = float(at[index] + part * (at[index + 1] - at[index])) - distance
            if nearest is None or gap < nearest[1]:
                nearest = line, gap
            break
    return nearest
