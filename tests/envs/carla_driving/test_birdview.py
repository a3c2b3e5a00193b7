"""The bird's-eye view on maps of CARLA's own towns, where they are at hand, and on the stand-in's small towns."""

import math
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wm_gym.envs.carla.birdview import COLORS, LIGHT_LAYERS, BirdView, BirdViewConfig, EpisodeView, Layer
from wm_gym.envs.carla.birdview_benchmark import measure_birdview
from wm_gym.envs.carla.route import Route, RoutePlanner
from wm_gym.envs.carla.state import EgoState, RoadUser
from wm_gym.envs.carla.stop_lines import StopLine
from wm_gym.envs.carla.town_raster import Ground, TownRaster, cached_raster, raster_town
from wm_gym.errors import SimulatorError

_MAPS = Path(__file__).parents[4] / "shared" / "carla-maps"
_REAL_TOWNS = ("Town01", "Town02", "Town04", "Town06", "Town07", "Town10HD")
_SMALL_TOWNS = ("small Town01", "small Town02")
_SIZES = (64, 128)
_HALF_LENGTH, _HALF_WIDTH = 2.4, 1.0


def read_map(name: str):
    carla = pytest.importorskip("carla")
    if name in _SMALL_TOWNS:
        from wm_gym.envs.carla_light.small_towns import make_town

        return carla.Map(name, make_town(name.removeprefix("small ")).opendrive)
    path = _MAPS / f"{name}.xodr"
    if not path.exists():
        pytest.skip(f"needs {path}")
    return carla.Map(name, path.read_text())


@pytest.fixture(scope="module", params=["small Town01", "Town01", "Town04", "Town10HD"])
def town_map(request):
    return read_map(request.param)


@pytest.fixture(scope="module")
def town_raster(town_map):
    return raster_town(town_map)


@pytest.fixture(scope="module")
def small_map():
    return read_map("small Town02")


def on_ground(raster: TownRaster, points) -> np.ndarray:
    columns, rows = np.floor((np.asarray(points) - raster.origin) * raster.pixels_per_metre).astype(int).T
    return raster.surface[rows, columns]


def empty_town(side_m: float = 512.0) -> TownRaster:
    return TownRaster(np.full((int(side_m), int(side_m)), Ground.NOTHING, np.uint8), 1.0, (-side_m / 2, -side_m / 2))


def straight_route(length: int = 200, heading: float = 0.0) -> Route:
    distances = np.arange(length + 1, dtype=np.float64)
    direction = np.array([math.cos(math.radians(heading)), math.sin(math.radians(heading))])
    return Route(
        points=distances[:, None] * direction,
        headings=np.full(length + 1, heading),
        distances=distances,
        lane_widths=np.full(length + 1, 3.5),
        in_junction=np.zeros(length + 1, bool),
        commands=np.full(length + 1, 4),
    )


def line_across(x: float, light_id: int = 1) -> StopLine:
    """For traffic along the x axis."""
    return StopLine(light_id, (x, -1.75), (x, 1.75), 0.0, 0, 0)


def pose(x: float, y: float, yaw: float) -> EgoState:
    return EgoState(x, y, 0.0, yaw, 5.0, (0.0, 0.0), 0.0)


def pose_on(route: Route, distance: float) -> EgoState:
    x, y = route.point_at(distance)
    yaw = np.interp(distance, route.distances, np.unwrap(route.headings, period=360))
    return pose(float(x), float(y), float(yaw))


def start(route: Route, lines=()) -> EpisodeView:
    return EpisodeView.of(route, lines, _HALF_LENGTH, _HALF_WIDTH)


def pixel(config: BirdViewConfig, ego: EgoState, x: float, y: float) -> tuple[float, float]:
    """Row and column, not rounded, of a place in the world."""
    yaw = math.radians(ego.yaw)
    ahead = math.cos(yaw) * (x - ego.x) + math.sin(yaw) * (y - ego.y)
    right = math.cos(yaw) * (y - ego.y) - math.sin(yaw) * (x - ego.x)
    row = config.height * (1 - config.ego_from_bottom) - ahead / config.scale - 0.5
    return row, config.width / 2 + right / config.scale - 0.5


def has_color(frame: np.ndarray, layer: Layer) -> np.ndarray:
    return (np.abs(frame.astype(int) - COLORS[layer]) <= 10).all(axis=-1)


def place_of(config: BirdViewConfig, chosen: np.ndarray) -> tuple[float, float]:
    """Metres ahead of the ego vehicle and to its right of the middle of some pixels."""
    rows, columns = np.nonzero(chosen)
    ahead = (config.height * (1 - config.ego_from_bottom) - (rows.mean() + 0.5)) * config.scale
    return ahead, (columns.mean() + 0.5 - config.width / 2) * config.scale


# --- The ground -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*_SMALL_TOWNS, *_REAL_TOWNS])
def test_lanes_are_road_and_what_is_far_from_them_is_not(name):
    """By the map's own answer, at random places; nearer to a lane's edge than half a metre either may be drawn."""
    carla = pytest.importorskip("carla")
    town_map = read_map(name)
    town_raster = raster_town(town_map)
    drivable = carla.LaneType.Driving | carla.LaneType.Bidirectional | carla.LaneType.Parking
    centres = [waypoint.transform.location for waypoint in town_map.generate_waypoints(7.0)]
    assert (on_ground(town_raster, [(place.x, place.y) for place in centres]) >= Ground.ROAD - 5).all()

    rng = np.random.default_rng(0)
    num_road = num_other = num_wrong = 0
    for _ in range(600):
        near = centres[rng.integers(len(centres))]
        x, y = near.x + rng.uniform(-14, 14), near.y + rng.uniform(-14, 14)
        lane = town_map.get_waypoint(carla.Location(x, y, near.z), lane_type=drivable)
        centre = lane.transform.location
        beyond_edge = math.hypot(x - centre.x, y - centre.y) - lane.lane_width / 2
        is_road = on_ground(town_raster, [(x, y)])[0] >= Ground.ROAD - 5
        if beyond_edge < -0.5:
            assert is_road
            num_road += 1
        elif beyond_edge > 0.5:
            num_other += 1
            num_wrong += is_road
    assert num_road > 100
    assert num_other > 100
    assert num_wrong <= 0.04 * num_other  # a wider lane further away, or a bridge

    assert town_raster.surface.nbytes < 40e6
    assert all(side % 64 == 0 for side in town_raster.surface.shape)
    edges = *town_raster.surface[[0, -1]], *town_raster.surface[:, [0, -1]].T
    assert all((edge == Ground.NOTHING).all() for edge in edges)


def test_markings_are_where_the_stand_in_paints_them():
    from wm_gym.envs.carla_light.small_towns import make_town

    town = make_town("Town01")
    raster = raster_town(read_map("small Town01"))
    parts = {False: [], True: []}
    for marking in town.markings:
        steps = np.diff(marking.points, axis=0)
        lengths = np.hypot(*steps.T)
        if lengths.sum() < 30:
            continue
        at = np.arange(5.0, lengths.sum() - 5.0, 0.25)
        along = np.concatenate(([0.0], np.cumsum(lengths)))
        points = np.stack([np.interp(at, along, marking.points[:, axis]) for axis in (0, 1)], axis=1)
        greys = on_ground(raster, points)
        kind = Ground.BROKEN_LINE if marking.dashed else Ground.SOLID_LINE
        parts[marking.dashed].append(float((greys > Ground.ROAD + (kind - Ground.ROAD) / 4).mean()))
        assert greys.max() == kind
    assert len(parts[False]) > 5
    assert len(parts[True]) > 5
    assert min(parts[False]) > 0.9
    assert min(parts[True]) > 0.35
    assert max(parts[True]) < 0.65


def test_a_map_without_driving_lanes_is_refused(small_map):
    carla = pytest.importorskip("carla")
    text = small_map.to_opendrive().replace('type="driving"', 'type="sidewalk"')
    with pytest.raises(SimulatorError, match="'empty' has no driving lanes, so no view of it can be drawn"):
        raster_town(carla.Map("empty", text))


# --- The cache --------------------------------------------------------------------------------------------------------


def are_equal(one: TownRaster, other: TownRaster) -> bool:
    return (
        np.array_equal(one.surface, other.surface)
        and one.pixels_per_metre == other.pixels_per_metre
        and one.origin == other.origin
    )


def test_a_raster_is_drawn_once_for_each_map_and_setting(small_map, tmp_path, monkeypatch):
    monkeypatch.setenv("WM_GYM_CACHE", str(tmp_path))
    drawn = raster_town(small_map)
    assert are_equal(cached_raster(small_map), drawn)
    (path,) = (tmp_path / "towns").iterdir()
    # What the file says is what counts from now on.
    np.savez_compressed(path, surface=drawn.surface, pixels_per_metre=4.0, origin=np.array([1.0, 2.0]))
    assert cached_raster(small_map).origin == (1.0, 2.0)
    assert cached_raster(small_map, pixels_per_metre=2).pixels_per_metre == 2.0
    assert are_equal(cached_raster(read_map("small Town01")), raster_town(read_map("small Town01")))
    assert len(list((tmp_path / "towns").iterdir())) == 3


class _Intruder:
    def __reduce__(self):
        return os.mkdir, (str(Path(os.environ["WM_GYM_CACHE"]) / "intruded"),)


def _damages(path: Path):
    content = path.read_bytes()
    middle = len(content) // 2
    yield "cut", lambda: path.write_bytes(content[:middle])
    yield "empty", lambda: path.write_bytes(b"")
    yield "text", lambda: path.write_text("hello")
    yield "a byte", lambda: path.write_bytes(content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :])
    sound = {"surface": np.full((64, 64), Ground.NOTHING, np.uint8), "pixels_per_metre": 4.0, "origin": np.zeros(2)}
    yield "code", lambda: np.savez(path, **{**sound, "surface": np.array([_Intruder()], dtype=object)})
    yield "no surface", lambda: np.savez(path, pixels_per_metre=4.0, origin=np.zeros(2))
    yield "other type", lambda: np.savez(path, **{**sound, "surface": np.zeros((64, 64))})
    yield "other size", lambda: np.savez(path, **{**sound, "surface": np.zeros((50, 64), np.uint8)})
    yield "other greys", lambda: np.savez(path, **{**sound, "surface": np.ones((64, 64), np.uint8)})
    yield "no place", lambda: np.savez(path, **{**sound, "origin": np.array([np.nan, 0.0])})
    yield "no scale", lambda: np.savez(path, **{**sound, "pixels_per_metre": 0.0})
    yield "bare array", lambda: zipfile.ZipFile(path, "w").close()


def test_a_damaged_file_is_drawn_again(small_map, tmp_path, monkeypatch):
    monkeypatch.setenv("WM_GYM_CACHE", str(tmp_path))
    drawn = cached_raster(small_map)
    (path,) = (tmp_path / "towns").iterdir()
    sound = path.read_bytes()
    for name, damage in _damages(path):
        damage()
        assert path.read_bytes() != sound, name
        assert are_equal(cached_raster(small_map), drawn), name
        assert path.read_bytes() == sound, name
    assert not (tmp_path / "intruded").exists()


def test_a_folder_that_cannot_be_written_costs_time_only(small_map, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert are_equal(cached_raster(small_map, folder=tmp_path / "file" / "towns"), raster_town(small_map))


# --- The picture ------------------------------------------------------------------------------------------------------


def test_what_a_driver_has_to_stop_for_is_in_the_picture():
    for size in (64, 128, 192, 256):
        assert BirdViewConfig(width=size, height=size).ahead_m >= 45
    assert BirdViewConfig(metres_per_pixel=0.2, ego_from_bottom=0.25).ahead_m == pytest.approx(0.75 * 128 * 0.2)


@pytest.mark.parametrize("size", _SIZES)
def test_points_of_the_route_are_drawn_where_the_geometry_says(town_map, town_raster, size):
    config = BirdViewConfig(width=size, height=size)
    view = BirdView(config, town_raster)
    planner = RoutePlanner(town_map, spacing=1.0)
    rng = np.random.default_rng(size)
    places = [waypoint.transform.location for waypoint in town_map.generate_waypoints(25.0)]
    num_checked = 0
    for _ in range(6):
        route = planner.draw(places[rng.integers(len(places))], rng, 150, 300)
        distance = float(rng.uniform(0, 100))
        ego = replace(pose_on(route, distance), yaw=pose_on(route, distance).yaw + rng.uniform(-30, 30))
        frame = view.draw(start(route), ego, distance, (), {})
        beyond_ego = (route.distances > distance + 5) & (route.distances < distance + 45)
        for x, y in route.points[beyond_ego]:
            row, column = (round(value) for value in pixel(config, ego, x, y))
            if 0 <= row < size and 0 <= column < size:
                assert has_color(frame, Layer.ROUTE)[row, column]
                num_checked += 1
        # What lies behind is not drawn, and nothing else has the route's colour.
        x, y = ego.x - 4 * math.cos(math.radians(ego.yaw)), ego.y - 4 * math.sin(math.radians(ego.yaw))
        assert not has_color(frame, Layer.ROUTE)[tuple(round(value) for value in pixel(config, ego, x, y))]
        assert has_color(frame, Layer.ROUTE).mean() < 0.15
    assert num_checked > 100


@pytest.mark.parametrize("size", _SIZES)
def test_the_ground_is_drawn_where_the_geometry_says(town_map, town_raster, size):
    config = BirdViewConfig(width=size, height=size)
    view = BirdView(config, town_raster)
    route = straight_route()
    rng = np.random.default_rng(0)
    places = [waypoint.transform.location for waypoint in town_map.generate_waypoints(10.0)]
    differences = []
    for _ in range(10):
        place = places[rng.integers(len(places))]
        ego = pose(place.x, place.y, float(rng.uniform(-180, 180)))
        frame = view.draw(start(route), ego, route.length, (), {})
        assert (frame[..., 0] == frame[..., 1])[: size // 2].all()
        for _ in range(40):
            x, y = place.x + rng.uniform(-30, 30), place.y + rng.uniform(-30, 30)
            row, column = (round(value) for value in pixel(config, ego, x, y))
            around = np.array([(x + dx, y + dy) for dx in (-1.5, 0, 1.5) for dy in (-1.5, 0, 1.5)])
            size_m = np.array(town_raster.surface.shape[::-1]) / town_raster.pixels_per_metre
            inside = ((around >= town_raster.origin) & (around < np.add(town_raster.origin, size_m))).all()
            if 0 <= row < 0.7 * size and 0 <= column < size and inside:
                grounds = set(on_ground(town_raster, around).tolist())
                if len(grounds) == 1:  # not beside an edge
                    differences.append(abs(int(frame[row, column, 0]) - grounds.pop()))
    assert len(differences) > 50
    assert np.mean(np.array(differences) <= 12) > 0.95  # a line may pass between the places that were asked


@pytest.mark.parametrize("size", _SIZES)
@pytest.mark.parametrize("yaw", [0.0, 37.0, -120.0])
def test_a_vehicle_ten_metres_ahead_is_drawn_ten_metres_ahead(size, yaw):
    config = BirdViewConfig(width=size, height=size)
    view = BirdView(config, empty_town())
    ego, route = pose(3.0, -7.0, yaw), straight_route()
    radians = math.radians(yaw)
    cos, sin = math.cos(radians), math.sin(radians)
    # 10 m ahead, 4 m to the right, and it heads to the left of the ego vehicle.
    x, y = ego.x + 10 * cos - 4 * sin, ego.y + 10 * sin + 4 * cos
    car = RoadUser(1, "vehicle", x, y, yaw - 90, 3.0, _HALF_LENGTH, 1.2)
    frame = view.draw(start(route), ego, route.length, (car,), {})
    body, front = has_color(frame, Layer.VEHICLE), has_color(frame, Layer.VEHICLE_FRONT)
    touched = (frame != view.draw(start(route), ego, route.length, (), {})).any(axis=-1)
    assert place_of(config, touched) == pytest.approx((10, 4), abs=0.6 * config.scale)
    assert place_of(config, front)[1] < 4 < place_of(config, body)[1]
    area = 2 * _HALF_LENGTH * max(2.4, 3 * config.scale)  # nothing is drawn narrower than three pixels
    assert (body | front).sum() * config.scale**2 < area < touched.sum() * config.scale**2
    assert (body | front).sum() >= 6
    assert place_of(config, has_color(frame, Layer.EGO)) == pytest.approx((0, 0), abs=0.6 * config.scale)


def test_small_road_users_and_far_ones():
    for size in _SIZES:
        config = BirdViewConfig(width=size, height=size)
        view, route, ego = BirdView(config, empty_town()), straight_route(), pose(0.0, 0.0, 0.0)
        walker = RoadUser(1, "pedestrian", 20.0, -6.0, 77.0, 1.0, 0.2, 0.2)
        frame = view.draw(start(route), ego, route.length, (walker,), {})
        seen = (frame[..., 0] > 130) & (frame[..., 1] < 40)
        assert seen.sum() >= 4
        assert place_of(config, seen) == pytest.approx((20, -6), abs=0.6 * config.scale)
        # At the edges of the picture and far outside of it nothing goes wrong.
        alone = view.draw(start(route), ego, route.length, (), {})
        far = [RoadUser(i, "vehicle", x, y, 45.0, 0.0, 40.0, 1.0) for i, (x, y) in enumerate([(1e6, 0), (0, -1e6)])]
        assert np.array_equal(view.draw(start(route), ego, route.length, far, {}), alone)
        for x, y in [(48.0, 0.0), (-12.0, 0.0), (0.0, 30.0), (0.0, -30.0), (48.0, 30.0)]:
            edge = view.draw(start(route), ego, route.length, [RoadUser(1, "vehicle", x, y, 0.0, 0.0, 2.4, 1.0)], {})
            changed = (edge != alone).any(axis=-1)
            assert 2 <= changed.sum() <= 60


@pytest.mark.parametrize("size", _SIZES)
@pytest.mark.parametrize("state", ["red", "yellow", "green", "off", "unknown"])
def test_the_route_beyond_a_stop_line_has_the_colour_of_its_light(size, state):
    config = BirdViewConfig(width=size, height=size)
    view, route = BirdView(config, empty_town()), straight_route()
    lines = [line_across(40.0, 7), line_across(60.0, 8)]
    layer = LIGHT_LAYERS.get(state, Layer.ROUTE)

    def colored(ego_x: float, other="off") -> dict[Layer, np.ndarray]:
        ego = pose(ego_x, 0.0, 0.0)
        frame = view.draw(start(route, lines), ego, ego_x, (), {7: state, 8: other})
        at = [tuple(round(value) for value in pixel(config, ego, x, 0.0)) for x in (35.0, 50.0, 64.0)]
        return [next((Layer(i) for i in COLORS if has_color(frame, i)[place]), None) for place in at]

    assert colored(25.0) == [Layer.ROUTE, layer, Layer.ROUTE]
    assert colored(25.0, "green") == [Layer.ROUTE, layer, Layer.GREEN]
    # Once the line is passed, its light is no longer of concern.
    assert colored(41.0)[1:] == [Layer.ROUTE, Layer.ROUTE]

    frame = view.draw(start(route, lines), pose(15.0, 0.0, 0.0), 15.0, (), {7: state})
    if layer != Layer.ROUTE:
        # Many pixels, and the line itself reaches across the lane.
        assert has_color(frame, layer).sum() >= 0.6 * size
        row, _ = pixel(config, pose(15.0, 0.0, 0.0), 40.0, 0.0)
        drawn = frame.max(axis=-1).sum(axis=1, dtype=int)
        assert drawn[round(row)] > drawn[round(row) - 5] + 100


def test_a_line_that_is_not_on_the_route_is_drawn_and_colours_nothing_else():
    config = BirdViewConfig()
    view, route = BirdView(config, empty_town()), straight_route()
    beside = StopLine(3, (30.0, 5.0), (30.0, 8.5), 0.0, 0, 0)
    frame = view.draw(start(route, [beside]), pose(10.0, 0.0, 0.0), 10.0, (), {3: "red"})
    red = has_color(frame, Layer.RED)
    assert place_of(config, red) == pytest.approx((20, 6.75), abs=config.scale)
    assert red.sum() < 40


def test_colours_are_far_apart():
    colors = [np.array(color, float) for color in COLORS.values()]
    colors += [np.full(3, float(grey)) for grey in Ground if grey < 100]
    apart = [np.abs(one - other).max() for i, one in enumerate(colors) for other in colors[:i]]
    assert min(apart) >= 25  # two greys of the ground
    moving = [np.array(COLORS[layer], float) for layer in COLORS]
    assert min(np.abs(one - other).max() for i, one in enumerate(moving) for other in moving[:i]) >= 60
    lights = [np.array(COLORS[layer], float) for layer in LIGHT_LAYERS.values()]
    assert min(np.abs(one - other).max() for i, one in enumerate(lights) for other in lights[:i]) >= 150


def mirrored_raster(raster: TownRaster) -> TownRaster:
    far_y = raster.origin[1] + raster.surface.shape[0] / raster.pixels_per_metre
    return replace(raster, surface=raster.surface[::-1].copy(), origin=(raster.origin[0], -far_y))


def mirrored_route(route: Route) -> Route:
    return replace(route, points=route.points * (1, -1), headings=-route.headings)


def mirrored_line(line: StopLine) -> StopLine:
    """Its left end is the mirrored right one."""
    start, end = ((x, -y) for x, y in (line.end, line.start))
    return replace(line, start=start, end=end, heading=-line.heading)


@pytest.mark.parametrize("size", [(64, 64), (128, 75)])
def test_a_mirrored_world_gives_the_mirrored_picture(town_map, town_raster, size):
    config = BirdViewConfig(height=size[0], width=size[1])
    view, mirrored_view = BirdView(config, town_raster), BirdView(config, mirrored_raster(town_raster))
    planner = RoutePlanner(town_map, spacing=1.0)
    rng = np.random.default_rng(1)
    places = [waypoint.transform.location for waypoint in town_map.generate_waypoints(25.0)]
    for _ in range(5):
        route = planner.draw(places[rng.integers(len(places))], rng, 150, 300)
        lines = []
        for index in range(3):
            state = pose_on(route, rng.uniform(10, 140))
            across = 1.75 * np.array([-math.sin(math.radians(state.yaw)), math.cos(math.radians(state.yaw))])
            place = np.array([state.x, state.y])
            lines.append(StopLine(index, tuple(place - across), tuple(place + across), state.yaw, 0, 0))
        lights = {0: "red", 1: "yellow", 2: "green"}
        distance = float(rng.uniform(0, 100))
        ego = pose_on(route, distance)
        users = [
            RoadUser(
                i,
                "vehicle" if i % 3 else "pedestrian",
                ego.x + float(rng.uniform(-50, 50)),
                ego.y + float(rng.uniform(-50, 50)),
                float(rng.uniform(-180, 180)),
                1.0,
                *((2.4, 1.0) if i % 3 else (0.2, 0.2)),
            )
            for i in range(30)
        ]
        frame = view.draw(start(route, lines), ego, distance, users, lights)
        other = mirrored_view.draw(
            start(mirrored_route(route), [mirrored_line(line) for line in lines]),
            replace(ego, y=-ego.y, yaw=-ego.yaw),
            distance,
            [replace(user, y=-user.y, yaw=-user.yaw) for user in users],
            lights,
        )
        np.testing.assert_array_equal(frame, other[:, ::-1])


def test_a_picture_is_the_same_wherever_the_route_ends_or_the_town_does(town_raster):
    config = BirdViewConfig()
    view, route = BirdView(config, town_raster), straight_route(3)
    for x, distance in ((1e5, 0.0), (0.0, -1.0), (0.0, 99.0), (1.5, 1.5), (3.0, 3.0)):
        frame = view.draw(start(route, [line_across(2.0)]), pose(x, 0.0, 0.0), distance, (), {1: "red"})
        assert frame.shape == (128, 128, 3)
        assert frame.dtype == np.uint8
    nothing = view.draw(start(route), pose(1e5, 1e5, 0.0), route.length, (), {})
    assert (nothing[:90] == Ground.NOTHING).all()


def test_the_environments_side_needs_no_carla():
    code = (
        "import sys, wm_gym.envs.carla.birdview, wm_gym.envs.carla.birdview_benchmark;"
        "sys.exit(any(name.partition('.')[0] == 'carla' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=240).returncode == 0


def test_the_benchmark_draws():
    measured = measure_birdview(1.0, size=64)
    assert measured["pictures_per_s"] > 20
    assert measured["settings"]["road_users"] == 50
