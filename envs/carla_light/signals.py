"""The traffic lights of an OpenDRIVE map: where they stand, which lanes they are for, and who is green together.

CARLA's maps have a signal beside the approach and refer to it from the roads within the junction. The approach is what
leads to those roads. Groups are the junction's controllers, in their sequence.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from wm_gym.envs.angles import wrap_degrees
from wm_gym.envs.carla_light.lanes import LaneSamples
from wm_gym.envs.carla_light.layout import Pose, TrafficLight

if TYPE_CHECKING:
    import carla

_LIGHT = "1000001"
_STEP_M = 0.5
_LONGEST_WAY_M = 150.0
"""Of the search for the way into or out of a junction."""
_BEFORE_M = (1.0, 0.0)
"""Metres from the middle of a trigger volume to the last waypoint before the junction; the latter where the road is too
short for the former."""
_VOLUME_HALF_M = 1.0
_VOLUME_UP_M = 1.0
_EASY_BRAKING_M_S2 = 4.0
_SHORTEST_ZONE_M, _LONGEST_ZONE_M = 8.0, 60.0

LaneKey = tuple[int, int]


def read_lights(
    root: ElementTree.Element, carla_map: carla.Map
) -> tuple[tuple[TrafficLight, ...], list[list[carla.Waypoint]]]:
    """The lights of a map.

    Args:
        root: The map.
        carla_map: The same, read by the client.

    Returns:
        The lights, and for each of them the last waypoint of each of its lanes before the junction.
    """
    landmarks: dict[str, list[carla.Landmark]] = defaultdict(list)
    for landmark in carla_map.get_all_landmarks_of_type(_LIGHT):
        landmarks[landmark.id].append(landmark)
    groups = _groups(root)
    lights, entries = [], []
    for signal, references in sorted(landmarks.items(), key=lambda item: (len(item[0]), item[0])):
        approach, junction = _approach(carla_map, references)
        if not approach:
            continue  # for pedestrians, say
        group_junction, group = groups.get(signal, (junction, -1))
        lights.append(_light(carla_map, references[0], approach, junction=group_junction, group=group))
        entries.append(approach)
    return _with_groups_of_their_own(lights), entries


def _groups(root: ElementTree.Element) -> dict[str, tuple[int, int]]:
    """For each signal its junction and the number of its turn there; the first, where it has several."""
    signals = {
        controller.attrib["id"]: [control.attrib["signalId"] for control in controller.findall("control")]
        for controller in root.findall("controller")
    }
    found: dict[str, tuple[int, int]] = {}
    for junction in root.findall("junction"):
        controllers = sorted(junction.findall("controller"), key=lambda node: int(node.get("sequence") or 0))
        for turn, controller in enumerate(controllers):
            for signal in signals.get(controller.attrib["id"], []):
                found.setdefault(signal, (int(junction.attrib["id"]), turn))
    return found


def _with_groups_of_their_own(lights: list[TrafficLight]) -> tuple[TrafficLight, ...]:
    """Lights without a controller each have a turn of their own, after those of the controllers."""
    turns: dict[int, int] = defaultdict(int)
    for light in lights:
        turns[light.junction] = max(turns[light.junction], light.group + 1)
    complete = []
    for light in lights:
        group = light.group
        if group < 0:
            group = turns[light.junction]
            turns[light.junction] += 1
        complete.append(TrafficLight(**{**vars(light), "group": group}))
    return tuple(complete)


def _approach(carla_map: carla.Map, references: list[carla.Landmark]) -> tuple[list[carla.Waypoint], int]:
    """The last waypoint before the junction of each lane that a light is for, and the junction's id, or -1."""
    entries: dict[LaneKey, carla.Waypoint] = {}
    junction = -1
    for reference in references:
        for first, last in reference.get_lane_validities():
            for lane in range(min(first, last), max(first, last) + 1):
                waypoint = None if lane == 0 else _waypoint(carla_map, reference.road_id, lane, reference.s)
                if waypoint is None:
                    continue
                found = _last_before_junction(waypoint)
                if found is not None:
                    entry, beyond = found
                    junction = beyond if junction < 0 else junction
                    entries[entry.road_id, entry.lane_id] = entry
    return list(entries.values()), junction


def _waypoint(carla_map: carla.Map, road: int, lane: int, s: float) -> carla.Waypoint | None:
    """A waypoint on a driving lane; the very ends of a road have none."""
    for place in (s, max(0.05, s - 0.05), s + 0.05):
        waypoint = carla_map.get_waypoint_xodr(road, lane, place)
        if waypoint is not None:
            return waypoint if str(waypoint.lane_type) == "Driving" else None
    return None


def _last_before_junction(waypoint: carla.Waypoint) -> tuple[carla.Waypoint, int] | None:
    """Back out of the junction, or on to it: the waypoint there and the junction's id; ``None`` where none is near."""
    here, way = waypoint, 0.0
    if here.is_junction:
        junction = here.junction_id
        while here.is_junction and way < _LONGEST_WAY_M:
            before = here.previous(_STEP_M)
            if not before:
                return None
            here, way = before[0], way + _STEP_M
        return (here, junction) if not here.is_junction else None
    while way < _LONGEST_WAY_M:
        following = here.next(_STEP_M)
        if not following:
            return None
        if following[0].is_junction:
            return here, following[0].junction_id
        here, way = following[0], way + _STEP_M
    return None


def _light(
    carla_map: carla.Map,
    landmark: carla.Landmark,
    approach: list[carla.Waypoint],
    *,
    junction: int,
    group: int,
) -> TrafficLight:
    heading = math.radians(approach[0].transform.rotation.yaw)
    forward, right = (math.cos(heading), math.sin(heading)), (-math.sin(heading), math.cos(heading))
    places = [entry.transform.location for entry in approach]
    middle = places[0]
    offsets = [((p.x - middle.x) * right[0] + (p.y - middle.y) * right[1]) for p in places]
    low = min(offset - entry.lane_width / 2 for offset, entry in zip(offsets, approach, strict=True))
    high = max(offset + entry.lane_width / 2 for offset, entry in zip(offsets, approach, strict=True))
    across, back = (low + high) / 2, _distance_before(carla_map, approach, forward)
    pole = landmark.transform.location
    yaw = math.degrees(heading)
    return TrafficLight(
        opendrive_id=landmark.id,
        pose=Pose(pole.x, pole.y, middle.z, yaw=wrap_degrees(yaw + 180.0)),
        group=group,
        junction=junction,
        trigger=Pose(
            middle.x + across * right[0] - back * forward[0],
            middle.y + across * right[1] - back * forward[1],
            middle.z + _VOLUME_UP_M,
            yaw=yaw,
        ),
        trigger_extent=(_VOLUME_HALF_M, (high - low) / 2, _VOLUME_UP_M),
    )


def _distance_before(carla_map: carla.Map, approach: list[carla.Waypoint], forward: tuple[float, float]) -> float:
    """How far before the junction the trigger lies: so that the client finds all lanes of the approach there."""
    for back in _BEFORE_M:
        found = []
        for entry in approach:
            place = entry.transform.location
            place.x, place.y = place.x - back * forward[0], place.y - back * forward[1]
            here = carla_map.get_waypoint(place)
            found.append((here.road_id, here.lane_id) == (entry.road_id, entry.lane_id))
        if all(found):
            return back
    return _BEFORE_M[-1]


def light_zones(
    lanes: LaneSamples, limits: NDArray[np.float64], entries: list[list[carla.Waypoint]]
) -> NDArray[np.int64]:
    """Where a vehicle is at a light.

    Args:
        lanes: The map's lanes.
        limits: ``(N,)`` km/h: the zone is as long as one brakes easily from that speed, 8 to 60 m.
        entries: For each light the last waypoint of each of its lanes before the junction.

    Returns:
        ``(N,)`` number of the light at each sample, or -1.
    """
    at = np.full(len(lanes.yaws), -1, np.int64)
    for number, waypoints in enumerate(entries):
        for entry in waypoints:
            for road, lane, first, last in _way_back(lanes, limits, entry):
                beside = (lanes.roads == road) & (lanes.lanes == lane)
                at[beside & (lanes.stations >= first - _STEP_M) & (lanes.stations <= last + _STEP_M)] = number
    return at


def _way_back(
    lanes: LaneSamples, limits: NDArray[np.float64], entry: carla.Waypoint
) -> list[tuple[int, int, float, float]]:
    """Road, lane and range of stations of each piece of the zone before a junction."""
    on_lane = (lanes.roads == entry.road_id) & (lanes.lanes == entry.lane_id) & np.isfinite(limits)
    speed = float(limits[on_lane].max()) / 3.6 if on_lane.any() else 0.0
    length = float(np.clip(speed**2 / (2 * _EASY_BRAKING_M_S2), _SHORTEST_ZONE_M, _LONGEST_ZONE_M))
    pieces: dict[LaneKey, list[float]] = defaultdict(list)
    here, way = entry, 0.0
    while way <= length and not here.is_junction:
        pieces[here.road_id, here.lane_id].append(here.s)
        before = here.previous(_STEP_M)
        if len(before) != 1:
            break
        here, way = before[0], way + _STEP_M
    return [(road, lane, min(stations), max(stations)) for (road, lane), stations in pieces.items()]
