"""What stands beside the roads: buildings and poles. A map says nothing of them, so they are made up, always the same.

Whoever leaves the road can run into them; they keep clear of every lane.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from wm_gym.envs.carla_light.actors import Actor
from wm_gym.envs.carla_light.blueprints import Blueprint
from wm_gym.envs.carla_light.lanes import LaneSamples
from wm_gym.envs.carla_light.layout import POLE_HALF_M, POLE_HEIGHT_M, Building, Pose, Town

if TYPE_CHECKING:
    import carla

BUILDING_TYPE, POLE_TYPE = "static.building", "static.pole"
"""Types of the actors that collisions name, as in CARLA."""

_POLE_EVERY_M = 40.0
_POLE_GAP_M = 0.8
"""Metres from the outermost lane or sidewalk to a pole."""
_HALF_SIZES_M, _HEIGHTS_M, _GAPS_M, _PAUSES_M = (4.0, 8.0), (4.0, 18.0), (2.0, 7.0), (4.0, 16.0)
_CLEAR_M = 1.0
"""Metres between a building and the nearest lane, besides half of that lane."""
_COLORS = ((176, 110, 88), (201, 180, 146), (150, 152, 160), (216, 205, 188), (134, 92, 78), (116, 132, 148))
_WIDEST_SIDE = 8
"""Lanes of any type to the right of the outermost one for driving, at most."""


def make_scenery(name: str, lanes: LaneSamples) -> tuple[tuple[Building, ...], tuple[Pose, ...]]:
    """Buildings, and the feet of poles, along the outermost lanes outside junctions."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    tree = cKDTree(lanes.points[:, :2])
    widest = float(lanes.widths.max()) / 2
    buildings: list[Building] = []
    poles: list[Pose] = []
    centres: dict[tuple[int, int], list[Building]] = {}
    for lane in lanes.each_lane():
        if lanes.junctions[lane.start] >= 0:
            continue
        building_due, pole_due, passed = 0.0, float(rng.uniform(5.0, _POLE_EVERY_M)), 0.0
        for number in range(lane.start + 1, lane.stop):
            passed += math.dist(lanes.points[number, :2], lanes.points[number - 1, :2])
            if passed < building_due and passed < pole_due:
                continue
            edge = _edge(lanes.waypoints[number])
            if edge is None:
                continue
            (x, y, z), (right_x, right_y), yaw = edge
            if passed >= pole_due:
                pole_due = passed + _POLE_EVERY_M
                foot = Pose(x + _POLE_GAP_M * right_x, y + _POLE_GAP_M * right_y, z, yaw=yaw)
                if tree.query((foot.x, foot.y))[0] > widest + 0.5:
                    poles.append(foot)
            if passed >= building_due:
                half_x, half_y = rng.uniform(*_HALF_SIZES_M, 2).tolist()
                away = float(rng.uniform(*_GAPS_M)) + half_y
                color = _COLORS[int(rng.integers(len(_COLORS)))]
                height = float(rng.uniform(*_HEIGHTS_M))
                building_due = passed + 2 * half_x + float(rng.uniform(*_PAUSES_M))
                found = Building(x + away * right_x, y + away * right_y, half_x, half_y, height, yaw, color, z)
                reach = math.hypot(half_x, half_y)
                if tree.query((found.x, found.y))[0] > widest + reach + _CLEAR_M and _is_apart(found, centres):
                    buildings.append(found)
                    centres.setdefault(_cell(found.x, found.y), []).append(found)
    return tuple(buildings), tuple(poles)


def _edge(waypoint: carla.Waypoint) -> tuple[tuple[float, float, float], tuple[float, float], float] | None:
    """Where the road ends on the right of a lane, the direction to the right, and the lane's yaw.

    ``None`` where another lane for driving is there.
    """
    outermost = waypoint
    for _ in range(_WIDEST_SIDE):
        beside = outermost.get_right_lane()
        if beside is None:
            break
        if str(beside.lane_type) == "Driving":
            return None
        outermost = beside
    place, right = outermost.transform.location, waypoint.transform.get_right_vector()
    half = outermost.lane_width / 2
    at = (place.x + half * right.x, place.y + half * right.y, waypoint.transform.location.z)
    return at, (right.x, right.y), waypoint.transform.rotation.yaw


def _cell(x: float, y: float) -> tuple[int, int]:
    side = 4 * _HALF_SIZES_M[1]
    return int(x // side), int(y // side)


def _is_apart(building: Building, centres: dict[tuple[int, int], list[Building]]) -> bool:
    column, row = _cell(building.x, building.y)
    reach = math.hypot(building.half_x, building.half_y)
    return all(
        math.hypot(other.x - building.x, other.y - building.y) > reach + math.hypot(other.half_x, other.half_y) + 0.5
        for dx in (-1, 0, 1)
        for dy in (-1, 0, 1)
        for other in centres.get((column + dx, row + dy), ())
    )


def obstacles(town: Town) -> Iterator[Actor]:
    """What can be run into in a town: its buildings and its poles, those of traffic lights left out."""
    for building in town.buildings:
        size = (building.half_x, building.half_y, building.height / 2)
        yield Actor(0, Blueprint(BUILDING_TYPE, size), [], Pose(building.x, building.y, building.z, yaw=building.yaw))
    pole = Blueprint(POLE_TYPE, (POLE_HALF_M, POLE_HALF_M, POLE_HEIGHT_M / 2))
    for foot in town.poles:
        yield Actor(0, pole, [], foot)
