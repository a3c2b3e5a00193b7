"""Planning on maps that CARLA's client parses, and following lines whose geometry is known."""

import math
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wm_gym.envs.angles import wrap_degrees
from wm_gym.envs.carla.route import Command, Route, RoutePlanner, RouteTracker
from wm_gym.errors import SimulatorError

carla = pytest.importorskip("carla")
from wm_gym.envs.carla_light.small_towns import make_town  # noqa: E402 - its geometry is for CARLA's client

from .real_maps import load_map  # noqa: E402

_LANE = """
  <lane id="{id}" type="driving" level="false">
    <link/>
    <width sOffset="0" a="3.5" b="0" c="0" d="0"/>
    <roadMark sOffset="0" type="{mark}" weight="standard" color="standard" width="0.1" laneChange="{change}"/>
  </lane>"""
_STRAIGHT_ROAD = """<?xml version="1.0"?>
<OpenDRIVE>
  <header revMajor="1" revMinor="4" name="road" version="1" date="" north="0" south="0" east="0" west="0"/>
  <road name="road" length="{length}" id="1" junction="-1">
    <link/>
    <planView><geometry s="0" x="0" y="0" hdg="0" length="{length}"><line/></geometry></planView>
    <lanes>
      <laneSection s="0">
        <left>{left}</left>
        <center>
          <lane id="0" type="none" level="false"><roadMark sOffset="0" type="broken" laneChange="both"/></lane>
        </center>
        <right>{first}{second}</right>
      </laneSection>
    </lanes>
  </road>
</OpenDRIVE>"""
"""Two lanes eastwards along y = 1.75 and 5.25 in CARLA's frame, one westwards, and dead ends."""


def straight_road(length: float = 200.0, mark: str = "broken") -> RoutePlanner:
    lanes = {
        "left": _LANE.format(id=1, mark="solid", change="none"),
        "first": _LANE.format(id=-1, mark=mark, change="both" if mark == "broken" else "none"),
        "second": _LANE.format(id=-2, mark="solid", change="none"),
    }
    return RoutePlanner(carla.Map("road", _STRAIGHT_ROAD.format(length=length, **lanes)), spacing=1.0)


def location(x: float, y: float) -> "carla.Location":
    return carla.Location(x=float(x), y=float(y))


@pytest.fixture(scope="module", params=["Town01", "Town02"])
def town_map(request):
    return carla.Map(request.param, make_town(request.param).opendrive)


@pytest.fixture(scope="module")
def small_town():
    return carla.Map("Town02", make_town("Town02").opendrive)


def starts(carla_map) -> list["carla.Location"]:
    return [waypoint.transform.location for waypoint in carla_map.generate_waypoints(25.0)]


# --- Planning ---------------------------------------------------------------------------------------------------------


def test_routes_lie_on_lane_centres_and_lead_with_the_traffic(town_map):
    planner = RoutePlanner(town_map, spacing=1.0)
    rng = np.random.default_rng(0)
    for start in starts(town_map)[::7]:
        route = planner.draw(start, rng, 200, 600)
        for index in range(0, len(route.points), 5):
            if route.commands[index] in (Command.CHANGE_LANE_LEFT, Command.CHANGE_LANE_RIGHT):
                continue
            waypoint = town_map.get_waypoint(location(*route.points[index]))
            centre = waypoint.transform.location
            assert math.hypot(centre.x - route.points[index, 0], centre.y - route.points[index, 1]) < 0.2
            if not route.in_junction[index] and not waypoint.is_junction:
                assert abs(wrap_degrees(waypoint.transform.rotation.yaw - route.headings[index])) < 8
                assert route.lane_widths[index] == pytest.approx(waypoint.lane_width, abs=0.05)


def test_the_way_is_the_shortest_one(small_town):
    """Against a search over the map's own successors, metre by metre; the town's streets have no lanes to change to."""
    planner = RoutePlanner(small_town, spacing=1.0)
    places = [place for place in small_town.generate_waypoints(40.0) if not place.is_junction]
    rng = np.random.default_rng(1)
    for _ in range(8):
        start, end = (places[rng.integers(len(places))] for _ in range(2))
        if start.id != end.id:
            length = planner.plan(start.transform.location, end.transform.location).length
            # The search goes by the roads' reference lines, and in bends lanes are longer or shorter than these.
            assert length == pytest.approx(_searched_length(start, end), rel=0.07, abs=4)


def _searched_length(start, end) -> float:
    front, seen, metres = [start], set(), 0.0
    while front:
        metres += 2.0
        following = []
        for after in (after for waypoint in front for after in waypoint.next(2.0)):
            if (after.road_id, after.lane_id) == (end.road_id, end.lane_id) and abs(after.s - end.s) <= 1.01:
                return metres
            key = (after.road_id, after.lane_id, round(after.s))
            if key not in seen:
                seen.add(key)
                following.append(after)
        front = following
    raise AssertionError("the search has found no way")


def test_points_are_evenly_spaced_from_start_to_end(town_map):
    places = starts(town_map)
    for spacing in (0.5, 2.0):
        route = RoutePlanner(town_map, spacing).plan(places[0], places[20])
        steps = np.diff(route.distances)
        assert steps.max() <= spacing + 1e-6
        assert steps.max() - steps.min() < 0.03 * spacing
        assert route.points[0] == pytest.approx((places[0].x, places[0].y), abs=0.1)
        assert route.points[-1] == pytest.approx((places[20].x, places[20].y), abs=0.1)
        steps_on_plane = np.hypot(*np.diff(route.points, axis=0).T)
        assert steps_on_plane == pytest.approx(steps)


def test_a_change_of_lanes_goes_over_smoothly():
    route = straight_road().plan(location(5, 1.75), location(195, 5.25))
    assert route.points[0, 1] == pytest.approx(1.75, abs=0.01)
    assert route.points[-1, 1] == pytest.approx(5.25, abs=0.01)
    assert (np.diff(route.points[:, 1]) >= -1e-6).all()
    changing = route.commands == Command.CHANGE_LANE_RIGHT
    assert changing.any()
    assert set(route.commands.tolist()) == {Command.LANE_FOLLOW, Command.CHANGE_LANE_RIGHT}
    moving = (route.points[:, 1] > 1.8) & (route.points[:, 1] < 5.2)
    assert changing[moving].all()
    assert np.abs(route.headings).max() < 20
    assert np.abs(np.diff(route.headings)).max() < 3

    back = straight_road().plan(location(5, 5.25), location(195, 1.75))
    assert Command.CHANGE_LANE_LEFT in back.commands


def test_a_solid_line_is_not_crossed():
    with pytest.raises(SimulatorError, match="no way leads from"):
        straight_road(mark="solid").plan(location(5, 1.75), location(195, 5.25))


def test_what_lies_behind_cannot_be_reached_on_a_road_that_ends():
    with pytest.raises(SimulatorError, match="no way leads from"):
        straight_road().plan(location(100, 1.75), location(50, 1.75))
    with pytest.raises(SimulatorError, match="no way leads from"):
        straight_road().plan(location(50, 1.75), location(100, -1.75))


def test_a_route_needs_a_length():
    with pytest.raises(SimulatorError, match="no length"):
        straight_road().plan(location(50, 1.75), location(50, 1.75))


def test_turns_are_named_by_the_change_of_heading(town_map):
    planner = RoutePlanner(town_map, spacing=1.0)
    rng = np.random.default_rng(3)
    seen = set()
    for start in starts(town_map)[::9]:
        route = planner.draw(start, rng, 300, 800)
        assert ((route.commands >= Command.LANE_FOLLOW) | route.in_junction).all()
        position = 0
        for command, group in groupby(route.commands.tolist()):
            first, position = position, position + len(list(group))
            if command > Command.STRAIGHT or first == 0 or position == len(route.commands):
                continue
            seen.add(command)
            turned = wrap_degrees(route.headings[position] - route.headings[first - 1])
            expected = Command.STRAIGHT if abs(turned) < 30 else Command.RIGHT if turned > 0 else Command.LEFT
            assert command == expected
    assert {Command.LEFT, Command.RIGHT} <= seen


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), place=st.integers(0, 10_000), shortest=st.sampled_from((50, 300, 2500)))
def test_random_routes_have_the_length_that_is_asked_for(seed, place, shortest):
    """2500 m is more than all lanes of the town together: roads are used more than once."""
    planner, places = _town02()
    start = places[place % len(places)]
    route = planner.draw(start, np.random.default_rng(seed), shortest, shortest + 200)
    assert shortest <= route.length <= shortest + 200 + 1e-6
    assert route.points[0] == pytest.approx((start.x, start.y), abs=0.1)
    assert np.abs(wrap_degrees(np.diff(route.headings))).max() < 15
    again = planner.draw(start, np.random.default_rng(seed), shortest, shortest + 200)
    assert np.array_equal(again.points, route.points)


_CACHE: list = []


def _town02():
    if not _CACHE:
        carla_map = carla.Map("Town02", make_town("Town02").opendrive)
        _CACHE.extend((RoutePlanner(carla_map, 1.0), starts(carla_map)))
    return _CACHE


def test_random_routes_differ(town_map):
    planner, start = RoutePlanner(town_map, 1.0), starts(town_map)[0]
    rng = np.random.default_rng(5)
    ways = {tuple(map(tuple, planner.draw(start, rng, 200, 1000).points[::20].round(1))) for _ in range(20)}
    assert len(ways) >= 8


def test_a_road_that_ends_too_soon_has_no_random_route():
    with pytest.raises(SimulatorError, match="ends before 200 m"):
        straight_road(length=100.0).draw(location(10, 1.75), np.random.default_rng(0), 200, 300)


# --- Routes -----------------------------------------------------------------------------------------------------------


def make_route(points, spacing: float = 1.0) -> Route:
    """A route along a polyline ``(n, 2)``, with headings by chords: a reference of its own."""
    points = np.asarray(points, dtype=float)
    corners = np.concatenate(([0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))))
    at = np.linspace(0, corners[-1], max(2, round(corners[-1] / spacing)) + 1)
    even = np.stack([np.interp(at, corners, points[:, axis]) for axis in (0, 1)], axis=1)
    chords = np.diff(even, axis=0)
    headings = np.degrees(np.unwrap(np.arctan2(chords[:, 1], chords[:, 0])))
    headings = np.concatenate((headings[:1], (headings[1:] + headings[:-1]) / 2, headings[-1:]))
    count = len(even)
    return Route(
        points=even,
        headings=wrap_degrees(headings),
        distances=np.concatenate(([0.0], np.cumsum(np.hypot(*chords.T)))),
        lane_widths=np.full(count, 3.5),
        in_junction=np.zeros(count, dtype=bool),
        commands=np.full(count, Command.LANE_FOLLOW),
    )


def test_cut_keeps_the_beginning():
    route = make_route([(0, 0), (10, 0), (10, 10)])
    cut = route.cut(12.5)
    assert cut.length == pytest.approx(12.5)
    assert cut.points[-1] == pytest.approx((10, 2.5))
    assert cut.headings[-1] == pytest.approx(90)
    assert np.array_equal(cut.points[:-1], route.points[: len(cut.points) - 1])
    assert all(len(part) == len(cut.points) for part in (cut.distances, cut.lane_widths, cut.in_junction, cut.commands))
    assert route.cut(100) is route
    with pytest.raises(ValueError, match="cannot be cut"):
        route.cut(0)


def test_cut_does_not_turn_the_heading_round():
    """Headings of 179 and -179 degrees lie side by side."""
    angles = np.radians(np.linspace(170, 190, 21))
    route = make_route(np.cumsum(np.stack((np.cos(angles), np.sin(angles)), axis=1), axis=0))
    for length in (9.3, 9.5, 9.8, 10.2):
        assert abs(wrap_degrees(route.cut(length).headings[-1] - 180)) < 2


# --- Following --------------------------------------------------------------------------------------------------------


@st.composite
def winding_lines(draw):
    """A line of arcs with radii of at least 15 m, its points 0.5 m apart."""
    curvatures = draw(st.lists(st.floats(-1 / 15, 1 / 15), min_size=2, max_size=8))
    heading, x, y, points = draw(st.floats(-3, 3)), 0.0, 0.0, [(0.0, 0.0)]
    for curvature in curvatures:
        for _ in range(40):
            heading += curvature * 0.5
            x, y = x + 0.5 * math.cos(heading), y + 0.5 * math.sin(heading)
            points.append((x, y))
    return points


@settings(max_examples=40, deadline=None)
@given(line=winding_lines(), offset=st.floats(-6, 6), step=st.floats(0.2, 3.0))
def test_a_drive_beside_the_route_is_measured(line, offset, step):
    route = make_route(line)
    tracker = RouteTracker(route)
    headings = np.unwrap(route.headings, period=360)
    previous = 0.0
    for distance in np.arange(1.0, route.length - 1.0, step):
        x, y = route.point_at(distance)
        heading = float(np.interp(distance, route.distances, headings))
        side = math.radians(heading + 90)  # To the right: yaw is clockwise seen from above.
        state = tracker.update(x + offset * math.cos(side), y + offset * math.sin(side), heading + 12)
        assert state.distance == pytest.approx(distance, abs=0.6)
        assert state.lateral_offset == pytest.approx(offset, abs=0.15)
        assert state.heading_error == pytest.approx(12, abs=4)
        assert state.distance + state.remaining == pytest.approx(route.length)
        assert state.distance >= previous - 0.3
        assert route.distances[state.index] <= state.distance + 1e-9 <= route.distances[state.index + 1] + 1e-6
        previous = state.distance


@settings(max_examples=40, deadline=None)
@given(line=winding_lines(), step=st.floats(0.1, 3.0))
def test_distance_never_falls_on_a_drive_along_the_route(line, step):
    route = make_route(line)
    tracker = RouteTracker(route)
    distances = [
        tracker.update(*route.point_at(at), yaw=0.0).distance for at in np.arange(0.0, route.length + step, step)
    ]
    assert np.diff(distances).min() >= 0
    assert distances[-1] == pytest.approx(route.length)


def figure_of_eight() -> list[tuple[float, float]]:
    angles = np.linspace(0, 2 * np.pi, 400)
    return [(60 * math.sin(angle), 40 * math.sin(2 * angle)) for angle in angles]


def test_a_crossing_and_a_road_used_twice_do_not_make_the_position_jump():
    eight = figure_of_eight()
    route = make_route([*eight, *eight[1:]])
    tracker = RouteTracker(route)
    wobble = np.random.default_rng(0).normal(0, 0.7, (5000, 2))
    for index, distance in enumerate(np.arange(0, route.length, 0.7)):
        x, y = route.point_at(distance) + wobble[index]
        assert tracker.update(x, y, 0.0).distance == pytest.approx(distance, abs=4)


def test_driving_backwards_is_followed():
    route = make_route(figure_of_eight())
    tracker = RouteTracker(route)
    for distance in (*np.arange(0, 120, 1.0), *np.arange(120, 5, -1.0)):
        assert tracker.update(*route.point_at(distance), yaw=0.0).distance == pytest.approx(distance, abs=0.2)


@pytest.mark.parametrize("offset", [-15.0, 15.0])
def test_far_beside_the_route(offset):
    """Another part of the route is much nearer: it comes back 20 m further to the right."""
    route = make_route([(0, 0), (100, 0), (100, 20), (0, 20)])
    tracker = RouteTracker(route)
    for x in np.arange(0, 80, 1.0):
        y = offset * min(1.0, x / 20)
        state = tracker.update(x, y, 0.0)
        assert state.distance == pytest.approx(x, abs=0.01)
        assert state.lateral_offset == pytest.approx(y, abs=0.01)


def test_before_the_start_and_beyond_the_end():
    route = make_route([(0, 0), (50, 0)])
    tracker = RouteTracker(route)
    behind = tracker.update(-8, 1, 0)
    assert (behind.distance, behind.lateral_offset, behind.index) == pytest.approx((0, 1, 0))
    for x in range(60):
        state = tracker.update(x, 0, 0)
    assert (state.distance, state.remaining) == pytest.approx((50, 0))
    assert state.index == len(route.points) - 2


def test_heading_error_is_signed_and_wrapped():
    tracker = RouteTracker(make_route([(0, 0), (-50, 0)]))  # Towards 180 degrees.
    assert tracker.update(-1, 0, -170).heading_error == pytest.approx(10)
    assert tracker.update(-1, 0, 170).heading_error == pytest.approx(-10)
    assert tracker.update(-1, 0, 0).heading_error == pytest.approx(-180)
    assert tracker.update(-1, -2, 180).lateral_offset == pytest.approx(2)  # Heading west, north is to the right.


# --- Maps of CARLA's own towns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("town", "start", "end"),
    [
        ("Town07", (70.9, -34.9), (26.0, -6.0)),  # a lane that opens over 5 m, left of one that goes on
    ],
)
def test_a_lane_that_opens_is_reached_from_the_one_beside_it(town, start, end):
    planner = RoutePlanner(load_map(town), spacing=1.0)
    route = planner.plan(location(*start), location(*end))
    assert np.hypot(*(route.points[-1] - end)) < 2.0
    assert np.hypot(*np.diff(route.points, axis=0).T).max() < 1.5
    assert route.commands[-1] in (Command.CHANGE_LANE_LEFT, Command.CHANGE_LANE_RIGHT)


@pytest.mark.parametrize("town", ["Town06", "Town07"])
def test_every_place_of_every_lane_can_be_reached_and_left(town):
    carla_map = load_map(town)
    planner = RoutePlanner(carla_map, spacing=2.0)
    opening_or_closing = {
        (waypoint.road_id, waypoint.lane_id)
        for waypoint in carla_map.generate_waypoints(1.0)
        if waypoint.lane_width < 1.0 and not waypoint.is_junction
    }
    assert opening_or_closing
    elsewhere = carla_map.generate_waypoints(200.0)[0].transform.location
    for waypoint in carla_map.generate_waypoints(9.0):
        if (waypoint.road_id, waypoint.lane_id) in opening_or_closing and waypoint.lane_width > 1.5:
            place = waypoint.transform.location
            if place.distance(elsewhere) < 20:
                continue
            for route in (planner.plan(elsewhere, place), planner.plan(place, elsewhere)):
                assert route.length > 1.0
                assert np.hypot(*np.diff(route.points, axis=0).T).max() < 3.0


def test_routes_know_their_height(real_map):
    planner = RoutePlanner(real_map, spacing=2.0)
    rng = np.random.default_rng(0)
    for waypoint in real_map.generate_waypoints(400.0)[:12]:
        route = planner.draw(waypoint.transform.location, rng, 200, 300)
        assert route.heights.shape == (len(route.points),)
        z = waypoint.transform.location.z
        for (x, y), height in zip(route.points[::5], route.heights[::5], strict=True):
            # On the level that one reaches by going along: the client looks for the nearest place in three dimensions.
            z = real_map.get_waypoint(carla.Location(float(x), float(y), float(z))).transform.location.z
            assert height == pytest.approx(z, abs=0.5)


def test_places_ahead_have_the_heights_of_the_road_under_and_on_a_bridge():
    """A route that crosses itself, 6 m higher the second time."""
    angles = np.linspace(0, 2 * np.pi, 201)
    points = np.stack((100 * np.cos(angles), 50 * np.sin(2 * angles)), axis=1)  # an eight, through (0, 0) twice
    lengths = np.concatenate(([0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))))
    heights = np.where(angles < np.pi, 0.0, 6.0)
    blank = np.zeros(len(points))
    route = Route(points, blank, lengths, blank, blank.astype(bool), blank.astype(np.int64), heights)
    upper, lower = route.places_ahead((0.0, 0.0, 6.3), 5.0), route.places_ahead((0.0, 0.0, 0.3), 5.0)
    assert np.all(upper[:, 2] == 6.0)
    assert set(lower[:, 2]) == {0.0, 6.0}
    assert len(lower) > 2 * len(upper) - 5
    flat = Route(points, blank, lengths, blank, blank.astype(bool), blank.astype(np.int64))
    assert np.all(flat.places_ahead((100.0, 0.0, 1.5), 5.0)[:, 2] == 1.5)
