"""Routes: planned on the lanes of a map, and followed.

Lengths are metres, angles degrees, in CARLA's frame: left-handed (x forward, y right), yaw clockwise seen from above.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import groupby, pairwise, takewhile
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from wm_gym.envs.angles import wrap_degrees
from wm_gym.errors import SimulatorError

if TYPE_CHECKING:
    import carla

FloatArray = NDArray[np.float64]

_STATION_SPACING = 30.0
"""About how far apart the places are, along a lane, at which a change of lanes begins and ends."""
_LANE_CHANGES = ((1, 60.0), (3, 20.0))
"""Lengths of lane changes, in stations, and how many metres of detour each is worth avoiding: long ones are better."""
_SHORTEST_LANE_CHANGE = 15.0
_SAMPLE_SPACING = 1.0
"""Longest distance between the waypoints that are read from the map."""
_SEARCH_SPACING = 5.0
"""Distance between the waypoints among which lanes are looked for that the map's topology leaves out."""
_STRAIGHT = 30.0
"""Degrees: a way through a junction that turns by less goes straight on."""
_FARTHEST_M = 30.0
"""A place of a given route lies at most so far from a lane."""
_BESIDE_M = 4.5
_SAME_LEVEL_M = 3.0
_SAME_WAY = 45.0
_CROSSING_M = 2.0
_MOST_STANDS = 6
"""A place also stands for lanes so much farther away and no higher or lower, which lead the same way to within so many
degrees, or cross there in a junction."""
_OFFSET_COST = 10.0
"""Metres of way that each metre to another lane is worth."""
_QUICK_CHANGE_M, _QUICKEST_CHANGE_M = 20.0, 8.0
_QUICK_CHANGE_COST, _FORBIDDEN_CHANGE_COST = 40.0, 120.0
"""A change of lanes between places of a given route takes so many metres, or less where there are no more, and is worth
avoiding so many, the latter against the markings."""
_DETOUR, _DETOUR_M = 2.0, 200.0
"""Ways from a place to the next one are looked for up to so many times the distance and metres, then everywhere."""
_NUM_DRAWS = 3
"""Destinations that are drawn for a random route before one is made of random turns."""


class Command(IntEnum):
    """What a route does at a point; the numbers are those of ``RoadOption`` in CARLA's own agents."""

    LEFT = 1
    RIGHT = 2
    STRAIGHT = 3
    LANE_FOLLOW = 4
    CHANGE_LANE_LEFT = 5
    CHANGE_LANE_RIGHT = 6


_SIDES = (Command.CHANGE_LANE_LEFT, Command.CHANGE_LANE_RIGHT)


@dataclass(frozen=True)
class Route:
    """The centre line of the lanes to drive, as ``N >= 2`` evenly spaced points.

    Attributes:
        points: ``(N, 2)`` metres.
        headings: ``(N,)`` degrees in [-180, 180), the direction of the line.
        distances: ``(N,)`` metres along the line, 0 at the first point.
        lane_widths: ``(N,)`` metres.
        in_junction: ``(N,)`` bool.
        commands: ``(N,)`` int64, values of :class:`Command`. A turn lasts as long as the junction, a change of lanes as
            long as the way across.
        heights: ``(N,)`` metres, or ``None`` where they are not known.
    """

    points: FloatArray
    headings: FloatArray
    distances: FloatArray
    lane_widths: FloatArray
    in_junction: NDArray[np.bool_]
    commands: NDArray[np.int64]
    heights: FloatArray | None = None

    @property
    def length(self) -> float:
        """Metres from the first point to the last."""
        return float(self.distances[-1])

    def point_at(self, distance: float) -> FloatArray:
        """The point ``(2,)`` at a distance along the route; before the start and beyond the end, the nearer end."""
        return self.points_at(np.array((distance,)))[0]

    def points_at(self, distances: FloatArray) -> FloatArray:
        """The points ``(n, 2)`` at distances ``(n,)`` along the route, as :meth:`point_at`."""
        return np.stack([np.interp(distances, self.distances, self.points[:, axis]) for axis in (0, 1)], axis=1)

    def width_at(self, distance: float) -> float:
        """Metres of the route's lane at a distance along it."""
        return float(np.interp(distance, self.distances, self.lane_widths))

    def places_ahead(self, here: tuple[float, float, float], spacing: float) -> FloatArray:
        """Places ``(n, 3)`` on the rest of the route, about ``spacing`` metres apart, from one ahead of ``here`` on.

        ``here`` (metres) is looked for in three dimensions, as a route may cross itself on a bridge. Where the route
        has no heights, all have that of ``here``.
        """
        heights = np.full(len(self.points), here[2]) if self.heights is None else self.heights
        places = np.column_stack((self.points, heights))
        nearest = int(np.argmin(np.linalg.norm(places - here, axis=1)))
        step = max(1, round(spacing / (self.length / (len(places) - 1))))
        return places[nearest + step :: step]

    def cut(self, length: float) -> Route:
        """The first ``length`` metres, or the whole route where it is no longer than that.

        Raises:
            ValueError: ``length`` is not positive.
        """
        if length <= 0:
            raise ValueError(f"a route cannot be cut to {length} m")
        if length >= self.length:
            return self
        kept = int(np.searchsorted(self.distances, length, side="left"))
        headings = np.unwrap(self.headings[: kept + 1], period=360)

        def ending(values: FloatArray) -> FloatArray:
            last = np.interp(length, self.distances[kept - 1 : kept + 1], values[kept - 1 : kept + 1])
            return np.append(values[:kept], last)

        return Route(
            points=np.stack((ending(self.points[:, 0]), ending(self.points[:, 1])), axis=1),
            headings=wrap_degrees(ending(headings)),
            distances=ending(self.distances),
            lane_widths=ending(self.lane_widths),
            in_junction=self.in_junction[: kept + 1],
            commands=self.commands[: kept + 1],
            heights=None if self.heights is None else ending(self.heights),
        )


# --- Planning ---------------------------------------------------------------------------------------------------------

LaneKey = tuple[int, int, int]
"""Ids of a road, of its lane section and of the lane: one lane between two places where lanes join, part or change."""
Node = tuple[LaneKey, int]
"""A lane and the number of one of its stations: 0 is where the lane starts, the highest one where it ends."""


@dataclass(frozen=True, eq=False)
class _Lane:
    """One lane section as a polyline of ``n`` samples.

    Attributes:
        key: Its ids.
        points: ``(n, 2)`` metres.
        heights: ``(n,)`` metres.
        fractions: ``(n,)`` from 0 to 1, in the direction of travel and in proportion to the road's own coordinate, so
            that equal fractions of lanes that lie side by side are side by side.
        lengths: ``(n,)`` metres along the polyline.
        widths: ``(n,)`` metres.
        may_change: ``(n, 2)`` bool: whether the markings permit a change to the left and to the right.
        neighbours: The lanes to the left and to the right in the same direction.
        turn: Degrees by which the heading changes from start to end, positive to the right.
        junction: Id of the junction that the lane leads through, or -1.
        num_stations: Pieces into which the stations divide the lane.
        first_s: The road's coordinate where the lane starts.
        extent_s: Length of the lane in that coordinate.
    """

    key: LaneKey
    points: FloatArray
    heights: FloatArray
    fractions: FloatArray
    lengths: FloatArray
    widths: FloatArray
    may_change: NDArray[np.bool_]
    neighbours: tuple[LaneKey | None, LaneKey | None]
    turn: float
    junction: int
    num_stations: int
    first_s: float
    extent_s: float

    def fraction_of(self, waypoint: carla.Waypoint) -> float:
        """Where a waypoint on this lane lies."""
        return min(1.0, abs(waypoint.s - self.first_s) / self.extent_s)

    def length_between(self, begin: float, end: float) -> float:
        """Metres between two fractions."""
        return float(np.diff(np.interp((begin, end), self.fractions, self.lengths))[0])


@dataclass(frozen=True)
class _Piece:
    """A part of a way: along ``lane`` from one fraction to another, moving over to ``target`` if there is one."""

    lane: _Lane
    begin: float
    end: float
    target: _Lane | None = None
    command: Command = Command.LANE_FOLLOW
    cost: float = 0.0

    @property
    def length(self) -> float:
        """Metres along the lane, and those that the piece is worth avoiding."""
        return self.lane.length_between(self.begin, self.end) + self.cost


@dataclass(frozen=True)
class _Stand:
    """A point of a lane that a place stands for, and how many metres it is worth avoiding that it does."""

    lane: _Lane
    fraction: float
    cost: float


class RoutePlanner:
    """Plans routes over the lanes of a map, which it reads once.

    The graph's nodes are stations about 30 m apart on every lane. Its edges follow a lane from one station to the next,
    go on to the lanes that succeed it, and change over to a neighbouring lane of the same direction where the markings
    permit that all the way.

    Args:
        carla_map: The map.
        spacing: Metres between the points of the routes.

    Raises:
        SimulatorError: The map has no driving lanes.
    """

    def __init__(self, carla_map: carla.Map, spacing: float) -> None:
        self._map = carla_map
        self._spacing = spacing
        self._lanes, links = _read_lanes(carla_map, min(spacing, _SAMPLE_SPACING))
        if not self._lanes:
            raise SimulatorError(f"the map {carla_map.name!r} has no driving lanes, so no route can be planned on it.")
        self.graph = nx.DiGraph()
        for lane in self._lanes.values():
            self._add_lane(lane)
        for before, after in links:
            self.graph.add_edge((before, self._lanes[before].num_stations), (after, 0), length=0.0, piece=None)
        for lane in self._lanes.values():
            self._join_opening_lane(lane)
        self._lasting = _endless_nodes(self.graph)

    def plan(self, start: carla.Location, end: carla.Location) -> Route:
        """The shortest way between the points of driving lanes that are nearest to two locations.

        Raises:
            SimulatorError: No way leads from one to the other.
        """
        try:
            pieces = self._way(self._locate(start), self._locate(end))
        except nx.NetworkXNoPath:
            raise SimulatorError(
                f"no way leads {self._from_to(start, end)}; give an end that can be reached from the start."
            ) from None
        return self._route_of(pieces, start, end)

    def plan_through(self, places: Sequence[carla.Location]) -> Route:
        """The shortest way along several places, in their order, as those of a benchmark's route file.

        Such a file is made for a planner that changes lanes from one metre to the next, and where lanes cross in a
        junction, a place says little of which of them is meant. So a place also stands, at a cost, for the lanes beside
        it and for others that lead over it, and a lane may be changed between two places, wherever the markings permit
        it for some metres.

        Args:
            places: Two or more.

        Raises:
            SimulatorError: A place is far from every lane, or no way leads from one place to the next.
        """
        stands = [self._stands(place) for place in places]
        costs = [stand.cost for stand in stands[0]]
        ways: list[list[_Piece]] = [[] for _ in stands[0]]
        for number in range(len(places) - 1):
            here, there = stands[number : number + 2]
            reach = _DETOUR * places[number].distance(places[number + 1]) + _DETOUR_M
            legs = self._legs(here, there, reach) or self._legs(here, there, None)
            best = {
                end: min((costs[start] + length, start) for (start, other), (length, _) in legs.items() if other == end)
                for end in {end for _, end in legs}
            }
            if not best:
                raise SimulatorError(
                    f"no way leads {self._from_to(places[number], places[number + 1])}; give places that can be "
                    "reached from each other."
                )
            chosen_ends = sorted(best)
            ways = [[*ways[best[end][1]], *legs[best[end][1], end][1]] for end in chosen_ends]
            costs = [best[end][0] + there[end].cost for end in chosen_ends]
            stands[number + 1] = [there[end] for end in chosen_ends]
        return self._route_of(ways[int(np.argmin(costs))], places[0], places[-1])

    def draw(self, start: carla.Location, rng: np.random.Generator, min_length: float, max_length: float) -> Route:
        """A random route.

        It is the shortest way to a random destination, cut at ``max_length``. Where none of a few destinations is as
        far away as ``min_length``, the route is one of random turns instead, which may use a road more than once, and
        its length is drawn from between the two.

        Args:
            start: The route begins at the nearest point of a driving lane.
            rng: Equal generators give equal routes.
            min_length: Metres.
            max_length: Metres.

        Raises:
            SimulatorError: Every way from here ends before ``min_length``.
        """
        lane, begin = self._locate(start)
        source, first = self._next_station(lane, begin)
        before, lengths = nx.dijkstra_predecessor_and_distance(self.graph, source, weight="length")
        destinations = sorted(lengths)
        for _ in range(_NUM_DRAWS):
            path = [destinations[rng.integers(len(destinations))]]
            while path[-1] != source:
                path.append(before[path[-1]][0])
            route = self._route([*first, *self._pieces(path[::-1])])
            if route is not None and route.length >= min_length:
                return route.cut(max_length)
        target = rng.uniform(min_length, max_length)
        # The points of a route are joined by chords, which are a little shorter than the lanes.
        route = self._route([*first, *self._pieces(self._wander(source, 1.01 * target + self._spacing, rng))])
        if route is None or route.length < min_length:
            raise SimulatorError(
                f"every way from {_describe(start)} on the map {self._map.name!r} ends before {min_length:g} m; "
                "lower route.min_length or start elsewhere."
            )
        return route.cut(target)

    def _add_lane(self, lane: _Lane) -> None:
        stations = np.linspace(0, 1, lane.num_stations + 1)
        for index, (begin, end) in enumerate(pairwise(stations)):
            piece = _Piece(lane, begin, end)
            length = lane.length_between(begin, end)
            self.graph.add_edge((lane.key, index), (lane.key, index + 1), length=length, piece=piece)
        if lane.junction >= 0:
            return  # Markings permit much in junctions, but changing lanes there is no good driving.
        for side, command in enumerate((Command.CHANGE_LANE_LEFT, Command.CHANGE_LANE_RIGHT)):
            key = lane.neighbours[side]
            if key is None or key not in self._lanes or self._lanes[key].num_stations != lane.num_stations:
                continue
            for span, detour in _LANE_CHANGES:
                for index in range(lane.num_stations + 1 - span):
                    begin, end = stations[index], stations[index + span]
                    inside = (lane.fractions >= begin) & (lane.fractions <= end)
                    length = lane.length_between(begin, end)
                    if length < _SHORTEST_LANE_CHANGE or not lane.may_change[inside, side].all():
                        continue
                    piece = _Piece(lane, begin, end, self._lanes[key], command)
                    self.graph.add_edge((lane.key, index), (key, index + span), length=length + detour, piece=piece)

    def _join_opening_lane(self, lane: _Lane) -> None:
        """A lane that opens from no width is entered from the one beside it, whatever the markings say there."""
        stations = np.linspace(0, 1, lane.num_stations + 1)
        long_enough = (
            index
            for index in range(1, lane.num_stations)
            if lane.length_between(0, stations[index]) > _SHORTEST_LANE_CHANGE
        )
        index = next(long_enough, lane.num_stations)
        entry = self._way_into_opening(lane, float(stations[index]))
        if entry is not None:
            source, (piece,) = entry
            length = lane.length_between(0, stations[index])
            self.graph.add_edge(source, (lane.key, index), length=length, piece=piece)

    def _way_into_opening(self, lane: _Lane, fraction: float) -> tuple[Node, list[_Piece]] | None:
        """The station beside the beginning of a lane that nothing leads to, and the way from there onto the lane."""
        beside = self._beside(lane, at_start=True)
        if beside is None or fraction <= 0 or self.graph.in_degree((lane.key, 0)):
            return None
        neighbour, command = beside
        back = {
            Command.CHANGE_LANE_LEFT: Command.CHANGE_LANE_RIGHT,
            Command.CHANGE_LANE_RIGHT: Command.CHANGE_LANE_LEFT,
        }
        return (neighbour.key, 0), [_Piece(neighbour, 0.0, fraction, lane, back[command])]

    def _beside(self, lane: _Lane, *, at_start: bool) -> tuple[_Lane, Command] | None:
        """A lane beside another one that goes on beyond its start or its end, and the change of lanes to it."""
        if lane.junction >= 0:
            return None
        for key, command in zip(lane.neighbours, (Command.CHANGE_LANE_LEFT, Command.CHANGE_LANE_RIGHT), strict=True):
            neighbour = self._lanes.get(key) if key is not None else None
            if neighbour is None:
                continue
            goes_on = (
                self.graph.in_degree((neighbour.key, 0))
                if at_start
                else self.graph.out_degree((neighbour.key, neighbour.num_stations))
            )
            if goes_on:
                return neighbour, command
        return None

    def _locate(self, location: carla.Location) -> tuple[_Lane, float]:
        """The lane nearest to a location, and the fraction of it."""
        waypoint = self._map.get_waypoint(location)
        lane = self._lanes.get(_key(waypoint)) if waypoint is not None else None
        if lane is None:
            raise SimulatorError(f"no driving lane of the map {self._map.name!r} is near {_describe(location)}.")
        return lane, lane.fraction_of(waypoint)

    def _next_station(self, lane: _Lane, fraction: float) -> tuple[Node, list[_Piece]]:
        """The first station at or after a fraction of a lane, and the way to it."""
        index = math.ceil(fraction * lane.num_stations)
        if index == lane.num_stations and not self.graph.out_degree((lane.key, index)):
            beside = self._beside(lane, at_start=False)
            if beside is not None and fraction < 1:
                neighbour, command = beside
                return (neighbour.key, neighbour.num_stations), [_Piece(lane, fraction, 1.0, neighbour, command)]
        station = index / lane.num_stations
        return (lane.key, index), [_Piece(lane, fraction, station)] if station > fraction else []

    def _last_station(self, lane: _Lane, fraction: float) -> tuple[Node, list[_Piece]]:
        """The last station at or before a fraction of a lane, and the way from it."""
        index = math.floor(fraction * lane.num_stations)
        if index == 0 and not self.graph.in_degree((lane.key, 0)):
            return self._way_into_opening(lane, fraction) or ((lane.key, 0), [_Piece(lane, 0.0, fraction)])
        station = index / lane.num_stations
        return (lane.key, index), [_Piece(lane, station, fraction)] if station < fraction else []

    def _way(self, start: tuple[_Lane, float], end: tuple[_Lane, float]) -> list[_Piece]:
        """The shortest way between two points of lanes, each a lane and a fraction of it; raises networkx's error."""
        (from_lane, begin), (to_lane, finish) = start, end
        if from_lane is to_lane and finish >= begin:
            return [_Piece(from_lane, begin, finish)]
        source, first = self._next_station(from_lane, begin)
        target, last = self._last_station(to_lane, finish)
        _, path = nx.bidirectional_dijkstra(self.graph, source, target, weight="length")
        return [*first, *self._pieces(path), *last]

    def _stands(self, place: carla.Location) -> list[_Stand]:
        """The points of lanes that a place may stand for, the nearest one first."""
        waypoint = self._map.get_waypoint(place)
        lane, fraction = self._locate(place)
        nearest = waypoint.transform.location
        offset = math.dist((place.x, place.y), (nearest.x, nearest.y))
        if offset > _FARTHEST_M:
            raise SimulatorError(
                f"the place {_describe(place)} is {offset:.0f} m from the nearest lane of the map {self._map.name!r}; "
                "give places on its roads."
            )
        points, lanes = self._samples
        aside = np.hypot(points[:, 0] - place.x, points[:, 1] - place.y)
        near = np.flatnonzero((aside < offset + _BESIDE_M) & (np.abs(points[:, 2] - nearest.z) < _SAME_LEVEL_M))
        found = [_Stand(lane, fraction, 0.0)]
        for number in dict.fromkeys(lanes[near]):
            other = self._in_order[number]
            own = near[lanes[near] == number]
            closest = int(own[np.argmin(aside[own])])
            turned = abs(wrap_degrees(points[closest, 3] - waypoint.transform.rotation.yaw))
            crosses = other.junction >= 0 and aside[closest] < offset + _CROSSING_M
            if other is lane or not (turned < _SAME_WAY or crosses):
                continue
            at = other.fractions[closest - int(np.searchsorted(lanes, number))]
            found.append(_Stand(other, float(at), _OFFSET_COST * max(0.0, float(aside[closest]) - offset) + 1.0))
        return sorted(found, key=lambda stand: stand.cost)[:_MOST_STANDS]

    @cached_property
    def _in_order(self) -> list[_Lane]:
        return list(self._lanes.values())

    @cached_property
    def _samples(self) -> tuple[FloatArray, NDArray[np.int64]]:
        """x, y, height and heading in degrees of all lanes' samples ``(n, 4)``, and their lanes' numbers ``(n,)``."""
        columns = [np.column_stack((lane.points, lane.heights, _headings(lane.points))) for lane in self._in_order]
        return np.concatenate(columns), np.repeat(np.arange(len(columns)), [len(rows) for rows in columns])

    def _legs(
        self, here: Sequence[_Stand], there: Sequence[_Stand], reach: float | None
    ) -> dict[tuple[int, int], tuple[float, list[_Piece]]]:
        """Length and pieces of the ways from points to others, by their numbers, where one is within ``reach``."""
        legs: dict[tuple[int, int], tuple[float, list[_Piece]]] = {}
        arrivals = [(end, *arrival) for end, stand in enumerate(there) for arrival in self._changes(stand, before=True)]
        for start, stand in enumerate(here):
            for end, other in enumerate(there):
                crossing = self._crossing(stand, other)
                if crossing:
                    legs[start, end] = sum(piece.length for piece in crossing), crossing
            for from_lane, begin, departing in self._changes(stand, before=False):
                source, first = self._next_station(from_lane, begin)
                _, paths = nx.single_source_dijkstra(self.graph, source, cutoff=reach, weight="length")
                for end, to_lane, finish, arriving in arrivals:
                    if from_lane is to_lane and finish >= begin:
                        between = [_Piece(from_lane, begin, finish)] if finish > begin else []
                    else:
                        target, last = self._last_station(to_lane, finish)
                        if target not in paths:
                            continue
                        between = [*first, *self._pieces(paths[target]), *last]
                    pieces = [*departing, *between, *arriving]
                    length = sum(piece.length for piece in pieces)
                    if (start, end) not in legs or length < legs[start, end][0]:
                        legs[start, end] = length, pieces
        return legs

    def _changes(self, stand: _Stand, *, before: bool) -> Iterator[tuple[_Lane, float, list[_Piece]]]:
        """Where a way may leave a point, or come to it ``before``: there, or on a lane beside it, a change away."""
        lane, fraction = stand.lane, stand.fraction
        yield lane, fraction, []
        if lane.junction >= 0:
            return
        part = _QUICK_CHANGE_M / max(float(lane.lengths[-1]), 1e-6)
        begin, end = (max(0.0, fraction - part), fraction) if before else (fraction, min(1.0, fraction + part))
        if lane.length_between(begin, end) < _QUICKEST_CHANGE_M:
            return
        for side in range(2):
            beside = self._lanes.get(key) if (key := lane.neighbours[side]) is not None else None
            if beside is None:
                continue
            source, target = (beside, lane) if before else (lane, beside)
            changing = (1 - side) if before else side  # the change to the lane is the other way round
            inside = (source.fractions >= begin) & (source.fractions <= end)
            if not source.may_change[inside, changing].all():
                continue
            made = _Piece(source, begin, end, target, _SIDES[changing], _QUICK_CHANGE_COST)
            yield beside, begin if before else end, [made]

    def _crossing(self, start: _Stand, end: _Stand) -> list[_Piece]:
        """The way to a point of a lane beside, several lanes over too, in the same section of a road; or none."""
        lane, target = start.lane, end.lane
        if lane is target or lane.key[:2] != target.key[:2] or lane.junction >= 0 or end.fraction <= start.fraction:
            return []
        for side, command in enumerate(_SIDES):
            crossed = [lane]
            while crossed[-1] is not target:
                beside = crossed[-1].neighbours[side]
                if beside is None or beside not in self._lanes:
                    break
                crossed.append(self._lanes[beside])
            if crossed[-1] is not target:
                continue
            changes = len(crossed) - 1
            begin, last = _permitted(crossed[:-1], side, start.fraction, end.fraction)
            cost = _QUICK_CHANGE_COST
            if lane.length_between(begin, last) < _QUICKEST_CHANGE_M:
                # The places ask for it: to CARLA's own planner, a change permitted in a part is so in the whole.
                begin, last, cost = start.fraction, end.fraction, _FORBIDDEN_CHANGE_COST
            if lane.length_between(begin, last) < _QUICKEST_CHANGE_M:
                return []
            part = changes * _QUICK_CHANGE_M / float(lane.lengths[-1])
            finish = min(last, begin + part)
            return [
                *([_Piece(lane, start.fraction, begin)] if begin > start.fraction else []),
                _Piece(lane, begin, finish, target, command, changes * cost),
                *([_Piece(target, finish, end.fraction)] if end.fraction > finish else []),
            ]
        return []

    def _route_of(self, pieces: Sequence[_Piece], start: carla.Location, end: carla.Location) -> Route:
        route = self._route(pieces)
        if route is None:
            raise SimulatorError(
                f"the route {self._from_to(start, end)} has no length; give a start and an end that are apart."
            )
        return route

    def _from_to(self, start: carla.Location, end: carla.Location) -> str:
        return f"from {_describe(start)} to {_describe(end)} on the map {self._map.name!r}"

    def _pieces(self, path: Sequence[Node]) -> list[_Piece]:
        pieces = (self.graph.edges[edge]["piece"] for edge in pairwise(path))
        return [piece for piece in pieces if piece is not None]

    def _wander(self, node: Node, length: float, rng: np.random.Generator) -> list[Node]:
        """A path of random turns of at least ``length`` metres, or to the end of the road."""
        path, left = [node], length
        while left > 0:
            onward = sorted(self.graph.successors(path[-1]))
            lasting = [after for after in onward if after in self._lasting] or onward
            # Lanes are changed only where the lane does not go on.
            keeping = [after for after in lasting if not self._is_change(path[-1], after)] or lasting
            if not keeping:
                break
            path.append(keeping[rng.integers(len(keeping))])
            left -= self.graph.edges[path[-2], path[-1]]["length"]
        return path

    def _is_change(self, before: Node, after: Node) -> bool:
        piece = self.graph.edges[before, after]["piece"]
        return piece is not None and piece.target is not None

    def _route(self, pieces: Sequence[_Piece]) -> Route | None:
        """Join pieces to one line and divide it evenly; ``None`` where it has no length."""
        if not pieces:
            return None
        parts = [_trace(piece) for piece in pieces]
        values = np.concatenate(parts)
        points, widths, heights = values[:, :2], values[:, 2], values[:, 3]
        piece_of = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        # Where one piece ends, the next one begins: keep one of each two points in the same place.
        steps = np.hypot(*np.diff(points, axis=0, prepend=points[:1] - 1.0).T)
        apart = steps > 1e-3
        points, widths, heights, piece_of = points[apart], widths[apart], heights[apart], piece_of[apart]
        lengths = _lengths(points)
        if len(lengths) < 2:
            return None
        count = max(1, math.ceil(lengths[-1] / self._spacing - 1e-9))
        at = np.linspace(0, lengths[-1], count + 1)
        even = np.stack([np.interp(at, lengths, points[:, axis]) for axis in (0, 1)], axis=1)
        # The piece of the line that a point lies on: the first point of a piece was dropped above, so look ahead.
        inside = piece_of[np.minimum(np.searchsorted(lengths, at + 1e-6, side="left"), len(lengths) - 1)]
        return Route(
            points=even,
            headings=_headings(even),
            distances=_lengths(even),
            lane_widths=np.interp(at, lengths, widths),
            in_junction=np.array([piece.lane.junction >= 0 for piece in pieces])[inside],
            commands=np.array(_commands(pieces), dtype=np.int64)[inside],
            heights=np.interp(at, lengths, heights),
        )


def _permitted(lanes: Sequence[_Lane], side: int, begin: float, end: float) -> tuple[float, float]:
    """The longest stretch between two fractions in which all of some lanes may be left to a side; empty without one."""
    at = np.linspace(begin, end, 1 + max(1, round(lanes[0].length_between(begin, end))))
    may = np.ones(len(at), dtype=bool)
    for lane in lanes:
        nearest = np.clip(np.searchsorted(lane.fractions, at), 0, len(lane.fractions) - 1)
        may &= lane.may_change[nearest, side]
    runs = [list(run) for is_free, run in groupby(range(len(at)), key=lambda index: bool(may[index])) if is_free]
    longest = max(runs, key=len, default=[0])
    return float(at[longest[0]]), float(at[longest[-1]])


def _read_lanes(carla_map: carla.Map, step: float) -> tuple[dict[LaneKey, _Lane], list[tuple[LaneKey, LaneKey]]]:
    """All driving lanes, and which leads on to which; in the order of their ids."""
    topology = sorted(carla_map.get_topology(), key=lambda pair: (_key(pair[0]), _key(pair[1])))
    # A lane that ends is paired with its own end.
    links = [(_key(start), _key(end)) for start, end in topology if _key(start) != _key(end)]
    ends: dict[LaneKey, tuple[carla.Waypoint, carla.Waypoint | None]] = {_key(pair[0]): pair for pair in topology}
    # The topology leaves out some of the lanes from which no other one is reached.
    for waypoint in (*(end for _, end in topology), *carla_map.generate_waypoints(_SEARCH_SPACING)):
        if _key(waypoint) not in ends:
            ends[_key(waypoint)] = (_lane_start(waypoint), None)
    return {key: _read_lane(*ends[key], step) for key in sorted(ends)}, links


def _lane_start(waypoint: carla.Waypoint) -> carla.Waypoint:
    """The first waypoint of a lane section, to within a few centimetres.

    ``Waypoint.previous_until_lane_start`` would do, but crashes the program on lanes that nothing leads to.
    """
    step = _SEARCH_SPACING
    while step > 0.02:
        before = [earlier for earlier in waypoint.previous(step) if _key(earlier) == _key(waypoint)]
        if before:
            waypoint = before[0]
        else:
            step /= 2
    return waypoint


def _read_lane(start: carla.Waypoint, end: carla.Waypoint | None, step: float) -> _Lane:
    """Sample a lane from its start to ``end``, the start of a lane that comes after it, if one does."""
    key = _key(start)
    # Beyond the lane's own section the waypoints go on to the end of the road.
    own = [start, *takewhile(lambda waypoint: _key(waypoint) == key, start.next_until_lane_end(step))]
    transforms = [waypoint.transform for waypoint in (*own, end or own[-1])]
    points = np.array([(transform.location.x, transform.location.y) for transform in transforms], dtype=np.float64)
    lengths = _lengths(points)
    along = np.array([abs(waypoint.s - start.s) for waypoint in own])
    along = np.maximum.accumulate(np.append(along, along[-1] + lengths[-1] - lengths[-2]))
    extent_s = max(float(along[-1]), 1e-6)
    changes = [int(waypoint.lane_change) for waypoint in own]  # bits: 1 to the right, 2 to the left
    changes.append(changes[-1])
    yaw = np.unwrap([transform.rotation.yaw for transform in transforms], period=360)
    return _Lane(
        key=key,
        points=points,
        heights=np.array([transform.location.z for transform in transforms], dtype=np.float64),
        fractions=np.append(along[:-1] / extent_s, 1.0),
        lengths=lengths,
        widths=np.array([waypoint.lane_width for waypoint in (*own, own[-1])], dtype=np.float64),
        may_change=np.array([(change & 2, change & 1) for change in changes], dtype=bool),
        neighbours=(_neighbour(key, start.get_left_lane()), _neighbour(key, start.get_right_lane())),
        turn=float(yaw[-1] - yaw[0]),
        junction=start.junction_id if start.is_junction else -1,
        num_stations=max(1, round(extent_s / _STATION_SPACING)),
        first_s=start.s,
        extent_s=extent_s,
    )


def _neighbour(key: LaneKey, waypoint: carla.Waypoint | None) -> LaneKey | None:
    """The key of a lane beside another one, unless it leads the other way: the sign of a lane's id says which way."""
    if waypoint is None or waypoint.lane_id * key[2] <= 0:
        return None
    beside = _key(waypoint)
    return beside if beside[:2] == key[:2] else None


def _key(waypoint: carla.Waypoint) -> LaneKey:
    return waypoint.road_id, waypoint.section_id, waypoint.lane_id


def _endless_nodes(graph: nx.DiGraph[Node]) -> set[Node]:
    """The nodes from which one can drive on for ever: those left after taking away dead ends again and again."""
    ways = {node: graph.out_degree(node) for node in graph}
    dead = [node for node, count in ways.items() if count == 0]
    endless = set(graph)
    while dead:
        node = dead.pop()
        endless.discard(node)
        for before in graph.predecessors(node):
            ways[before] -= 1
            if ways[before] == 0:
                dead.append(before)
    return endless


def _trace(piece: _Piece) -> FloatArray:
    """x, y, lane width and height ``(n, 4)`` along a piece."""
    fractions = piece.lane.fractions
    inner = fractions[(fractions > piece.begin) & (fractions < piece.end)]
    at = np.concatenate(([piece.begin], inner, [piece.end]))
    values = _interpolate(piece.lane, at)
    if piece.target is not None:
        part = ((at - piece.begin) / (piece.end - piece.begin))[:, None]
        # The quintic whose first and second derivatives are zero at both ends: curvature begins and ends at zero.
        over = part**3 * (10 - 15 * part + 6 * part**2)
        values = (1 - over) * values + over * _interpolate(piece.target, at)
    return values


def _interpolate(lane: _Lane, at: FloatArray) -> FloatArray:
    """x, y, width and height ``(n, 4)`` of a lane at fractions ``(n,)``."""
    columns = (lane.points[:, 0], lane.points[:, 1], lane.widths, lane.heights)
    return np.stack([np.interp(at, lane.fractions, column) for column in columns], axis=1)


def _commands(pieces: Iterable[_Piece]) -> list[Command]:
    """The command of each piece; all pieces of a way through a junction have the same."""
    commands: list[Command] = []
    for junction, group in groupby(pieces, key=lambda piece: piece.lane.junction):
        inside = list(group)
        if junction < 0:
            commands += [piece.command for piece in inside]
            continue
        turn = sum(lane.turn for lane, _ in groupby(piece.lane for piece in inside))
        direction = Command.STRAIGHT if abs(turn) < _STRAIGHT else Command.RIGHT if turn > 0 else Command.LEFT
        commands += [direction] * len(inside)
    return commands


def _describe(location: carla.Location) -> str:
    return f"({location.x:.1f}, {location.y:.1f})"


# --- Following --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RouteState:
    """Where a vehicle is relative to its route.

    Attributes:
        index: The last of the route's points that lies behind the vehicle.
        distance: Metres along the route to the nearest place on it, between points too.
        lateral_offset: Metres, positive to the right of the route.
        heading_error: The vehicle's yaw relative to the route's heading, degrees in [-180, 180), positive to the right.
        remaining: Metres along the route to its end.
    """

    index: int
    distance: float
    lateral_offset: float
    heading_error: float
    remaining: float


class RouteTracker:
    """Follows a vehicle along its route.

    Each update looks no further along the route than the vehicle can have come since the last one, so that a place
    where the route crosses itself, or a road that it uses twice, never makes the position jump.

    Args:
        route: The vehicle starts somewhere near its beginning.
    """

    def __init__(self, route: Route) -> None:
        self.route = route
        self._points = route.points
        self._distances = route.distances
        self._vectors = np.diff(route.points, axis=0)
        self._squares = np.einsum("nk,nk->n", self._vectors, self._vectors)
        self._headings = np.unwrap(route.headings, period=360)
        self._x, self._y = map(float, route.points[0])
        self._distance = 0.0

    def update(self, x: float, y: float, yaw: float) -> RouteState:
        """The state of a vehicle at a place (metres) with a yaw (degrees)."""
        # On the inside of a bend the nearest place moves faster than the vehicle does.
        reach = 2.0 + 2.0 * math.hypot(x - self._x, y - self._y)
        self._x, self._y = x, y
        first, last = np.searchsorted(self._distances, (self._distance - reach, self._distance + reach))
        first = min(max(int(first) - 1, 0), len(self._vectors) - 1)
        window = slice(first, max(int(last), first + 1))
        vectors = self._vectors[window]
        offsets = (x, y) - self._points[:-1][window]
        part = np.clip(np.einsum("nk,nk->n", offsets, vectors) / self._squares[window], 0.0, 1.0)
        offsets -= part[:, None] * vectors
        nearest = int(np.argmin(np.einsum("nk,nk->n", offsets, offsets)))
        index, inside = first + nearest, float(part[nearest])
        across_x, across_y = map(float, offsets[nearest])

        begin, end = float(self._distances[index]), float(self._distances[index + 1])
        self._distance = begin + inside * (end - begin)
        heading = float((1 - inside) * self._headings[index] + inside * self._headings[index + 1])
        radians = math.radians(heading)
        return RouteState(
            index=index,
            distance=self._distance,
            lateral_offset=across_y * math.cos(radians) - across_x * math.sin(radians),
            heading_error=wrap_degrees(yaw - heading),
            remaining=self.route.length - self._distance,
        )


# --- Geometry ---------------------------------------------------------------------------------------------------------


def _lengths(points: FloatArray) -> FloatArray:
    """Distance of each point from the first one along a polyline ``(n, 2)``: ``(n,)``."""
    return np.concatenate(([0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))))


def _headings(points: FloatArray) -> FloatArray:
    """Direction ``(n,)`` in degrees of a line through evenly spaced points ``(n, 2)``, to second order."""
    slopes = np.gradient(points, axis=0, edge_order=2 if len(points) > 2 else 1)
    return np.asarray(wrap_degrees(np.degrees(np.arctan2(slopes[:, 1], slopes[:, 0]))))
