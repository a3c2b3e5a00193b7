"""What a town is made of, simulated or drawn; all in CARLA's frame: left-handed, metres, degrees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from wm_gym.envs.carla_light.surface import RoadSurface

DASH_LENGTH = 3.0
"""Metres of paint of a dashed marking; ``DASH_GAP`` metres of road follow."""
DASH_GAP = 4.5
POLE_HALF_M, POLE_HEIGHT_M = 0.1, 5.0
"""Half the thickness and the height of the poles beside roads."""

Points = NDArray[np.float64]


class Pose(NamedTuple):
    """A position in metres and a rotation in degrees, in CARLA's left-handed frame.

    x points east, y south and z up; yaw is clockwise seen from above, a positive pitch looks up. In this order they lie
    in the client's memory.
    """

    x: float
    y: float
    z: float = 0.0
    pitch: float = 0.0
    yaw: float = 0.0
    roll: float = 0.0


@dataclass(frozen=True)
class TrafficLight:
    """A light at the entrance of a junction.

    Attributes:
        opendrive_id: Id of its ``<signal>``.
        pose: Foot of the pole; yaw is the direction in which the lamps shine, against the traffic they are for.
        group: Lights of one group are green together; those of a junction take turns. At a crossing of four streets
            opposite ones are a group, where three streets meet each is one of its own.
        junction: OpenDRIVE id of the junction.
        trigger: Centre of the box before the junction that the client is told, heading with the traffic. It reaches
            across the lanes that the light is for, by which the client finds them.
        trigger_extent: Half sizes of that box in metres, along its own axes.
    """

    opendrive_id: str
    pose: Pose
    group: int
    junction: int
    trigger: Pose
    trigger_extent: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Marking:
    """A painted line.

    Attributes:
        points: Polyline ``(N, 2)`` in metres, CARLA's frame.
        width: Metres.
        color: RGB, 0 to 255.
        dashed: Whether it is ``DASH_LENGTH`` of paint and ``DASH_GAP`` of none in turn, or solid.
    """

    points: Points
    width: float
    color: tuple[int, int, int]
    dashed: bool


@dataclass(frozen=True)
class Building:
    """A box that stands on the ground: centre, half sizes and height in metres, yaw in degrees, colour in RGB.

    The height of the ground, ``z``, comes last.
    """

    x: float
    y: float
    half_x: float
    half_y: float
    height: float
    yaw: float
    color: tuple[int, int, int]
    z: float = 0.0


@dataclass(frozen=True, eq=False)
class Town:
    """A map and what is seen of it; all in CARLA's frame but for the OpenDRIVE text.

    Attributes:
        name: Without a path, such as ``Town01``.
        opendrive: The map, OpenDRIVE 1.4.
        spawn_points: On driving lanes and heading along them, clear of the junctions.
        road_polygons: Driving surface: convex polygons ``(N, 2)`` that do not overlap.
        sidewalk_polygons: As ``road_polygons``.
        buildings: Scenery beside the streets.
        markings: Painted lines.
        lights: Traffic lights.
        speed_limit: km/h, where the surface knows none.
        surface: Heights, speed limits and the lights that apply.
        poles: Feet of the poles beside the roads, besides those of traffic lights.
        junction_polygons: As ``road_polygons``, in layers: only within one of them they do not overlap.
    """

    name: str
    opendrive: str
    spawn_points: tuple[Pose, ...]
    road_polygons: tuple[Points, ...]
    sidewalk_polygons: tuple[Points, ...]
    buildings: tuple[Building, ...]
    markings: tuple[Marking, ...]
    lights: tuple[TrafficLight, ...]
    speed_limit: float
    surface: RoadSurface
    poles: tuple[Pose, ...] = ()
    junction_polygons: tuple[tuple[Points, ...], ...] = ()
