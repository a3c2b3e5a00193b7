"""Two small towns of our own: an OpenDRIVE 1.4 map for CARLA's client, and the same geometry for drawing.

A town is planned as streets between junctions. The streets are lines and arcs; at a junction every lane that comes in
is joined, by a connecting road of its own, to each lane it may go on to: the outermost lane turns right, the innermost
turns left, and every lane goes straight on where there is a street ahead.

Everything is computed in OpenDRIVE's frame (metres, right-handed, y north, headings in radians counter-clockwise) and
turned into CARLA's (left-handed, y south, yaw in degrees clockwise) at the end. Traffic keeps to the right.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any
from xml.etree import ElementTree

import numpy as np

from wm_gym.envs.angles import wrap_degrees
from wm_gym.envs.carla_light.geometry import contains
from wm_gym.envs.carla_light.layout import Building, Marking, Points, Pose, Town, TrafficLight
from wm_gym.envs.carla_light.surface import NOWHERE, RoadSurface

LANE_WIDTH = 3.5
"""Metres, of every driving lane."""
SIDEWALK_WIDTH = 2.0
TOWN_NAMES = ("Town01", "Town02")

WHITE = (225, 225, 220)
YELLOW = (215, 175, 60)

_ARM = 17.0
"""Metres from the centre of a junction to the ends of its streets."""
_STOP_LINE = 4.0
"""Metres from a stop line to the junction; the light stands beyond the line, where a waiting driver can see it."""
_STOP_LINE_WIDTH = 0.4
_LIGHT_S = 0.5
"""Metres along the street from a traffic light to the junction."""
_LIMIT_S = 8.0
"""Metres along the street from a junction to the sign with the speed limit."""
_SIGNAL_MARGIN = 0.9
"""Metres from the kerb to the poles of lights and signs; CARLA's client moves those that stand nearer than 0.7."""
_TRIGGER_LENGTH = 8.0
_LINE_WIDTH = 0.15
_DOUBLE_LINE = 0.15
"""Metres from the middle of a double line to the middle of each of its two lines."""
_SPAWN_MARGIN = 14.0
"""Metres between a junction and the nearest spawn point."""
_SPAWN_STAGGER = 9.0
"""Metres along the street between spawn points of neighbouring lanes."""
_SPAWN_HEIGHT = 0.3
_SURFACE_STEP = 1.0
"""Metres along a lane between the samples of the ground."""
_ARC_ERROR = 0.01
"""Metres by which straight pieces may miss an arc in the geometry for drawing."""
_COMPASS = {"E": 0.0, "N": 0.5 * math.pi, "W": math.pi, "S": 1.5 * math.pi}
_HOUSE_COLORS = (
    (176, 110, 88),
    (201, 180, 146),
    (150, 152, 160),
    (216, 205, 188),
    (134, 92, 78),
    (116, 132, 148),
    (190, 148, 106),
)

# --- Plans ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _JunctionPlan:
    x: float
    y: float
    has_lights: bool = False


@dataclass(frozen=True)
class _StreetPlan:
    """A street from one junction to another.

    Attributes:
        start: Name of the junction and the side (E, N, W, S) at which the street leaves it.
        end: Name of the junction and the side at which the street comes to it.
        via: Corners ``(x, y)`` on the way.
        radius: Of the arcs that round the corners, metres.
        lanes: Driving lanes in each direction.
        center: Type of the marking in the middle: ``broken``, ``solid`` or ``solid solid``.
    """

    start: tuple[str, str]
    end: tuple[str, str]
    via: tuple[tuple[float, float], ...] = ()
    radius: float = 30.0
    lanes: int = 1
    center: str = "broken"


@dataclass(frozen=True)
class _TownPlan:
    speed_limit: float
    junctions: dict[str, _JunctionPlan]
    streets: tuple[_StreetPlan, ...]


_PLANS = {
    # A ring of two lanes, a main road of four lanes across it from west to east, and a winding street across both.
    "Town01": _TownPlan(
        speed_limit=50.0,
        junctions={
            "centre": _JunctionPlan(0, 0, has_lights=True),
            "west": _JunctionPlan(-140, 0, has_lights=True),
            "east": _JunctionPlan(130, 0, has_lights=True),
            "north": _JunctionPlan(0, 110),
            "south": _JunctionPlan(0, -100),
        },
        streets=(
            _StreetPlan(
                ("west", "E"),
                ("centre", "W"),
                ((-103, 0), (-70, 10), (-38, 0)),
                radius=60,
                lanes=2,
                center="solid solid",
            ),
            _StreetPlan(("centre", "E"), ("east", "W"), lanes=2, center="solid solid"),
            _StreetPlan(("centre", "N"), ("north", "S"), ((0, 37), (14, 61), (0, 85)), radius=25, center="solid"),
            _StreetPlan(("south", "N"), ("centre", "S"), ((0, -72), (-8, -54), (0, -36)), radius=27),
            _StreetPlan(("north", "E"), ("east", "N"), ((130, 110),), radius=45),
            _StreetPlan(("west", "N"), ("north", "W"), ((-140, 60), (-90, 110)), radius=35),
            _StreetPlan(("south", "W"), ("west", "S"), ((-70, -100), (-105, -70), (-140, -70)), radius=22),
            _StreetPlan(("east", "S"), ("south", "E"), ((130, -60), (90, -60), (60, -100)), radius=20, center="solid"),
        ),
    ),
    # An oval with a street across it.
    "Town02": _TownPlan(
        speed_limit=30.0,
        junctions={"north": _JunctionPlan(0, 50, has_lights=True), "south": _JunctionPlan(0, -50)},
        streets=(
            _StreetPlan(("north", "E"), ("south", "E"), ((90, 50), (90, -50)), radius=45),
            _StreetPlan(("south", "W"), ("north", "W"), ((-70, -50), (-70, 50)), radius=35, center="solid"),
            _StreetPlan(("south", "N"), ("north", "S")),
        ),
    ),
}


# --- Roads ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Element:
    """A line (curvature 0) or an arc of a reference line; a positive curvature turns left."""

    x: float
    y: float
    heading: float
    length: float
    curvature: float = 0.0

    def at(self, distance: Points) -> tuple[Points, Points]:
        """Points ``(N, 2)`` and headings ``(N,)`` at distances ``(N,)`` from the beginning of the element."""
        heading = self.heading + self.curvature * distance
        # The chord to a point on an arc has half its turn, and is shorter than the arc by sinc of half its turn.
        middle = self.heading + 0.5 * self.curvature * distance
        chord = distance * np.sinc(0.5 * self.curvature * distance / np.pi)
        return np.stack((self.x + chord * np.cos(middle), self.y + chord * np.sin(middle)), axis=1), heading


@dataclass(frozen=True)
class _Link:
    """What is before or after a road: a road with the end that is touched, or a junction."""

    kind: str
    id: int
    contact: str = ""


@dataclass(frozen=True)
class _Signal:
    id: int
    kind: str
    name: str
    s: float
    t: float
    orientation: str
    lanes: tuple[int, int]
    value: float = -1.0


@dataclass
class _Road:
    """A reference line with driving lanes on its sides and perhaps sidewalks beyond them."""

    id: int
    elements: tuple[_Element, ...]
    left: int
    right: int
    center: str = "none"
    sidewalks: tuple[bool, bool] = (True, True)
    """Whether there is one on the left and on the right."""
    junction: int = -1
    predecessor: _Link | None = None
    successor: _Link | None = None
    lane_links: tuple[dict[int, int], dict[int, int]] = ({}, {})
    """From its lanes to those of the predecessor and to those of the successor."""
    signals: list[_Signal] = field(default_factory=list)

    @cached_property
    def starts(self) -> Points:
        """Distance ``(elements + 1,)`` along the road of the beginning of each element, and the road's length."""
        return np.concatenate(([0.0], np.cumsum([element.length for element in self.elements])))

    @property
    def length(self) -> float:
        return float(self.starts[-1])

    def at(self, s: Points | Sequence[float], t: float = 0.0) -> tuple[Points, Points]:
        """Points ``(N, 2)`` and headings ``(N,)`` at distances ``s`` and ``t`` metres to the left."""
        s = np.asarray(s, np.float64)
        points, headings = np.empty((len(s), 2)), np.empty(len(s))
        which = np.clip(np.searchsorted(self.starts, s, side="right") - 1, 0, len(self.elements) - 1)
        for index, element in enumerate(self.elements):
            chosen = which == index
            points[chosen], headings[chosen] = element.at(s[chosen] - self.starts[index])
        normal = np.stack((-np.sin(headings), np.cos(headings)), axis=1)
        return points + t * normal, headings

    def stations(self) -> Points:
        """Distances from 0 to the road's length between which the road may be drawn as straight pieces."""
        pieces = [np.zeros(1)]
        for element, start in zip(self.elements, self.starts, strict=False):
            step = math.sqrt(8 * _ARC_ERROR / abs(element.curvature)) if element.curvature else math.inf
            count = max(1, math.ceil(element.length / step))
            pieces.append(start + element.length / count * np.arange(1, count + 1))
        return np.concatenate(pieces)

    def edge(self, side: int) -> float:
        """The ``t`` at which the driving surface ends on the left (1) or on the right (-1)."""
        return LANE_WIDTH * (self.left if side > 0 else -self.right)


def _direction(heading: float) -> Points:
    return np.array((math.cos(heading), math.sin(heading)))


def _left_of(heading: float) -> Points:
    return np.array((-math.sin(heading), math.cos(heading)))


def _rounded(corners: Sequence[Points], radius: float) -> tuple[_Element, ...]:
    """Lines along a polyline, with an arc of ``radius`` metres in each corner.

    Raises:
        ValueError: The arcs of two corners overlap.
    """
    elements: list[_Element] = []
    position = corners[0]
    for before, corner, after in zip(corners, corners[1:], corners[2:], strict=False):
        incoming, outgoing = corner - before, after - corner
        heading = math.atan2(incoming[1], incoming[0])
        cross, dot = incoming[0] * outgoing[1] - incoming[1] * outgoing[0], float(incoming @ outgoing)
        turn = math.atan2(cross, dot)
        if abs(turn) < 1e-9:
            continue
        cut = radius * math.tan(0.5 * abs(turn))
        begin = corner - cut * _direction(heading)
        if (begin - position) @ incoming < -1e-9 or np.linalg.norm(outgoing) < cut - 1e-9:
            raise ValueError(f"there is no room for the arc at {corner}: give the street a smaller radius")
        elements += _line(position, begin)
        elements.append(
            _Element(float(begin[0]), float(begin[1]), heading, radius * abs(turn), math.copysign(1 / radius, turn))
        )
        position = corner + cut * _direction(heading + turn)
    return (*elements, *_line(position, corners[-1]))


def _line(begin: Points, end: Points) -> list[_Element]:
    """A line from ``begin`` to ``end``, or nothing where they coincide."""
    x, y = end - begin
    length = math.hypot(x, y)
    return [_Element(float(begin[0]), float(begin[1]), math.atan2(y, x), length)] if length > 1e-6 else []


# --- Junctions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Arm:
    """The end of a street at a junction.

    Attributes:
        heading: Away from the junction, radians.
        contact: Which end of the street it is, ``start`` or ``end``.
    """

    junction: int
    center: tuple[float, float]
    heading: float
    road: _Road
    contact: str

    @property
    def lanes(self) -> int:
        return self.road.right

    def lane_id(self, number: int, *, incoming: bool) -> int:
        """OpenDRIVE id of a lane that leads into or out of the junction, counted outwards from 1.

        Lanes with negative ids run along the reference line.
        """
        return -number if incoming == (self.contact == "end") else number

    def gate(self, number: int, *, incoming: bool) -> tuple[Points, float]:
        """The left border of a lane at the junction, as seen by its traffic, and that traffic's heading."""
        offset = LANE_WIDTH * (number - 1) * (1 if incoming else -1)
        point = np.array(self.center) + _ARM * _direction(self.heading) + offset * _left_of(self.heading)
        return point, self.heading + math.pi if incoming else self.heading

    def station(self, distance: float) -> float:
        """The street's ``s`` at a distance from the junction."""
        return distance if self.contact == "start" else self.road.length - distance

    @property
    def incoming_side(self) -> int:
        """The side of the reference line on which traffic comes in: 1 left, -1 right."""
        return -1 if self.contact == "end" else 1


@dataclass(frozen=True)
class _Connection:
    road: _Road
    source: _Arm


@dataclass
class _Junction:
    id: int
    name: str
    plan: _JunctionPlan
    arms: list[_Arm] = field(default_factory=list)
    connections: list[_Connection] = field(default_factory=list)

    def arm_at(self, heading: float) -> _Arm | None:
        """The arm that leaves in a direction."""
        return next((arm for arm in self.arms if abs(_wrapped(arm.heading - heading)) < 1e-6), None)


def _wrapped(angle: float) -> float:
    return math.remainder(angle, 2 * math.pi)


@dataclass(frozen=True)
class _Movement:
    """A way through a junction, from lane to lane, and whether a sidewalk goes along on the right."""

    source: _Arm
    source_lane: int
    target: _Arm
    target_lane: int
    has_sidewalk: bool


def _movements(junction: _Junction) -> Iterator[_Movement]:
    """Every allowed way through a junction."""
    for source in junction.arms:
        ahead, right, left = (junction.arm_at(source.heading + math.pi * turn) for turn in (1.0, 0.5, -0.5))
        if ahead is not None:
            count = min(source.lanes, ahead.lanes)
            for number in range(1, count + 1):
                yield _Movement(source, number, ahead, number, right is None and number == count)
        if right is not None:
            yield _Movement(source, source.lanes, right, right.lanes, True)
        if left is not None:
            yield _Movement(source, 1, left, 1, False)


def _connecting_road(road_id: int, movement: _Movement) -> _Road:
    """A road of one lane through a junction, its reference line being the lane's left border."""
    source, source_lane, target, target_lane = (
        movement.source,
        movement.source_lane,
        movement.target,
        movement.target_lane,
    )
    begin, heading = source.gate(source_lane, incoming=True)
    end, end_heading = target.gate(target_lane, incoming=False)
    turn = _wrapped(end_heading - heading)
    if abs(turn) < 1e-6:
        elements = _rounded((begin, end), 0.0)
    else:
        forward = _direction(heading)
        corner = begin + ((end - begin) @ forward) * forward  # streets meet at right angles
        cut = min(np.linalg.norm(corner - begin), np.linalg.norm(end - corner))
        elements = _rounded((begin, corner, end), float(cut) / math.tan(0.5 * abs(turn)))
    before = {-1: source.lane_id(source_lane, incoming=True)}
    after = {-1: target.lane_id(target_lane, incoming=False)}
    if movement.has_sidewalk:
        before[-2] = source.lane_id(source.lanes + 1, incoming=True)
        after[-2] = target.lane_id(target.lanes + 1, incoming=False)
    return _Road(
        road_id,
        elements,
        left=0,
        right=1,
        sidewalks=(False, movement.has_sidewalk),
        junction=source.junction,
        predecessor=_Link("road", source.road.id, source.contact),
        successor=_Link("road", target.road.id, target.contact),
        lane_links=(before, after),
    )


@dataclass
class _Network:
    """Streets and junctions of a town, in OpenDRIVE's frame."""

    name: str
    speed_limit: float
    streets: list[_Road]
    junctions: list[_Junction]
    arms_with_lights: list[tuple[_Arm, _Signal, int]] = field(default_factory=list)
    """Arm, its signal, and group."""

    @property
    def connecting_roads(self) -> list[_Road]:
        return [connection.road for junction in self.junctions for connection in junction.connections]

    @property
    def roads(self) -> list[_Road]:
        return self.streets + self.connecting_roads


def _build(name: str, plan: _TownPlan) -> _Network:
    junctions = {key: _Junction(1000 + index, key, value) for index, (key, value) in enumerate(plan.junctions.items())}
    streets = []
    for index, street in enumerate(plan.streets):
        ends = []
        for key, side in (street.start, street.end):
            at = junctions[key].plan
            ends.append(np.array((at.x, at.y)) + _ARM * _direction(_COMPASS[side]))
        corners = (ends[0], *(np.array(point, np.float64) for point in street.via), ends[1])
        road = _Road(
            index + 1,
            _rounded(corners, street.radius),
            left=street.lanes,
            right=street.lanes,
            center=street.center,
            predecessor=_Link("junction", junctions[street.start[0]].id),
            successor=_Link("junction", junctions[street.end[0]].id),
        )
        streets.append(road)
        for contact, (key, side) in (("start", street.start), ("end", street.end)):
            junction = junctions[key]
            center = (junction.plan.x, junction.plan.y)
            junction.arms.append(_Arm(junction.id, center, _COMPASS[side], road, contact))
    network = _Network(name, plan.speed_limit, streets, list(junctions.values()))
    _connect(network)
    _add_signals(network)
    return network


def _connect(network: _Network) -> None:
    """Add the connecting roads."""
    road_id = 100
    for junction in network.junctions:
        junction.arms.sort(key=lambda arm: arm.heading)
        for movement in _movements(junction):
            junction.connections.append(_Connection(_connecting_road(road_id, movement), movement.source))
            road_id += 1


def _add_signals(network: _Network) -> None:
    """Add traffic lights to the arms of junctions that have them, and speed limits to every street."""
    arms = [(junction, arm) for junction in network.junctions for arm in junction.arms]
    for signal_id, (junction, arm) in enumerate(arms, 2000):
        if junction.plan.has_lights:
            light = _signal(
                arm,
                distance=_LIGHT_S,
                side=arm.incoming_side,
                id=signal_id,
                kind="1000001",
                name=f"light_{junction.name}",
            )
            arm.road.signals.append(light)
            is_crossing = len(junction.arms) > 3
            group = int(abs(math.sin(arm.heading)) > 0.5) if is_crossing else junction.arms.index(arm)
            network.arms_with_lights.append((arm, light, group))
    for signal_id, (_, arm) in enumerate(arms, 3000):
        limit = _signal(
            arm,
            distance=_LIMIT_S,
            side=-arm.incoming_side,
            id=signal_id,
            kind="274",
            name="speed_limit",
            value=network.speed_limit,
        )
        arm.road.signals.append(limit)


def _signal(arm: _Arm, *, distance: float, side: int, **attributes: Any) -> _Signal:
    """A signal beside the lanes on a side of an arm's street, for the traffic there."""
    return _Signal(
        s=arm.station(distance),
        t=arm.road.edge(side) + side * _SIGNAL_MARGIN,
        orientation="+" if side < 0 else "-",
        lanes=(-arm.lanes, -1) if side < 0 else (1, arm.lanes),
        **attributes,
    )


# --- OpenDRIVE --------------------------------------------------------------------------------------------------------


def _node(parent: ElementTree.Element, tag: str, **attributes: object) -> ElementTree.Element:
    """Append an element; floats are written so that they read back to the nanometre."""
    texts = {
        key.rstrip("_"): f"{value:.10f}" if isinstance(value, float) else str(value)
        for key, value in attributes.items()
    }
    return ElementTree.SubElement(parent, tag, texts)


def _opendrive(network: _Network) -> str:
    root = ElementTree.Element("OpenDRIVE")
    points = np.concatenate([road.at(road.stations())[0] for road in network.roads])
    (west, south), (east, north) = (points.min(axis=0) - 20).tolist(), (points.max(axis=0) + 20).tolist()
    header = _node(
        root, "header", revMajor=1, revMinor=4, name=network.name, version="1.00", north=north, south=south, east=east,
        west=west,
    )  # fmt: skip
    _node(header, "geoReference").text = "+proj=tmerc +lat_0=0 +lon_0=0 +k=1 +x_0=0 +y_0=0 +datum=WGS84 +units=m"
    for road in network.roads:
        _write_road(root, road, network.speed_limit)
    groups: dict[tuple[int, int], list[int]] = {}
    for arm, signal, group in network.arms_with_lights:
        groups.setdefault((arm.junction, group), []).append(signal.id)
    controllers = {key: 4000 + index for index, key in enumerate(groups)}
    for (junction_id, group), signals in groups.items():
        controller_id = controllers[junction_id, group]
        controller = _node(root, "controller", name=f"group_{controller_id}", id=controller_id, sequence=group)
        for signal_id in signals:
            _node(controller, "control", signalId=signal_id, type="0")
    for junction in network.junctions:
        node = _write_junction(root, junction)
        for (junction_id, group), controller_id in controllers.items():
            if junction_id == junction.id:
                _node(node, "controller", id=controller_id, type="0", sequence=group)
    ElementTree.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _write_road(root: ElementTree.Element, road: _Road, speed_limit: float) -> None:
    node = _node(root, "road", name=f"road_{road.id}", length=road.length, id=road.id, junction=road.junction)
    link = _node(node, "link")
    for tag, target in (("predecessor", road.predecessor), ("successor", road.successor)):
        if target is not None:
            contact = {"contactPoint": target.contact} if target.contact else {}
            _node(link, tag, elementType=target.kind, elementId=target.id, **contact)
    _node(_node(node, "type", s=0.0, type="town"), "speed", max=speed_limit, unit="km/h")
    view = _node(node, "planView")
    for element, start in zip(road.elements, road.starts.tolist(), strict=False):
        geometry = _node(
            view, "geometry", s=start, x=element.x, y=element.y, hdg=_wrapped(element.heading), length=element.length
        )
        if element.curvature:
            _node(geometry, "arc", curvature=element.curvature)
        else:
            _node(geometry, "line")
    _node(_node(node, "elevationProfile"), "elevation", s=0.0, a=0.0, b=0.0, c=0.0, d=0.0)
    _node(node, "lateralProfile")
    _write_lanes(node, road)
    if road.signals:
        signals = _node(node, "signals")
        for signal in road.signals:
            _write_signal(signals, signal)


def _write_lanes(node: ElementTree.Element, road: _Road) -> None:
    lanes = _node(node, "lanes")
    _node(lanes, "laneOffset", s=0.0, a=0.0, b=0.0, c=0.0, d=0.0)
    section = _node(lanes, "laneSection", s=0.0)
    sides = (("left", 1, road.left, road.sidewalks[0]), ("right", -1, road.right, road.sidewalks[1]))
    for tag, sign, count, has_sidewalk in sides:
        if tag == "right":
            center = _node(_node(section, "center"), "lane", id=0, type="none", level="false")
            _write_road_mark(center, road.center, "yellow", "none")
        if count + has_sidewalk == 0:
            continue
        side = _node(section, tag)
        numbers = range(1, count + has_sidewalk + 1)
        for number in reversed(numbers) if sign > 0 else numbers:
            lane_id = sign * number
            is_sidewalk = number > count
            lane = _node(side, "lane", id=lane_id, type="sidewalk" if is_sidewalk else "driving", level="false")
            link = _node(lane, "link")
            for link_tag, links in zip(("predecessor", "successor"), road.lane_links, strict=True):
                if lane_id in links:
                    _node(link, link_tag, id=links[lane_id])
            _node(lane, "width", sOffset=0.0, a=SIDEWALK_WIDTH if is_sidewalk else LANE_WIDTH, b=0.0, c=0.0, d=0.0)
            if is_sidewalk or road.junction != -1:
                _write_road_mark(lane, "none", "white", "none")
            elif number == count:
                _write_road_mark(lane, "solid", "white", "none")
            else:
                _write_road_mark(lane, "broken", "white", "both")


def _write_road_mark(lane: ElementTree.Element, kind: str, color: str, change: str) -> None:
    width = 0.0 if kind == "none" else _LINE_WIDTH
    _node(
        lane, "roadMark", sOffset=0.0, type=kind, weight="standard", color=color, material="standard", width=width,
        laneChange=change,
    )  # fmt: skip


def _write_signal(signals: ElementTree.Element, signal: _Signal) -> None:
    is_light = signal.kind == "1000001"
    facing = math.pi if signal.orientation == "+" else 0.0  # CARLA's client turns no signal by its orientation
    node = _node(
        signals, "signal", name=signal.name, id=signal.id, s=signal.s, t=signal.t, zOffset=0.0, hOffset=facing,
        roll=0.0, pitch=0.0, orientation=signal.orientation, dynamic="yes" if is_light else "no", country="OpenDRIVE",
        type=signal.kind, subtype="-1" if is_light else f"{signal.value:.0f}", value=signal.value, text="",
        unit="" if is_light else "km/h", height=1.0, width=0.4,
    )  # fmt: skip
    _node(node, "validity", fromLane=signal.lanes[0], toLane=signal.lanes[1])


def _write_junction(root: ElementTree.Element, junction: _Junction) -> ElementTree.Element:
    node = _node(root, "junction", id=junction.id, name=junction.name)
    for index, connection in enumerate(junction.connections):
        road = connection.road
        child = _node(
            node,
            "connection",
            id=index,
            incomingRoad=connection.source.road.id,
            connectingRoad=road.id,
            contactPoint="start",
        )
        for to_lane, from_lane in road.lane_links[0].items():
            _node(child, "laneLink", from_=from_lane, to=to_lane)
    return node


# --- What is seen -----------------------------------------------------------------------------------------------------


def _to_carla(points: Points) -> Points:
    """Points ``(..., 2)`` of OpenDRIVE's frame in CARLA's, and the other way round."""
    return points * (1.0, -1.0)


def _carla_pose(point: Points, heading: float, z: float = 0.0) -> Pose:
    return Pose(float(point[0]), -float(point[1]), z, yaw=-math.degrees(_wrapped(heading)))


def _strip(road: _Road, first: float, second: float) -> list[Points]:
    """Quadrilaterals ``(4, 2)`` between two lines along a road, given by their ``t``."""
    stations = road.stations()
    near, far = (_to_carla(road.at(stations, t)[0]) for t in (first, second))
    return list(np.stack((near[:-1], near[1:], far[1:], far[:-1]), axis=1))


def _junction_surface(junction: _Junction) -> list[Points]:
    """Triangles ``(3, 2)`` from the centre of a junction to its kerbs, which are those of its outermost connections."""
    center = _to_carla(np.array((junction.plan.x, junction.plan.y)))
    kerbs = [c.road for c in junction.connections if c.road.sidewalks[1]]  # in the order of the arms
    outline = np.concatenate([_to_carla(road.at(road.stations(), -LANE_WIDTH)[0]) for road in kerbs])
    following = np.roll(outline, -1, axis=0)
    edges = np.stack((outline, following), axis=1)
    return [np.stack((center, *edge)) for edge in edges if np.ptp(edge, axis=0).max() > 1e-6]


def _road_polygons(network: _Network) -> tuple[Points, ...]:
    streets = [quad for road in network.streets for quad in _strip(road, road.edge(-1), road.edge(1))]
    return (*streets, *(triangle for junction in network.junctions for triangle in _junction_surface(junction)))


def _sidewalk_polygons(network: _Network) -> tuple[Points, ...]:
    return tuple(
        quad
        for road in network.roads
        for side, present in zip((1, -1), road.sidewalks, strict=True)
        if present
        for quad in _strip(road, road.edge(side), road.edge(side) + side * SIDEWALK_WIDTH)
    )


def _markings(network: _Network) -> tuple[Marking, ...]:
    markings = []
    for road in network.streets:
        stations = road.stations()

        def paint(
            t: float, color: tuple[int, int, int], dashed: bool, road: _Road = road, stations: Points = stations
        ) -> Marking:
            return Marking(_to_carla(road.at(stations, t)[0]), _LINE_WIDTH, color, dashed)

        if road.center == "solid solid":
            markings += [paint(-_DOUBLE_LINE, YELLOW, False), paint(_DOUBLE_LINE, YELLOW, False)]
        else:
            markings.append(paint(0.0, YELLOW, road.center == "broken"))
        for side, count in ((1, road.left), (-1, road.right)):
            markings += [paint(side * LANE_WIDTH * number, WHITE, True) for number in range(1, count)]
            markings.append(paint(road.edge(side) - side * _LINE_WIDTH / 2, WHITE, False))
    return (*markings, *(_stop_line(arm) for junction in network.junctions for arm in junction.arms))


def _stop_line(arm: _Arm) -> Marking:
    s = [arm.station(_STOP_LINE)]
    kerb = arm.road.edge(arm.incoming_side)
    ends = [arm.road.at(s, t)[0] for t in (0.05 * kerb, 0.95 * kerb)]
    return Marking(_to_carla(np.concatenate(ends)), _STOP_LINE_WIDTH, WHITE, dashed=False)


def _light(arm: _Arm, signal: _Signal, group: int) -> TrafficLight:
    road, side = arm.road, arm.incoming_side
    kerb = road.edge(side)
    (foot,), (along,) = road.at([signal.s], signal.t)
    heading = along if side < 0 else along + math.pi
    (center,), _ = road.at([arm.station(_STOP_LINE + _TRIGGER_LENGTH / 2)], kerb / 2)
    return TrafficLight(
        opendrive_id=str(signal.id),
        pose=_carla_pose(foot, heading + math.pi),
        group=group,
        junction=arm.junction,
        trigger=_carla_pose(center, heading, 1.0),
        trigger_extent=(_TRIGGER_LENGTH / 2, abs(kerb) / 2 - 0.25, 1.0),
    )


def _spawn_points(network: _Network) -> tuple[Pose, ...]:
    """Poses on all lanes of all streets; neighbouring lanes have theirs at different distances along the street."""
    poses = []
    for road in network.streets:
        lanes = [number for number in range(-road.right, road.left + 1) if number]
        for order, number in enumerate(lanes):
            first = _SPAWN_MARGIN + order * _SPAWN_STAGGER
            stations = np.arange(first, road.length - _SPAWN_MARGIN, max(2, len(lanes)) * _SPAWN_STAGGER)
            points, headings = road.at(stations, (number - math.copysign(0.5, number)) * LANE_WIDTH)
            if number > 0:
                headings = headings + math.pi
            poses += [_carla_pose(p, h, _SPAWN_HEIGHT) for p, h in zip(points, headings.tolist(), strict=True)]
    return tuple(poses)


def _buildings(network: _Network) -> tuple[Building, ...]:
    """Houses along the streets, where there is room for them."""
    rng = np.random.default_rng(zlib.crc32(network.name.encode()))
    # A building keeps clear of discs along all roads that hold the lanes and the sidewalks.
    discs = [
        (road.at(np.linspace(0, road.length, math.ceil(road.length)))[0], -road.edge(-1) + SIDEWALK_WIDTH + 1.5)
        for road in network.roads
    ]
    buildings: list[Building] = []
    for road in network.streets:
        for side in (1, -1):
            s = 0.0
            while s < road.length:
                half_x, half_y = rng.uniform(4.0, 7.5, 2).tolist()
                gap, height = rng.uniform(3.0, 7.0), rng.uniform(4.0, 16.0)
                color = _HOUSE_COLORS[rng.integers(len(_HOUSE_COLORS))]
                t = road.edge(side) + side * (SIDEWALK_WIDTH + gap + half_y)
                ((x, y),), (heading,) = road.at([min(s + half_x, road.length)], t)
                reach = math.hypot(half_x, half_y)
                clear = all(np.hypot(*(points - (x, y)).T).min() > width + reach for points, width in discs)
                apart = all(
                    math.hypot(b.x - x, -b.y - y) > reach + math.hypot(b.half_x, b.half_y) + 1.0 for b in buildings
                )
                if clear and apart:
                    yaw = -math.degrees(_wrapped(heading))
                    buildings.append(Building(float(x), -float(y), half_x, half_y, height, yaw, color))
                s += 2 * half_x + rng.uniform(2.0, 10.0)
    return tuple(buildings)


def _surface(network: _Network, lights: Sequence[TrafficLight]) -> RoadSurface:
    """The lanes of all roads, flat; a vehicle in a light's trigger is at the light."""
    lanes = []
    for road in network.roads:
        stations = np.linspace(0, road.length, max(2, math.ceil(road.length / _SURFACE_STEP)))
        for number in [number for number in range(-road.right, road.left + 1) if number]:
            points, headings = road.at(stations, (number - math.copysign(0.5, number)) * LANE_WIDTH)
            lanes.append(np.column_stack((_to_carla(points), -np.degrees(headings + math.pi * (number > 0)))))
    samples = np.concatenate(lanes)
    at = np.full(len(samples), NOWHERE, np.int64)
    for index, (x, y, yaw) in enumerate(samples.tolist()):
        for number, light in enumerate(lights):
            turned = wrap_degrees(yaw - light.trigger.yaw)
            if abs(turned) < 60.0 and contains(light.trigger, light.trigger_extent, x, y):
                at[index] = number
    flat = np.zeros(len(samples))
    points = np.column_stack((samples[:, :2], flat))
    return RoadSurface(points, samples[:, 2], flat, np.full(len(samples), network.speed_limit), at)


@cache
def make_town(name: str) -> Town:
    """The town of that name; always the same object.

    Raises:
        ValueError: ``name`` is not one of ``TOWN_NAMES``.
    """
    if name not in _PLANS:
        raise ValueError(f"there is no town {name!r}: take one of {', '.join(TOWN_NAMES)}")
    network = _build(name, _PLANS[name])
    lights = tuple(_light(*entry) for entry in network.arms_with_lights)
    return Town(
        name=name,
        opendrive=_opendrive(network),
        spawn_points=_spawn_points(network),
        road_polygons=_road_polygons(network),
        sidewalk_polygons=_sidewalk_polygons(network),
        buildings=_buildings(network),
        markings=_markings(network),
        lights=lights,
        speed_limit=network.speed_limit,
        surface=_surface(network, lights),
    )
