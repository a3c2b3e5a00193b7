"""What ``CarlaDriving-v0`` tells in numbers beside the frame: a field or a group of fields a name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from wm_gym.actions import FloatArray
from wm_gym.envs.arguments import choose_fields
from wm_gym.envs.carla.road_ahead import first_on_route
from wm_gym.envs.carla.route import Command, Route
from wm_gym.errors import SimulatorError
from wm_gym.vector import Fields, VectorField, bounded

if TYPE_CHECKING:
    from wm_gym.envs.carla.drive import Drive

DEFAULT_NAMES = ("speed", "speed_limit", "steering", "acceleration", "command", "route_points", "distance_left")
PRIVILEGED_NAMES = ("light_state", "light_distance", "vehicle_distance", "vehicle_speed", "vehicle_ahead")

ROUTE_POINTS = 10
ROUTE_POINT_SPACING_M = 5.0
COMMAND_AHEAD_M = 25.0
"""The command of a junction, or of a change of lanes, is given from so many metres before it on."""
SIGHT_M = 60.0
"""Farther lights and vehicles count as none, at this distance."""

COMMANDS = ("left", "right", "straight", "lane_follow", "change_lane_left", "change_lane_right")
LIGHT_STATES = ("none", "red", "yellow", "green", "off")
VEHICLE_STATES = ("none", "there")
_OFF_ROUTE_M = 10.0
"""So far from its route, a vehicle's points still lie within their bounds, which are as narrow as that permits: what a
model tells apart is a part of them."""
_SPEED_BOUND_M_S = 40.0

_FIELDS: dict[str, Fields] = {
    "speed": (VectorField(name="speed", unit="m/s", low=-10.0, high=_SPEED_BOUND_M_S),),
    "speed_limit": (VectorField(name="speed_limit", unit="m/s", low=0.0, high=_SPEED_BOUND_M_S),),
    "steering": (VectorField(name="steering", low=-1.0, high=1.0, mirror_sign=-1),),
    "acceleration": (VectorField(name="acceleration", unit="m/s^2", low=-15.0, high=15.0),),
    "command": (VectorField.of_classes("command", COMMANDS, mirrored=(1, 0, 2, 3, 5, 4)),),
    "route_points": tuple(
        VectorField(
            name=f"route_{axis}_{number}",
            unit="m",
            low=-_OFF_ROUTE_M if axis == "forward" else -number * ROUTE_POINT_SPACING_M - _OFF_ROUTE_M,
            high=number * ROUTE_POINT_SPACING_M + _OFF_ROUTE_M,
            mirror_sign=-1 if axis == "right" else 1,
        )
        for number in range(1, ROUTE_POINTS + 1)
        for axis in ("forward", "right")
    ),
    "distance_left": (VectorField(name="distance_left", unit="m", low=0.0, high=2000.0),),
    "light_state": (VectorField.of_classes("light_state", LIGHT_STATES, privileged=True),),
    "light_distance": (VectorField(name="light_distance", unit="m", low=-10.0, high=SIGHT_M, privileged=True),),
    "vehicle_distance": (VectorField(name="vehicle_distance", unit="m", low=0.0, high=SIGHT_M, privileged=True),),
    "vehicle_speed": (
        VectorField(name="vehicle_speed", unit="m/s", low=-10.0, high=_SPEED_BOUND_M_S, privileged=True),
    ),
    # Without a vehicle both numbers are at their bounds. A speed that is then the own one, as above, teaches a model
    # that the vehicle ahead speeds up as we do.
    "vehicle_ahead": (
        VectorField.of_classes("vehicle_ahead", VEHICLE_STATES, privileged=True),
        VectorField(name="vehicle_ahead_distance", unit="m", low=0.0, high=SIGHT_M, privileged=True),
        VectorField(name="vehicle_ahead_speed", unit="m/s", low=-10.0, high=_SPEED_BOUND_M_S, privileged=True),
    ),
}


_LANE_CHANGES = (Command.CHANGE_LANE_LEFT, Command.CHANGE_LANE_RIGHT)


def vector_fields(names: Sequence[str]) -> Fields:
    """The fields that the names stand for, in their order.

    Raises:
        ConfigError: A name is unknown or occurs twice.
    """
    return choose_fields(_FIELDS, names)


def observed_vector(names: Sequence[str], drive: Drive) -> FloatArray:
    """The vector ``(V,)`` float32 of the moment that an episode has come to.

    Raises:
        SimulatorError: The server does not give what a field tells.
    """
    moment = _Moment(drive)
    values = [value for name in names for value in _READERS[name](moment)]
    if not np.isfinite(values).all():
        raise SimulatorError(f"the CARLA server gave numbers that are not finite among {', '.join(names)}.")
    return bounded(vector_fields(names), values)


def command_at(route: Route, distance: float) -> Command:
    """What a driver at a distance along the route is told: the next command from there on within 25 m.

    That of a junction goes before a change of lanes, which the route's points show as well.
    """
    here = int(np.searchsorted(route.distances, distance, side="right")) - 1
    ahead = int(np.searchsorted(route.distances, distance + COMMAND_AHEAD_M, side="right"))
    commands = route.commands[max(here, 0) : ahead].tolist()
    told = [command for command in commands if command != Command.LANE_FOLLOW]
    turns = [command for command in told if command not in _LANE_CHANGES]
    return Command(next(iter(turns or told), Command.LANE_FOLLOW))


def route_points_ahead(drive: Drive) -> list[float]:
    """Points of the route 5 to 50 m ahead in the vehicle's frame: metres forward and to the right, one after another.

    Beyond the end of the route they are its last point.
    """
    ego, distance = drive.tick.ego, drive.route_state.distance
    yaw = math.radians(ego.yaw)
    cos, sin = math.cos(yaw), math.sin(yaw)
    ahead = ROUTE_POINT_SPACING_M * np.arange(1, ROUTE_POINTS + 1, dtype=np.float64)
    values: list[float] = []
    for x, y in (drive.route.points_at(distance + ahead) - (ego.x, ego.y)).tolist():
        values += [x * cos + y * sin, y * cos - x * sin]
    return values


class _Moment:
    """One moment of an episode; what several fields tell of is looked for once."""

    def __init__(self, drive: Drive) -> None:
        self.drive = drive
        self.tick = drive.tick

    @property
    def speed_limit(self) -> float:
        limit = self.tick.speed_limit
        if limit <= 0:
            raise SimulatorError(
                "the CARLA server gives no speed limit for the vehicle; leave speed_limit out of vector=, or use a "
                "town with signs."
            )
        return limit

    @cached_property
    def light(self) -> tuple[str, float]:
        """State of the next light and metres from the front to its line, until the rear is past that."""
        found = self.drive.light_ahead()
        if found is None:
            return "none", SIGHT_M
        distance, state = found
        if state not in LIGHT_STATES:
            raise SimulatorError(
                f"the CARLA server calls the traffic light ahead {state!r}; leave light_state out of vector=."
            )
        return state, distance

    @cached_property
    def vehicle(self) -> tuple[float, float] | None:
        """Metres from the ego vehicle's centre to the next vehicle on the route, and its speed."""
        ego, distance = self.tick.ego, self.drive.route_state.distance
        vehicles = [user for user in self.tick.road_users if user.kind == "vehicle"]
        return first_on_route(self.drive.route, distance, SIGHT_M, ego, vehicles)

    @property
    def vehicle_ahead(self) -> tuple[float, float, float]:
        """Whether there is such a vehicle, and the two numbers, or their upper bounds."""
        there = VEHICLE_STATES.index("there")
        return (0.0, SIGHT_M, _SPEED_BOUND_M_S) if self.vehicle is None else (there, *self.vehicle)


_READERS: dict[str, Callable[[_Moment], Sequence[float]]] = {
    "speed": lambda moment: [moment.tick.ego.speed],
    "speed_limit": lambda moment: [moment.speed_limit],
    "steering": lambda moment: [moment.tick.applied[0]],
    "acceleration": lambda moment: [moment.drive.acceleration],
    "command": lambda moment: [command_at(moment.drive.route, moment.drive.route_state.distance) - 1],
    "route_points": lambda moment: route_points_ahead(moment.drive),
    "distance_left": lambda moment: [moment.drive.route_state.remaining],
    "light_state": lambda moment: [LIGHT_STATES.index(moment.light[0])],
    "light_distance": lambda moment: [moment.light[1]],
    "vehicle_distance": lambda moment: [SIGHT_M if moment.vehicle is None else moment.vehicle[0]],
    "vehicle_speed": lambda moment: [moment.tick.ego.speed if moment.vehicle is None else moment.vehicle[1]],
    "vehicle_ahead": lambda moment: moment.vehicle_ahead,
}
