"""A town made from an OpenDRIVE file. CARLA's client reads the map, so that both sides see the same lanes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from wm_gym.envs.angles import wrap_degrees
from wm_gym.envs.carla_light.lanes import LaneSamples, read_lanes
from wm_gym.envs.carla_light.layout import Marking, Points, Pose, Town
from wm_gym.envs.carla_light.scenery import make_scenery
from wm_gym.envs.carla_light.signals import light_zones, read_lights
from wm_gym.envs.carla_light.speed_limits import speed_limits
from wm_gym.envs.carla_light.surface import RoadSurface
from wm_gym.errors import ConfigError, SimulatorError

if TYPE_CHECKING:
    import carla

DEFAULT_LIMIT_KMH = 30.0
"""Where a map says nothing, as in CARLA."""
_SPAWN_EVERY_M = 20.0
_SPAWN_STAGGER_M = 7.0
"""Spawn points of neighbouring lanes lie so far apart along the road."""
_SPAWN_MARGIN_M = 8.0
"""Metres from the ends of a road to the nearest spawn point."""
_SPAWN_UP_M = 0.3
_NARROWEST_M = 2.5
_LEAST_LINE_M = 0.1
_COLORS = {"Yellow": (215, 175, 60)}
_WHITE = (225, 225, 220)


def read_town(path: Path) -> Town:
    """The town of a map.

    Raises:
        ConfigError: The file cannot be read, or is no OpenDRIVE map with lanes for driving.
        SimulatorError: CARLA's client, which reads maps, is not installed.
    """
    try:
        carla_module: Any = importlib.import_module("carla")
    except ImportError as error:
        raise SimulatorError(
            "reading OpenDRIVE maps needs CARLA's client, which is not installed; run `pip install 'wm_gym[carla]'`."
        ) from error
    try:
        text = path.read_text(encoding="utf-8")
        root = ElementTree.fromstring(text.encode())
        carla_map = carla_module.Map(path.stem, text)
        lanes = read_lanes(carla_map)
    except (OSError, UnicodeDecodeError, ElementTree.ParseError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{path} is no OpenDRIVE map that CARLA's client can read: {error}.") from error
    lights, entries = read_lights(root, carla_map)
    limits = speed_limits(root, lanes.roads, lanes.stations, lanes.lanes)
    outside = np.flatnonzero(lanes.junctions < 0)
    buildings, poles = make_scenery(path.stem, lanes)
    return Town(
        name=path.stem,
        opendrive=text,
        spawn_points=tuple(_spawn_points(lanes)),
        road_polygons=tuple(_strips(lanes, inside=False)),
        junction_polygons=_junction_layers(lanes),
        sidewalk_polygons=tuple(_sidewalks(lanes)),
        buildings=buildings,
        poles=poles,
        markings=tuple(_markings(lanes)),
        lights=lights,
        speed_limit=float(np.nanmedian(limits[outside])) if np.isfinite(limits[outside]).any() else DEFAULT_LIMIT_KMH,
        surface=RoadSurface(lanes.points, lanes.yaws, lanes.slopes, limits, light_zones(lanes, limits, entries)),
    )


def _spawn_points(lanes: LaneSamples) -> Iterator[Pose]:
    """On driving lanes outside junctions, clear of the ends of their roads."""
    longest = {int(road): float(lanes.stations[lanes.roads == road].max()) for road in np.unique(lanes.roads)}
    for lane in lanes.each_lane():
        if lanes.junctions[lane.start] >= 0:
            continue
        length = longest[int(lanes.roads[lane.start])]
        due = _SPAWN_MARGIN_M + (abs(int(lanes.lanes[lane.start])) - 1) * _SPAWN_STAGGER_M % _SPAWN_EVERY_M
        for number in range(lane.start, lane.stop):
            station, number_before = float(lanes.stations[number]), max(lane.start, number - 1)
            is_clear = _SPAWN_MARGIN_M <= station <= length - _SPAWN_MARGIN_M
            along = abs(station - float(lanes.stations[lane.start]))
            if not is_clear or along < due or lanes.widths[[number, number_before]].min() < _NARROWEST_M:
                continue
            due = along + _SPAWN_EVERY_M
            x, y, z = lanes.points[number].tolist()
            yaw = wrap_degrees(float(lanes.yaws[number]))
            pitch = float(np.degrees(np.arctan(lanes.slopes[number])))
            yield Pose(x, y, z + _SPAWN_UP_M, pitch=pitch, yaw=yaw)


def _edges(lanes: LaneSamples, lane: slice) -> tuple[Points, Points]:
    """Left and right border ``(n + 1, 2)`` of a lane, with one point more at its end."""
    heading = np.radians(lanes.yaws[lane])
    forward = np.stack((np.cos(heading), np.sin(heading)), axis=1)
    right = np.stack((-forward[:, 1], forward[:, 0]), axis=1) * lanes.widths[lane, None] / 2
    middle = lanes.points[lane, :2]
    end = middle[-1:] + 2.0 * forward[-1:]
    return (
        np.concatenate((middle - right, end - right[-1:])),
        np.concatenate((middle + right, end + right[-1:])),
    )


def _quads(left: Points, right: Points) -> Iterator[Points]:
    yield from np.stack((left[:-1], left[1:], right[1:], right[:-1]), axis=1)


def _strips(lanes: LaneSamples, *, inside: bool) -> Iterator[Points]:
    """Pieces of the lanes outside or inside junctions."""
    for lane in lanes.each_lane():
        if (lanes.junctions[lane.start] >= 0) == inside:
            yield from _quads(*_edges(lanes, lane))


def _junction_layers(lanes: LaneSamples) -> tuple[tuple[Points, ...], ...]:
    """Lanes that cross in a junction lie in different layers."""
    taken: dict[int, int] = {}
    layers: list[list[Points]] = []
    for lane in lanes.each_lane():
        junction = int(lanes.junctions[lane.start])
        if junction < 0:
            continue
        layer = taken.get(junction, 0)
        taken[junction] = layer + 1
        if layer == len(layers):
            layers.append([])
        layers[layer] += _quads(*_edges(lanes, lane))
    return tuple(tuple(layer) for layer in layers)


def _sidewalks(lanes: LaneSamples) -> Iterator[Points]:
    """Pieces of the sidewalks to the right of the lanes outside junctions."""
    for lane in lanes.each_lane():
        if lanes.junctions[lane.start] >= 0:
            continue
        beside = [_sidewalk_beside(waypoint) for waypoint in lanes.waypoints[lane]]
        for there, run in groupby(pairwise(beside), key=lambda pair: None not in pair):
            if there:
                pairs = [(first, second) for first, second in run if first is not None and second is not None]
                borders = [_borders(waypoint) for waypoint in (pairs[0][0], *(second for _, second in pairs))]
                yield from _quads(*(np.array(side) for side in zip(*borders, strict=True)))


def _sidewalk_beside(waypoint: carla.Waypoint) -> carla.Waypoint | None:
    beside = waypoint.get_right_lane()
    while beside is not None and str(beside.lane_type) not in ("Driving", "Sidewalk"):
        beside = beside.get_right_lane()
    return beside if beside is not None and str(beside.lane_type) == "Sidewalk" else None


def _borders(waypoint: carla.Waypoint) -> tuple[tuple[float, float], tuple[float, float]]:
    place, right, half = waypoint.transform.location, waypoint.transform.get_right_vector(), waypoint.lane_width / 2
    return (place.x - right.x * half, place.y - right.y * half), (place.x + right.x * half, place.y + right.y * half)


def _markings(lanes: LaneSamples) -> Iterator[Marking]:
    """The painted lines on the right of each lane outside junctions, and on the left of the innermost."""
    for lane in lanes.each_lane():
        if lanes.junctions[lane.start] >= 0:
            continue
        borders = _edges(lanes, lane)
        sides = ("left", "right") if abs(int(lanes.lanes[lane.start])) == 1 else ("right",)
        for side in sides:
            border = borders[0] if side == "left" else borders[1]
            found = [getattr(waypoint, f"{side}_lane_marking") for waypoint in lanes.waypoints[lane]]
            numbered = enumerate((str(marking.type), str(marking.color), float(marking.width)) for marking in found)
            for (kind, color, width), run in groupby(numbered, key=lambda item: item[1]):
                numbers = [number for number, _ in run]
                if kind not in ("NONE", "Other") and width > 0:
                    points = border[numbers[0] : numbers[-1] + 2]
                    line = max(width, _LEAST_LINE_M)
                    yield Marking(points, line, _COLORS.get(color, _WHITE), dashed=kind.startswith("Broken"))
