"""The light server on OpenDRIVE maps from files: CARLA's towns, where they are at hand, with the real client."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.carla_server.client import ticked_world
from tests.carla_server.process import StandIn

from .real_maps import TOWNS, maps_folder

KMH = 1.609344


@pytest.fixture(scope="module")
def town_of():
    """Gives the world of one of CARLA's towns, ticked by the test.

    Each has a server of its own: CARLA's client may abort the process when a server is made to load another town.
    """
    carla = pytest.importorskip("carla.libcarla")
    folder = maps_folder()
    clients = {}  # they live until all servers have ended
    with ExitStack() as servers:

        def world_of(town):
            if town not in clients:
                server = servers.enter_context(StandIn(None, "--town", str(folder / f"{town}.xodr")))
                clients[town] = carla.Client("127.0.0.1", server.port)
                clients[town].set_timeout(60.0)
            world = ticked_world(clients[town])
            world.tick()
            return world

        yield world_of


@pytest.fixture(params=TOWNS)
def world(request, town_of):
    """Each of CARLA's towns in turn."""
    return town_of(request.param)


@pytest.fixture
def town04(town_of):
    return town_of("Town04")


def spawn(world, transform, blueprint="vehicle.lincoln.mkz_2020"):
    return world.spawn_actor(world.get_blueprint_library().find(blueprint), transform)


def test_spawn_points_are_on_driving_lanes_outside_junctions(world):
    carla_map = world.get_map()
    points = carla_map.get_spawn_points()
    assert len(points) > 50
    for point in points:
        lane = carla_map.get_waypoint(point.location)
        assert not lane.is_junction
        assert str(lane.lane_type) == "Driving"
        assert lane.transform.location.distance(point.location) < 0.7
        assert lane.transform.get_forward_vector().dot(point.get_forward_vector()) > 0.99


def test_every_light_of_the_map_stops_each_lane_of_its_approach(world):
    carla_map = world.get_map()
    text = carla_map.to_opendrive()
    signals = {node.get("id") for node in ElementTree.fromstring(text).iter("signal") if node.get("type") == "1000001"}
    lights = list(world.get_actors().filter("traffic.traffic_light"))
    assert {light.get_opendrive_id() for light in lights} == signals
    wide = 0
    for light in lights:
        affected = light.get_affected_lane_waypoints()
        assert affected
        approach = set()
        for waypoint in affected:
            here = waypoint
            while here.is_junction:
                here = here.previous(0.5)[0]
            approach.add((here.road_id, here.lane_id))
        stops = light.get_stop_waypoints()
        assert approach <= {(stop.road_id, stop.lane_id) for stop in stops}
        for stop in stops:
            assert not stop.is_junction
            assert stop.next(2.0)[0].is_junction
        wide += len(approach) > 1
    assert wide > 0 or carla_map.name.endswith(("Town01", "Town02"))


def test_lights_of_a_junction_take_turns_with_carlas_times(world):
    lights = list(world.get_actors().filter("traffic.traffic_light"))
    assert {(light.get_green_time(), light.get_yellow_time(), light.get_red_time()) for light in lights} == {(10, 3, 2)}
    root = ElementTree.fromstring(world.get_map().to_opendrive())
    members = {node.get("id"): {c.get("signalId") for c in node.iter("control")} for node in root.findall("controller")}
    turns = [
        [members[c.get("id")] for c in node.findall("controller")]
        for node in root.findall("junction")
        if len(node.findall("controller")) > 1
    ]
    by_signal = {light.get_opendrive_id(): light for light in lights}
    group = next(turn for turn in turns if sum(len(part & by_signal.keys()) > 0 for part in turn) > 1)
    world.reset_all_traffic_lights()
    seen = []
    for _ in range(round(15 * len(group) / 0.05)):
        world.tick()
        seen.append([{str(by_signal[signal].state) for signal in part & by_signal.keys()} for part in group])
    for states in seen:
        assert all(len(part) <= 1 for part in states)  # lights of one controller show the same
        assert sum(part != {"Red"} for part in states if part) <= 1  # the others wait
    first = [states[0] for states in seen if states[0]]
    if first:
        assert [first.count({name}) for name in ("Green", "Yellow")] == [200, 60]


def test_the_speed_limit_is_that_of_the_road(world):
    records = {}
    for road in ElementTree.fromstring(world.get_map().to_opendrive()).iter("road"):
        speed = road.find("type/speed")
        if speed is not None:
            assert speed.get("unit") == "mph"
            records[int(road.get("id"))] = float(speed.get("max")) * KMH
    points = world.get_map().get_spawn_points()
    for index in np.linspace(0, len(points) - 1, 12).astype(int).tolist():
        vehicle = spawn(world, points[index])
        world.tick()
        road = world.get_map().get_waypoint(points[index].location).road_id
        assert vehicle.get_speed_limit() == pytest.approx(records[road], abs=0.01)
        vehicle.destroy()


def crossings(carla_map):
    """Places where a driving lane lies at least 4 m above another."""
    waypoints = carla_map.generate_waypoints(4.0)
    places = np.array([(w.transform.location.x, w.transform.location.y, w.transform.location.z) for w in waypoints])
    for index in np.flatnonzero(places[:, 2] > 5.0).tolist():
        below = np.hypot(*(places[:, :2] - places[index, :2]).T) < 2.5
        if (places[below, 2] < places[index, 2] - 4.0).any():
            lower = int(np.flatnonzero(below & (places[:, 2] < places[index, 2] - 4.0))[0])
            yield waypoints[index], waypoints[lower]


def test_a_vehicle_on_a_bridge_stays_on_it_and_one_below_stays_below(town04):
    pairs = list(crossings(town04.get_map()))
    assert len(pairs) > 10
    for upper, lower in pairs[:: len(pairs) // 5]:
        vehicles = []
        for waypoint in (upper, lower):
            transform = waypoint.transform
            transform.location.z += 0.3
            vehicles.append(spawn(town04, transform))
        for _ in range(20):
            for vehicle in vehicles:
                vehicle.apply_control(type(vehicle.get_control())(throttle=0.4))
            town04.tick()
        for vehicle, waypoint in zip(vehicles, (upper, lower), strict=True):
            here = vehicle.get_location()
            assert abs(here.z - town04.get_map().get_waypoint(here).transform.location.z) < 0.1
            assert abs(here.z - waypoint.transform.location.z) < 1.0
            vehicle.destroy()


def test_a_vehicle_follows_the_height_of_a_hilly_road(town04):
    """Placed all along a lane that climbs, it has the road's height and its pitch."""
    carla_map = town04.get_map()
    steep = max(
        carla_map.generate_waypoints(10.0), key=lambda w: abs(math.sin(math.radians(w.transform.rotation.pitch)))
    )
    vehicle = spawn(town04, carla_map.get_spawn_points()[0])
    here, heights = steep, []
    for _ in range(12):
        vehicle.set_transform(here.transform)
        town04.tick()
        snapshot = town04.get_snapshot().find(vehicle.id).get_transform()
        heights.append(snapshot.location.z)
        assert snapshot.location.z == pytest.approx(here.transform.location.z, abs=0.1)
        difference = snapshot.rotation.pitch - here.transform.rotation.pitch
        assert (difference + 180.0) % 360.0 - 180.0 == pytest.approx(0.0, abs=0.6)
        here = here.next(5.0)[0]
    assert np.ptp(heights) > 2.0
    vehicle.destroy()


@pytest.fixture
def maps_server():
    with StandIn(None, "--town", str(maps_folder())) as server:
        yield server


def test_the_camera_shows_road_ahead_on_a_real_map(maps_server, make_env):
    env = make_env(maps_server, town="Town07", frame_size=64)
    frame, info = env.reset(seed=3)
    assert info["town"] == "Town07"
    grey = np.ptp(frame[40:, 24:40].astype(int), axis=2) < 20
    assert grey.mean() > 0.5


def test_buildings_and_poles_keep_clear_of_every_lane(world):
    carla = pytest.importorskip("carla.libcarla")
    waypoints = world.get_map().generate_waypoints(2.0)
    places = np.array([(found.transform.location.x, found.transform.location.y) for found in waypoints])
    widths = np.array([found.lane_width for found in waypoints])
    for label, least in ((carla.CityObjectLabel.Buildings, 50), (carla.CityObjectLabel.Poles, 20)):
        boxes = world.get_level_bbs(label)
        assert len(boxes) > least
        for box in boxes:
            yaw = math.radians(box.rotation.yaw)
            along = (places - (box.location.x, box.location.y)) @ (math.cos(yaw), math.sin(yaw))
            across = (places - (box.location.x, box.location.y)) @ (-math.sin(yaw), math.cos(yaw))
            outside = np.hypot(
                np.maximum(np.abs(along) - box.extent.x, 0), np.maximum(np.abs(across) - box.extent.y, 0)
            )
            assert (outside > widths / 2).all()


@pytest.mark.parametrize("label", ["Buildings", "Poles"])
def test_whoever_drives_into_a_building_or_a_pole_has_a_collision(town04, label):
    carla = pytest.importorskip("carla.libcarla")
    box = town04.get_level_bbs(getattr(carla.CityObjectLabel, label))[0]
    yaw = math.radians(box.rotation.yaw)
    way = box.extent.y + 12.0
    start = carla.Transform(
        carla.Location(
            box.location.x + way * math.sin(yaw),
            box.location.y - way * math.cos(yaw),
            box.location.z - box.extent.z + 0.3,
        ),
        carla.Rotation(yaw=box.rotation.yaw + 90.0),
    )
    vehicle = spawn(town04, start)
    blueprint = town04.get_blueprint_library().find("sensor.other.collision")
    sensor = town04.spawn_actor(blueprint, carla.Transform(), attach_to=vehicle)
    hits = []
    sensor.listen(lambda event: hits.append(event.other_actor.type_id))
    for _ in range(120):
        vehicle.apply_control(carla.VehicleControl(throttle=0.6))
        town04.tick()
        time.sleep(0.01)  # the sensor's events come on a thread of their own
        if hits:
            break
    deadline = time.monotonic() + 60.0
    while not hits and time.monotonic() < deadline:
        time.sleep(0.01)
    here = vehicle.get_location()
    assert hits[0] == f"static.{label.lower().rstrip('s')}"
    assert math.hypot(here.x - box.location.x, here.y - box.location.y) > vehicle.bounding_box.extent.x
    sensor.stop()
    sensor.destroy()
    vehicle.destroy()
