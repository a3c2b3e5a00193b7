"""What is read from the maps of CARLA's own towns."""

from types import SimpleNamespace

import pytest

from .real_maps import TOWNS, load_map

carla = pytest.importorskip("carla.libcarla")
from wm_gym.envs.carla.town import Town  # noqa: E402 - for CARLA's client


def town_of(name: str) -> Town:
    """A real town without traffic lights, which no server simulates."""
    carla_map = load_map(name)
    no_actors = SimpleNamespace(filter=lambda kind: [])
    return Town(carla, SimpleNamespace(get_map=lambda: carla_map, get_actors=lambda: no_actors), 1.0)


def test_whoever_drives_beside_an_opening_lane_is_on_the_road():
    """There the middle of the narrow lane is nearer than that of the vehicle's own."""
    town = town_of("Town06")
    route = town.planner.plan(carla.Location(x=16.0, y=41.9), carla.Location(x=64.0, y=38.0))
    nearest = [town.map.get_waypoint(carla.Location(x=x, y=y)) for x, y in route.points.tolist()]
    assert any(lane.lane_width < 2.0 for lane in nearest)
    assert all(town.is_on_road(carla.Location(x=x, y=y)) for x, y in route.points.tolist())


@pytest.mark.parametrize("name", TOWNS)
def test_the_middle_of_every_lane_is_on_the_road(name):
    town = town_of(name)
    assert all(town.is_on_road(waypoint.transform.location) for waypoint in town.map.generate_waypoints(10.0))


def test_places_beside_the_road_are_off_it():
    town = town_of("Town06")
    for waypoint in town.map.generate_waypoints(50.0):
        outermost = waypoint
        while outermost is not None and str(outermost.lane_type) == "Driving":
            last, outermost = outermost, outermost.get_right_lane()
        pose, away = last.transform, last.lane_width / 2 + 1.0
        right = pose.get_right_vector()
        place = pose.location + carla.Location(x=away * right.x, y=away * right.y)
        nearest = town.map.get_waypoint(place)
        if not waypoint.is_junction and nearest.road_id == last.road_id and nearest.lane_id == last.lane_id:
            assert not town.is_on_road(place)
