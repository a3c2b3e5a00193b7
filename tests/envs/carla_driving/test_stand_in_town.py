"""The towns of the stand-in for CARLA's server, as CARLA's own client reads them, and the pictures of them."""

import itertools
import math
from collections import defaultdict
from xml.etree import ElementTree

import numpy as np
import pytest

from wm_gym.envs.carla_light import camera as cam
from wm_gym.envs.carla_light.camera import Box, render_rgb, render_semantic
from wm_gym.envs.carla_light.geometry import attach
from wm_gym.envs.carla_light.layout import Pose
from wm_gym.envs.carla_light.small_towns import LANE_WIDTH, TOWN_NAMES, make_town

LIGHT = "1000001"
NOWHERE = (-3000.0, 2000.0)
"""Far from all that a town has to show."""


@pytest.fixture(scope="module", params=TOWN_NAMES)
def town(request):
    return make_town(request.param)


@pytest.fixture(scope="module")
def carla():
    # Not "carla": this folder has that name, and would be imported where the client is not installed.
    return pytest.importorskip("carla.libcarla")


@pytest.fixture(scope="module")
def carla_map(carla, town):
    return carla.Map(town.name, town.opendrive)


def degrees_apart(first, second):
    return abs((first - second + 180.0) % 360.0 - 180.0)


def position(waypoint, right=0.0):
    """A waypoint ``(2,)``, or the point some metres to its right."""
    location, yaw = waypoint.transform.location, math.radians(waypoint.transform.rotation.yaw)
    return np.array((location.x - right * math.sin(yaw), location.y + right * math.cos(yaw)))


def lies_in_one(polygons, points, tolerance=0.0):
    """Whether each of ``(N, 2)`` points is in one of the convex polygons, or within some metres of it."""
    inside = np.zeros(len(points), bool)
    for polygon in polygons:
        edges = np.roll(polygon, -1, axis=0) - polygon
        normals = np.stack((-edges[:, 1], edges[:, 0]), axis=1) / np.linalg.norm(edges, axis=1, keepdims=True)
        if normals[0] @ (polygon[2] - polygon[0]) < 0.0:
            normals = -normals
        inside |= np.all(points @ normals.T >= np.sum(polygon * normals, axis=1) - tolerance, axis=1)
    return inside


def lies_in_house(house, points):
    """Whether each of ``(N, 2)`` points is under a building."""
    angle, offsets = math.radians(house.yaw), points - (house.x, house.y)
    along = offsets @ (math.cos(angle), math.sin(angle))
    across = offsets @ (-math.sin(angle), math.cos(angle))
    return (abs(along) < house.half_x) & (abs(across) < house.half_y)


def distance_to_line(points, point):
    """Metres from a point ``(2,)`` to a polyline ``(N, 2)``."""
    begins, steps = points[:-1], np.diff(points, axis=0)
    share = np.clip(np.sum((point - begins) * steps, axis=1) / np.sum(steps**2, axis=1), 0.0, 1.0)
    return np.linalg.norm(begins + share[:, None] * steps - point, axis=1).min()


def lanes(waypoints):
    return [(waypoint.road_id, waypoint.lane_id) for waypoint in waypoints]


def reached(graph, start):
    found, ahead = {start}, [start]
    while ahead:
        for following in graph[ahead.pop()] - found:
            found.add(following)
            ahead.append(following)
    return found


class TestMap:
    def test_there_are_the_named_towns_only(self):
        assert len({make_town(name).opendrive for name in TOWN_NAMES}) == len(TOWN_NAMES)
        assert make_town("Town01") is make_town("Town01")
        with pytest.raises(ValueError, match="Town02"):
            make_town("Town03")

    def test_from_every_lane_every_other_can_be_reached(self, carla_map):
        graph = defaultdict(set)
        for before, after in (lanes(pair) for pair in carla_map.get_topology()):
            graph[before].add(after)
        driving = set(lanes(carla_map.generate_waypoints(1.0)))
        for lane in driving:
            assert reached(graph, lane) == driving

    def test_a_street_leads_on_to_all_others_of_its_junction(self, carla_map, town):
        streets_at, leads_to = defaultdict(set), defaultdict(set)
        for before, after in carla_map.get_topology():
            if after.is_junction:
                streets_at[after.junction_id].add(before.road_id)
                (out,) = after.next_until_lane_end(1.0)[-1].next(2.0)
                leads_to[after.junction_id, before.road_id].add(out.road_id)
        assert sorted(map(len, streets_at.values())) == {"Town01": [3, 3, 3, 3, 4], "Town02": [3, 3]}[town.name]
        for junction, streets in streets_at.items():
            for street in streets:
                assert leads_to[junction, street] == streets - {street}

    def test_lanes_fit_together(self, carla_map, town):
        roads = ElementTree.fromstring(town.opendrive).iter("road")
        lengths = {int(road.get("id")): float(road.get("length")) for road in roads}
        for before, after in carla_map.get_topology():
            # Just within the road: the client finds no waypoint at its very end.
            stations = [
                lengths[lane.road_id] - 1e-4 if (lane.lane_id < 0) == at_end else 1e-4
                for lane, at_end in ((before, True), (after, False))
            ]
            last, first = (
                carla_map.get_waypoint_xodr(lane.road_id, lane.lane_id, s)
                for lane, s in zip((before, after), stations, strict=True)
            )
            assert np.linalg.norm(position(last) - position(first)) < 0.01
            assert degrees_apart(last.transform.rotation.yaw, first.transform.rotation.yaw) < 0.1

    def test_lanes_have_no_kinks(self, carla_map, town):
        step = 0.5
        for road in ElementTree.fromstring(town.opendrive).iter("road"):
            for s in np.arange(0.0, float(road.get("length")) - step, step):
                here, there = (carla_map.get_waypoint_xodr(int(road.get("id")), -1, float(at)) for at in (s, s + step))
                assert np.linalg.norm(position(there) - position(here)) == pytest.approx(step, rel=0.2)
                turned = degrees_apart(there.transform.rotation.yaw, here.transform.rotation.yaw)
                assert turned < math.degrees(step / 8.0)

    def test_four_lanes_may_be_changed_and_two_may_not(self, carla, carla_map, town):
        streets = [waypoint for waypoint in carla_map.generate_waypoints(5.0) if not waypoint.is_junction]
        assert {waypoint.lane_width for waypoint in streets} == {LANE_WIDTH}
        inner = [waypoint for waypoint in streets if waypoint.lane_change == carla.LaneChange.Right]
        outer = [waypoint for waypoint in streets if waypoint.lane_change == carla.LaneChange.Left]
        assert len(inner) == len(outer) > 20 if town.name == "Town01" else not inner and not outer
        for waypoint in inner:
            right = waypoint.get_right_lane()
            assert right.lane_id * waypoint.lane_id > 0
            assert waypoint.right_lane_marking.type == carla.LaneMarkingType.Broken
            assert waypoint.left_lane_marking.type == carla.LaneMarkingType.SolidSolid
        for waypoint in streets:
            if waypoint not in inner:
                assert waypoint.right_lane_marking.type == carla.LaneMarkingType.Solid

    def test_speed_limits_are_posted(self, carla_map, town):
        signs = carla_map.get_all_landmarks_of_type("274")
        assert {sign.value for sign in signs} == {town.speed_limit}
        assert {sign.road_id for sign in signs} == {
            waypoint.road_id for waypoint in carla_map.generate_waypoints(5.0) if not waypoint.is_junction
        }


class TestSpawnPoints:
    def test_are_on_lanes_and_head_along_them(self, carla, carla_map, town):
        assert len(town.spawn_points) >= 40
        for pose in town.spawn_points:
            assert 0.2 < pose.z < 0.6
            waypoint = carla_map.get_waypoint(carla.Location(pose.x, pose.y, pose.z))
            yaw = math.radians(pose.yaw)
            aside = (position(waypoint) - (pose.x, pose.y)) @ (-math.sin(yaw), math.cos(yaw))
            assert abs(aside) < 0.1
            assert degrees_apart(waypoint.transform.rotation.yaw, pose.yaw) < 2.0
            for near in (*waypoint.next(10.0), *waypoint.previous(10.0)):
                assert not near.is_junction

    def test_keep_apart(self, town):
        for first, second in itertools.combinations(town.spawn_points, 2):
            assert math.hypot(first.x - second.x, first.y - second.y) >= 8.0


class TestLights:
    def test_are_landmarks_beside_the_lanes_they_are_for(self, carla, carla_map, town):
        landmarks = {landmark.id: landmark for landmark in carla_map.get_all_landmarks_of_type(LIGHT)}
        assert landmarks.keys() == {light.opendrive_id for light in town.lights}
        for light in town.lights:
            landmark = landmarks[light.opendrive_id]
            location = landmark.transform.location
            assert math.hypot(location.x - light.pose.x, location.y - light.pose.y) < 0.3
            waypoint = carla_map.get_waypoint(carla.Location(light.trigger.x, light.trigger.y, 0.0))
            assert waypoint.road_id == landmark.road_id
            assert degrees_apart(waypoint.transform.rotation.yaw, light.trigger.yaw) < 1.0
            assert degrees_apart(waypoint.transform.rotation.yaw + 180.0, light.pose.yaw) < 1.0
            ahead = [found.id for found in waypoint.get_landmarks_of_type(30.0, LIGHT)]
            assert ahead == [light.opendrive_id]
            assert {after.junction_id for after in waypoint.next(15.0)} == {light.junction}

    def test_trigger_covers_all_lanes_towards_the_junction(self, carla, carla_map, town):
        for light in town.lights:
            waypoint = carla_map.get_waypoint(carla.Location(light.trigger.x, light.trigger.y, 0.0))
            lanes_here = sum(
                (other.road_id, other.lane_id > 0) == (waypoint.road_id, waypoint.lane_id > 0)
                for other in (waypoint, waypoint.get_left_lane(), waypoint.get_right_lane())
                if other is not None and other.lane_type == carla.LaneType.Driving
            )
            assert 2 * light.trigger_extent[1] == pytest.approx(lanes_here * LANE_WIDTH, abs=0.6)

    def test_groups_are_opposite_arms_of_crossings_and_single_arms_elsewhere(self, carla_map, town):
        landmarks = {landmark.id: landmark for landmark in carla_map.get_all_landmarks_of_type(LIGHT)}
        for junction in {light.junction for light in town.lights}:
            lights = [light for light in town.lights if light.junction == junction]
            is_crossing = len(lights) == 4
            assert {light.group for light in lights} == ({0, 1} if is_crossing else {0, 1, 2})
            for first, second in itertools.combinations(lights, 2):
                parallel = min(degrees_apart(first.pose.yaw, second.pose.yaw + turn) for turn in (0.0, 180.0)) < 1.0
                assert (is_crossing and parallel) == (first.group == second.group)
            for light in lights:
                members = {landmark.id for landmark in carla_map.get_landmark_group(landmarks[light.opendrive_id])}
                assert members == {other.opendrive_id for other in lights if other.group == light.group}


class TestDrawnGeometry:
    def test_polygons_are_convex(self, town):
        for polygon in (*town.road_polygons, *town.sidewalk_polygons):
            edges = np.roll(polygon, -1, axis=0) - polygon
            turns = edges[:, 0] * np.roll(edges[:, 1], -1) - edges[:, 1] * np.roll(edges[:, 0], -1)
            assert np.all(turns > -1e-6) or np.all(turns < 1e-6)

    def test_roads_hold_the_lanes_and_no_more(self, carla_map, town):
        waypoints = carla_map.generate_waypoints(2.0)
        border = LANE_WIDTH / 2
        for right in (-border + 0.03, 0.0, border - 0.03):
            points = np.array([position(each, right) for each in waypoints])
            assert lies_in_one(town.road_polygons, points, 1e-3).all()
        outermost = [
            each for each in waypoints if not each.is_junction and str(each.right_lane_marking.type) == "Solid"
        ]
        beyond = np.array([position(each, border + 0.03) for each in outermost])
        assert not lies_in_one(town.road_polygons, beyond).any()
        assert lies_in_one(town.sidewalk_polygons, beyond, 1e-3).all()

    def test_markings_are_on_the_road(self, town):
        for marking in town.markings:
            assert lies_in_one(town.road_polygons, marking.points, 0.01).all()

    def test_markings_are_those_of_the_map(self, carla, carla_map, town):
        middle = {carla.LaneMarkingType.Broken: 0.0, carla.LaneMarkingType.Solid: 0.0}
        double = {carla.LaneMarkingType.SolidSolid: 0.15}
        for waypoint in carla_map.generate_waypoints(10.0):
            if waypoint.is_junction:
                continue
            for side, seen in ((-1, waypoint.left_lane_marking), (1, waypoint.right_lane_marking)):
                is_edge = side > 0 and seen.type == carla.LaneMarkingType.Solid
                inwards = 0.075 if is_edge else (middle | double)[seen.type]
                point = position(waypoint, side * (LANE_WIDTH / 2 - inwards))
                painted = [
                    marking
                    for marking in town.markings
                    if marking.dashed == (seen.type == carla.LaneMarkingType.Broken)
                    and marking.width == pytest.approx(seen.width)
                    and distance_to_line(marking.points, point) < 0.03
                ]
                assert len(painted) == 1
                red, _, blue = painted[0].color
                assert (red > 2 * blue) == (seen.color == carla.LaneMarkingColor.Yellow)

    def test_buildings_keep_clear_of_lanes_and_sidewalks(self, carla_map, town):
        assert len(town.buildings) > 10
        waypoints = carla_map.generate_waypoints(1.0)
        street = np.array([position(each, right) for each in waypoints for right in (-1.75, 0.0, 1.75, 3.75)])
        for house in town.buildings:
            assert not lies_in_house(house, street).any()


def tags(town, camera, boxes=(), *, fov=90.0, width=128, height=96):
    """Semantic tags ``(height, width)``."""
    picture = render_semantic(town, camera, fov, width, height, boxes)
    assert (picture[..., :2] == 0).all()
    assert (picture[..., 3] == 255).all()
    return picture[..., 2]


def bounds(mask):
    """First and last column, first and last row of a mask, as edges of pixels."""
    rows, columns = np.nonzero(mask)
    return columns.min(), columns.max() + 1, rows.min(), rows.max() + 1


def nowhere(x=0.0, y=0.0, z=0.0, **angles):
    return Pose(NOWHERE[0] + x, NOWHERE[1] + y, z, **angles)


class TestCamera:
    def test_a_box_ahead_is_where_a_pinhole_sees_it(self, town):
        walker = Box(nowhere(x=10.0, y=2.0, z=0.5), (0.5, 1.0, 1.5), (200, 0, 0), cam.PEDESTRIAN)
        mask = tags(town, nowhere(z=2.0), [walker], fov=60.0, width=200, height=120) == cam.PEDESTRIAN
        focal = 100.0 / math.tan(math.radians(30.0))
        # The front face, 9.5 metres ahead, is the widest and the highest that is seen.
        left, right = 100 + focal * 1.0 / 10.5, 100 + focal * 3.0 / 9.5
        top, bottom = 60 - focal * 1.5 / 9.5, 60 + focal * 1.5 / 9.5
        np.testing.assert_allclose(bounds(mask), (left, right, top, bottom), atol=1.0)
        assert mask[62:70, 118:150].all()

    @pytest.mark.parametrize("seed", range(8))
    def test_a_box_is_where_the_clients_matrices_put_it(self, carla, town, seed):
        rng = np.random.default_rng(seed)
        angles = {key: float(rng.uniform(-25, 25)) for key in ("pitch", "yaw", "roll")}
        camera = nowhere(z=30.0, **angles)
        turned = {key: float(rng.uniform(-180, 180)) for key in ("pitch", "yaw", "roll")}
        where = attach(camera, Pose(*rng.uniform((15, -4, -3), (25, 4, 3)).tolist()))
        box = Box(Pose(where.x, where.y, where.z, **turned), (1.5, 0.8, 1.0), (0, 0, 200), cam.PEDESTRIAN)

        def matrix(pose):
            transform = carla.Transform(
                carla.Location(pose.x, pose.y, pose.z), carla.Rotation(pose.pitch, pose.yaw, pose.roll)
            )
            return np.array(transform.get_matrix())

        corners = np.array([(x, y, z, 1) for x in (-1.5, 1.5) for y in (-0.8, 0.8) for z in (0, 2)]).T
        depth, right, up, _ = np.linalg.inv(matrix(camera)) @ matrix(box.pose) @ corners
        focal = 160 / math.tan(math.radians(50.0))
        u, v = 160 + focal * right / depth, 120 - focal * up / depth
        mask = tags(town, camera, [box], fov=100.0, width=320, height=240) == cam.PEDESTRIAN
        np.testing.assert_allclose(bounds(mask), (u.min(), u.max(), v.min(), v.max()), atol=1.05)

    def test_what_is_on_the_ground_is_where_the_town_has_it(self, town):
        rng = np.random.default_rng(3)
        camera = attach(town.spawn_points[5], Pose(1.0, 0.3, 6.0, pitch=-35.0))
        picture = tags(town, camera, width=160, height=160)
        points, seen = [], []
        for row, column in rng.integers(3, 157, (400, 2)):
            around = picture[row - 3 : row + 4, column - 3 : column + 4]
            if np.ptp(around) == 0 and around[0, 0] in (cam.ROAD, cam.SIDEWALK, cam.TERRAIN):
                ray = attach(camera, Pose(80.0, column + 0.5 - 80.0, 80.0 - row - 0.5))
                share = camera.z / (camera.z - ray.z)
                points.append((camera.x + share * (ray.x - camera.x), camera.y + share * (ray.y - camera.y)))
                seen.append(around[0, 0])
        points, seen = np.array(points), np.array(seen)
        assert set(seen.tolist()) == {cam.ROAD, cam.SIDEWALK, cam.TERRAIN}
        np.testing.assert_array_equal(lies_in_one(town.road_polygons, points), seen == cam.ROAD)
        np.testing.assert_array_equal(lies_in_one(town.sidewalk_polygons, points), seen == cam.SIDEWALK)

    def test_a_driver_sees_road_below_and_sky_above(self, town):
        skies = 0
        for pose in town.spawn_points:
            picture = tags(town, attach(pose, Pose(1.0, 0.0, 1.5)), width=64, height=64)
            assert np.isin(picture[50:, 24:40], (cam.ROAD, cam.ROAD_LINE)).all()
            assert not np.isin(picture[:30], (cam.ROAD, cam.ROAD_LINE, cam.SIDEWALK, cam.TERRAIN)).any()
            skies += np.mean(picture[:20, 22:42] == cam.SKY) > 0.9
        assert skies > 0.8 * len(town.spawn_points)

    def test_what_passes_the_camera_is_cut(self, town):
        wall = Box(nowhere(y=3.0), (50.0, 0.5, 2.0), (90, 90, 90), cam.PEDESTRIAN)
        mask = tags(town, nowhere(z=2.0), [wall], width=200, height=200) == cam.PEDESTRIAN
        assert not mask[:, :100].any()
        for column in (125, 150, 199):
            depth = 100 * 2.5 / (column + 0.5 - 100)  # of the near side, 2.5 metres to the right
            top, bottom = np.flatnonzero(mask[:, column])[[0, -1]]
            np.testing.assert_allclose((top, bottom + 1), (100 - 100 * 2 / depth, 100 + 100 * 2 / depth), atol=2.0)

    def test_nothing_is_seen_behind_the_camera(self, town):
        camera = nowhere(z=2.0, yaw=70.0)
        behind = [
            Box(attach(camera, Pose(-depth, right, -2.0)), (1.0, 1.0, 1.0), (0, 0, 0), cam.PEDESTRIAN)
            for depth, right in ((3.0, 0.0), (2.0, 5.0), (40.0, -30.0))
        ]
        np.testing.assert_array_equal(tags(town, camera, behind), tags(town, camera))

    def test_any_pose_gives_a_picture(self, town):
        rng = np.random.default_rng(0)
        house = town.buildings[0]
        cameras = [
            Pose(house.x, house.y, 1.0),
            Pose(0.0, 0.0, -1.0),
            Pose(0.0, 0.0, 0.0),
            Pose(0.0, 0.0, 50.0, pitch=90.0),
        ]
        for _ in range(60):
            x, y, z = rng.uniform((-150, -120, 0.1), (150, 120, 60)).tolist()
            cameras.append(Pose(x, y, z, *rng.uniform(-180, 180, 3).tolist()))
        for camera in cameras:
            assert render_rgb(town, camera, 110.0, 48, 32, []).shape == (32, 48, 4)
            known = (cam.ROAD, cam.SIDEWALK, cam.BUILDING, cam.POLE, cam.TERRAIN, cam.SKY, cam.ROAD_LINE)
            assert np.isin(tags(town, camera, fov=110.0, width=48, height=32), known).all()

    def test_from_above_north_of_the_yaw_is_up(self, town):
        box = Box(nowhere(x=12.0, y=5.0), (2.0, 1.0, 0.01), (0, 0, 0), cam.PEDESTRIAN)
        mask = tags(town, nowhere(z=20.0, pitch=-90.0), [box], width=200, height=200) == cam.PEDESTRIAN
        np.testing.assert_allclose(bounds(mask), (120, 130, 30, 50), atol=1.0)  # 5 pixels to the metre
        turned = tags(town, nowhere(z=20.0, pitch=-90.0, yaw=90.0), [box], width=200, height=200) == cam.PEDESTRIAN
        np.testing.assert_allclose(bounds(turned), (30, 50, 70, 80), atol=1.0)

    def test_from_above_a_street_is_as_wide_as_it_is(self, town):
        pose = town.spawn_points[0]
        picture = tags(town, Pose(pose.x, pose.y, 20.0, pitch=-90.0, yaw=pose.yaw), width=400, height=400)
        row = picture[200]
        lanes_across = np.isin(row, (cam.ROAD, cam.ROAD_LINE)).sum() / 10.0 / LANE_WIDTH
        assert lanes_across == pytest.approx({"Town01": 4, "Town02": 2}[town.name], abs=0.1)
        assert (row == cam.SIDEWALK).sum() / 10.0 == pytest.approx(4.0, abs=0.3)

    def test_dashes_have_gaps(self):
        town = make_town("Town01")
        marking = max((m for m in town.markings if m.dashed), key=lambda m: np.linalg.norm(m.points[1] - m.points[0]))
        (x, y), ahead = marking.points[0], marking.points[1] - marking.points[0]
        yaw = math.degrees(math.atan2(ahead[1], ahead[0]))
        camera = attach(Pose(float(x), float(y), 20.0, yaw=yaw), Pose(35.0, 0.0, pitch=-90.0))  # beyond stop lines
        painted = tags(town, camera, width=400, height=400)[::-1, 200] == cam.ROAD_LINE  # 10 pixels to the metre
        changes = np.flatnonzero(np.diff(painted))
        expected = np.cumsum([30] + [45, 30] * 4)
        np.testing.assert_allclose(changes[: len(expected)], expected, atol=2)

    def test_the_nearer_box_hides_the_farther_in_any_order(self, town):
        near = Box(nowhere(x=8.0), (0.5, 0.5, 1.0), (255, 0, 0), cam.PEDESTRIAN)
        far = Box(nowhere(x=14.0), (2.3, 1.0, 0.75), (0, 0, 255), cam.CAR)
        pictures = [tags(town, nowhere(z=1.5), order) for order in ([near, far], [far, near])]
        np.testing.assert_array_equal(*pictures)
        alone = tags(town, nowhere(z=1.5), [near]) == cam.PEDESTRIAN
        np.testing.assert_array_equal(pictures[0] == cam.PEDESTRIAN, alone)
        assert (pictures[0] == cam.CAR).any()

    def test_a_house_hides_what_is_behind_it(self, town):
        house = town.buildings[0]
        center = Pose(house.x, house.y, 1.0, yaw=house.yaw)
        camera = attach(center, Pose(-house.half_x - 3.0, 0.0, 0.5))
        box = Box(attach(center, Pose(house.half_x + 1.5, 0.0, -1.0)), (0.5, 0.5, 1.0), (0, 0, 0), cam.PEDESTRIAN)
        assert not (tags(town, camera, [box]) == cam.PEDESTRIAN).any()
        assert (
            tags(town, attach(center, Pose(house.half_x + 4.0, 0.0, 0.5, yaw=180.0)), [box]) == cam.PEDESTRIAN
        ).any()

    def test_colors(self, town):
        camera = nowhere(z=1.5)
        red = Box(nowhere(x=6.0), (0.5, 3.0, 1.0), (250, 20, 20), cam.PEDESTRIAN)
        picture = render_rgb(town, camera, 90.0, 64, 64, [red])
        assert picture.dtype == np.uint8
        assert (picture[..., 3] == 255).all()
        blue, green, red_part = picture[34, 32, :3].astype(int)
        assert red_part > 4 * max(blue, green)
        sky, grass = picture[2, 32].astype(int), picture[60, 32].astype(int)
        assert sky[0] > sky[1] > sky[2]
        assert grass[1] > max(grass[0], grass[2])
        np.testing.assert_array_equal(render_rgb(town, camera, 90.0, 64, 64, [red]), picture)

    def test_night_is_darker(self, town):
        camera = attach(town.spawn_points[3], Pose(1.0, 0.0, 1.5))
        day, night = (render_rgb(town, camera, 90.0, 64, 64, [], brightness=b)[..., :3].mean() for b in (1.0, 0.4))
        assert night == pytest.approx(0.4 * day, rel=0.03)

    def test_fog_takes_the_contrast_of_what_is_far(self, town):
        boxes = [Box(nowhere(x=x, y=y), (0.5, 3.0, 3.0), (250, 0, 0), cam.PEDESTRIAN) for x, y in ((5, -4), (60, 6))]

        def redness(fog):
            picture = render_rgb(town, nowhere(z=1.0), 90.0, 128, 128, boxes, fog=fog).astype(int)
            return tuple(picture[62, column, 2] - picture[62, column, 0] for column in (30, 70))

        (near_clear, far_clear), (near_fog, far_fog) = redness(0.0), redness(1.0)
        assert near_clear == far_clear > 100
        assert near_fog > 0.6 * near_clear
        assert far_fog < 0.1 * far_clear

    def test_a_driver_at_the_stop_line_sees_the_light(self, town):
        for light in town.lights:
            driver = attach(light.trigger, Pose(2.0, 0.0, 0.5))
            head = cam.traffic_light_head(light, (0, 255, 0))
            assert (tags(town, driver, [head]) == cam.TRAFFIC_LIGHT).sum() > 20
            assert (tags(town, driver) == cam.POLE).any()
