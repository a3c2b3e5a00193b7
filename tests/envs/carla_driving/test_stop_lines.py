"""Stop lines on real waypoints, and crossing them."""

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wm_gym.envs.angles import wrap_degrees
from wm_gym.envs.carla.route import RoutePlanner, RouteTracker
from wm_gym.envs.carla.stop_lines import StopLine, ahead, crossed, stop_lines

carla = pytest.importorskip("carla")
from tests.carla_server.process import StandIn  # noqa: E402 - for CARLA's client
from wm_gym.envs.carla_light.small_towns import make_town  # noqa: E402 - its geometry is for CARLA's client


def line_at(x: float, y: float, heading: float, width: float = 3.5) -> StopLine:
    """A line with its middle at a point: right of a heading is a quarter turn clockwise, seen from above."""
    right = math.radians(heading + 90)
    side_x, side_y = width / 2 * math.cos(right), width / 2 * math.sin(right)
    return StopLine(1, (x - side_x, y - side_y), (x + side_x, y + side_y), heading, 1, -1)


@pytest.fixture(scope="module")
def town_map():
    return carla.Map("Town02", make_town("Town02").opendrive)


@pytest.fixture(scope="module")
def entrances(town_map):
    """The last waypoints before junctions, as a traffic light's stop waypoints are."""
    found = []
    for start, end in town_map.get_topology():
        if end.is_junction and not start.is_junction:
            found.append(start.next_until_lane_end(1.0)[-3])
    return found


@pytest.fixture(scope="module")
def world():
    with StandIn() as server:
        client = carla.Client("127.0.0.1", server.port)
        client.set_timeout(60.0)
        world = client.get_world()
        world.wait_for_tick()
        yield world


@pytest.fixture(scope="module")
def lights(world):
    """Lights of the real client, which reads their trigger volumes from the server."""
    return list(world.get_actors().filter("traffic.traffic_light"))


def test_every_lane_towards_a_junction_with_lights_has_one_line_at_its_end(world, lights):
    lines = stop_lines(lights)
    junctions = {waypoint.next(15.0)[0].junction_id for light in lights for waypoint in light.get_stop_waypoints()}
    towards = {
        (start.road_id, start.lane_id): start
        for start, end in world.get_map().get_topology()
        if end.is_junction and not start.is_junction and end.junction_id in junctions
    }
    assert {line.lane for line in lines} == set(towards)
    assert len(lines) == len(towards) > len(lights)  # some approaches have two lanes
    for line in lines:
        last = towards[line.lane].next_until_lane_end(0.1)[-1]
        centre, yaw = last.transform.location, last.transform.rotation.yaw
        assert np.mean((line.start, line.end), axis=0) == pytest.approx((centre.x, centre.y), abs=0.6)
        assert math.dist(line.start, line.end) == pytest.approx(1.2 * last.lane_width, abs=1e-3)
        right = last.transform.get_right_vector()
        assert (line.end[0] - line.start[0]) * right.x + (line.end[1] - line.start[1]) * right.y > 0
        assert abs(wrap_degrees(line.heading - yaw)) < 1.0
        assert -180 <= line.heading < 180


def test_triggers_lie_well_before_the_junction(lights):
    """Else this would test nothing."""
    for light in lights:
        for waypoint in light.get_stop_waypoints():
            assert not any(after.is_junction for after in waypoint.next(5.0))


def test_a_light_in_a_junction_or_far_from_one_keeps_its_place(town_map):
    inside = next(start for start, _ in town_map.get_topology() if start.is_junction)
    (line,) = stop_lines([SimpleNamespace(id=1, get_stop_waypoints=lambda: [inside])])
    centre = inside.transform.location
    assert np.mean((line.start, line.end), axis=0) == pytest.approx((centre.x, centre.y), abs=1e-3)


def test_stop_lines_of_real_maps_are_at_junctions(real_map):
    """A trigger may be anywhere on the lane; the line is where the lane ends."""
    for start, end in real_map.get_topology()[::7]:
        if start.is_junction or not end.is_junction:
            continue
        ways = start.next_until_lane_end(1.0)
        for trigger in ways[-40::13]:
            (line,) = stop_lines([SimpleNamespace(id=1, get_stop_waypoints=lambda trigger=trigger: [trigger])])
            middle = np.mean((line.start, line.end), axis=0)
            at = carla.Location(float(middle[0]), float(middle[1]), trigger.transform.location.z)
            waypoint = real_map.get_waypoint(at)
            assert waypoint.is_junction or any(after.is_junction for after in waypoint.next(1.0))


@given(
    heading=st.floats(-180, 180),
    lateral=st.floats(-1.7, 1.7),
    angle=st.floats(-60, 60),
    cuts=st.lists(st.floats(0, 1), max_size=8),
)
def test_a_drive_over_a_line_crosses_it_once_however_it_is_divided(heading, lateral, angle, cuts):
    """Across the line at ``lateral`` from its middle, at an angle to its traffic."""
    forward, right = math.radians(heading), math.radians(heading + 90)
    at = (lateral * math.cos(right), lateral * math.sin(right))
    course = forward + math.radians(angle)
    way = [
        (at[0] + d * math.cos(course), at[1] + d * math.sin(course))
        for d in sorted((-6, 6, *(12 * c - 6 for c in cuts)))
    ]
    line = line_at(0, 0, heading)
    times = sum(len(crossed([line], *step, heading + angle)) for step in pairwise(way))
    assert times == 1
    back = sum(len(crossed([line], *step, heading + angle)) for step in pairwise(way[::-1]))
    assert back == 0


def test_what_does_not_count_as_crossing():
    line = line_at(10, 0, 0)
    assert crossed([line], (9, 0), (11, 0), 0.0) == [line]
    assert crossed([line], (9, 0), (9.9, 0), 0.0) == []
    assert crossed([line], (9, 3), (11, 3), 0.0) == []  # beside it
    assert crossed([line], (11, 0), (9, 0), 180.0) == []  # from the other side
    assert crossed([line], (9, 0), (11, 0), 180.0) == []  # reversing over it from the opposite direction
    assert crossed([line], (9, 0), (10, 0), 0.0) == [line]  # up to it
    assert crossed([line], (10, 0), (11, 0), 0.0) == []  # which is not counted again


def test_neighbouring_lanes_have_lines_of_their_own():
    lines = [line_at(10, 0, 0), line_at(10, 3.5, 0)]
    assert crossed(lines, (9, 3.0), (11, 3.2), 5.0) == [lines[1]]


def test_the_next_line_on_the_route(town_map, entrances):
    light = SimpleNamespace(id=1, get_stop_waypoints=lambda: entrances)
    lines = stop_lines([light])
    planner = RoutePlanner(town_map, spacing=1.0)
    start = town_map.generate_waypoints(30.0)[0].transform.location
    route = planner.draw(start, np.random.default_rng(2), 800, 900)

    # A drive along the route in small steps crosses the same lines at the same places.
    places = np.arange(0.0, route.length, 0.1)
    points = [tuple(route.point_at(place)) for place in places]
    headings = np.unwrap(route.headings, period=360)
    met = []
    for index, (before, after) in enumerate(pairwise(points)):
        heading = float(np.interp(places[index], route.distances, headings))
        met += [(places[index], line) for line in crossed(lines, before, after, heading)]
    assert len(met) >= 3

    for distance in np.arange(0.0, route.length, 17.0):
        following = [(place - distance, line) for place, line in met if place > distance + 0.1]
        found = ahead(lines, route, distance, 80.0)
        if not following or following[0][0] > 80:
            assert found is None
        else:
            line, metres = found
            assert line == following[0][1]
            assert metres == pytest.approx(following[0][0], abs=0.15)


def test_a_line_under_a_bridge_is_not_ahead_of_a_route_on_it(town_map):
    start = town_map.generate_waypoints(30.0)[3].transform.location
    route = RoutePlanner(town_map, spacing=1.0).draw(start, np.random.default_rng(0), 100, 120)
    x, y = route.point_at(50.0)
    line = line_at(x, y, float(np.interp(50.0, route.distances, np.unwrap(route.headings, period=360))))
    assert ahead([replace(line, height=0.5)], route, 20.0, 40.0) is not None
    assert ahead([replace(line, height=-6.0)], route, 20.0, 40.0) is None


def test_reach_and_the_ends_of_the_route(town_map):
    start = town_map.generate_waypoints(30.0)[3].transform.location
    route = RoutePlanner(town_map, spacing=1.0).draw(start, np.random.default_rng(0), 100, 120)
    x, y = route.point_at(50.0)
    line = line_at(x, y, float(np.interp(50.0, route.distances, np.unwrap(route.headings, period=360))))
    assert ahead([line], route, 20.0, 40.0) == (line, pytest.approx(30.0, abs=0.05))
    assert ahead([line], route, 20.0, 29.0) is None
    assert ahead([line], route, 51.0, 60.0) is None
    assert ahead([line], route, route.length, 60.0) is None
    assert ahead([line], route, route.length + 5, 60.0) is None
    assert ahead([], route, 20.0, 40.0) is None
    opposite = line_at(x, y, line.heading + 180)
    assert ahead([opposite], route, 20.0, 40.0) is None
    assert RouteTracker(route).update(x, y, line.heading).distance < 51  # the same measure of distance
