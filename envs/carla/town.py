"""What is read from a town once: its map, routes, stop lines and traffic lights. Used in the client process only."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from wm_gym.envs.carla.messages import LightState
from wm_gym.envs.carla.route import RoutePlanner
from wm_gym.envs.carla.stop_lines import StopLine, stop_lines

if TYPE_CHECKING:
    import carla

_ROAD_MARGIN_M = 0.5
"""Beyond the outermost lane that still counts as road, as in the leaderboard."""


_LAYERED = "_Opt"


class Town:
    """A town as its map describes it.

    Args:
        carla_module: CARLA's client.
        world: The world, with the town loaded.
        spacing: Metres between the points of a route.
    """

    def __init__(self, carla_module: Any, world: carla.World, spacing: float) -> None:
        self.map = world.get_map()
        self.name = short_name(self.map.name)
        self.spawn_points = self.map.get_spawn_points()
        self.planner = RoutePlanner(self.map, spacing)
        lights = list(world.get_actors().filter("traffic.traffic_light*"))
        self.stop_lines: tuple[StopLine, ...] = stop_lines(lights)
        with_line = {line.light_id for line in self.stop_lines}
        self._light_states = [(light.id, light.get_state) for light in lights if light.id in with_line]
        lane = carla_module.LaneType
        self._drivable = lane.Driving | lane.Bidirectional | lane.Parking
        states = carla_module.TrafficLightState
        self._names: dict[Any, LightState] = {
            states.Red: "red",
            states.Yellow: "yellow",
            states.Green: "green",
            states.Off: "off",
        }

    def is_on_road(self, location: carla.Location) -> bool:
        """Whether a place is on a lane for vehicles.

        Not by ``project_to_road=False``: that says no at isolated points in the middle of bends.
        """
        nearest = self.map.get_waypoint(location, project_to_road=True, lane_type=self._drivable)
        if nearest is None:
            return False
        if _covers(nearest, location):
            return True
        # Where a lane opens or ends, its middle may be nearer than that of the wide lane beside it.
        beside = (nearest.get_left_lane(), nearest.get_right_lane())
        return any(
            lane is not None and int(lane.lane_type) & int(self._drivable) and _covers(lane, location)
            for lane in beside
        )

    def lane_at(self, location: carla.Location) -> tuple[int, int] | None:
        """Ids of the road and of the driving lane that are nearest to a place."""
        waypoint = self.map.get_waypoint(location)
        return None if waypoint is None else (waypoint.road_id, waypoint.lane_id)

    def light_states(self) -> dict[int, LightState]:
        """The state of every traffic light with a stop line, by its number."""
        return {number: self._names.get(state(), "unknown") for number, state in self._light_states}


def _covers(lane: carla.Waypoint, location: carla.Location) -> bool:
    """Whether a place is no further from the middle of a lane than its edge and a margin."""
    centre = lane.transform.location
    return math.hypot(location.x - centre.x, location.y - centre.y) <= lane.lane_width / 2 + _ROAD_MARGIN_M


def short_name(town: str) -> str:
    """``"Town03"`` of ``"Carla/Maps/Town03"``."""
    return town.rpartition("/")[2]


def same_roads(town: str, available: Collection[str]) -> str | None:
    """Which of a server's towns has the roads of ``town``: itself, or the variant with or without ``_Opt``.

    CARLA's ``Town10HD_Opt`` is ``Town10HD`` with its scenery in layers.
    """
    variant = town.removesuffix(_LAYERED) if town.endswith(_LAYERED) else town + _LAYERED
    return next((name for name in (town, variant) if name in available), None)
