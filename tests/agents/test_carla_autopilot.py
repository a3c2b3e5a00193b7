"""Closed loop: the autopilot drives a kinematic bicycle on routes of a real map."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from wm_gym.agents.autopilots import make_autopilot
from wm_gym.agents.autopilots.carla import (
    CarlaAutopilot,
    CarlaSimulator,
    PatientAutopilot,
    RecklessAutopilot,
    bend_speeds,
    following_acceleration,
)
from wm_gym.envs.carla.route import Command, Route, RoutePlanner, RouteState, RouteTracker
from wm_gym.envs.carla.state import EgoState, RoadUser
from wm_gym.errors import SimulatorError

carla = pytest.importorskip("carla")
from wm_gym.envs.carla_light.small_towns import make_town  # noqa: E402 - its geometry is for CARLA's client

LIMIT = 50 / 3.6
HALF_LENGTH = 2.45
NO_FRAME = np.zeros((8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def planner():
    return RoutePlanner(carla.Map("Town01", make_town("Town01").opendrive), spacing=1.0)


@pytest.fixture(scope="module")
def starts():
    return [carla.Location(x=pose.x, y=pose.y) for pose in make_town("Town01").spawn_points]


@pytest.fixture(scope="module")
def straight() -> Route:
    """400 m straight on, to the north-east."""
    distances = np.arange(401.0)
    return Route(
        points=distances[:, None] * (math.cos(math.radians(-30)), math.sin(math.radians(-30))),
        headings=np.full(401, -30.0),
        distances=distances,
        lane_widths=np.full(401, 3.5),
        in_junction=np.zeros(401, dtype=bool),
        commands=np.full(401, Command.LANE_FOLLOW),
    )


@dataclass
class Bicycle:
    """What the autopilot sees of an environment, with a vehicle that slips sideways about its centre when it turns.

    Attributes:
        engine: m/s^2 at full throttle from a standstill.
        brakes: m/s^2 at full brake.
    """

    route: Route
    step_s: float = 0.05
    engine: float = 4.5
    brakes: float = 8.5
    max_steer_angle: float = 60.0
    wheelbase: float = 2.9
    speed_limit: float = LIMIT
    speed: float = 0.0
    lateral: float = 0.0
    turned: float = 0.0
    users: list = field(default_factory=list)
    light: object = None

    def __post_init__(self):
        heading = math.radians(self.route.headings[0])
        self.x = self.route.points[0, 0] - self.lateral * math.sin(heading)
        self.y = self.route.points[0, 1] + self.lateral * math.cos(heading)
        self.yaw = math.radians(self.route.headings[0] + self.turned)
        self.slip = self.yaw_rate = self.seconds = 0.0
        self.tracker = RouteTracker(self.route)
        self._look()

    def _look(self):
        self.route_state: RouteState = self.tracker.update(self.x, self.y, math.degrees(self.yaw))
        course = self.yaw + self.slip
        self.ego_state = EgoState(
            x=self.x,
            y=self.y,
            z=0.0,
            yaw=(math.degrees(self.yaw) + 180) % 360 - 180,
            speed=self.speed,
            velocity=(self.speed * math.cos(course), self.speed * math.sin(course)),
            yaw_rate=math.degrees(self.yaw_rate),
        )

    @property
    def unwrapped(self):
        return self

    @property
    def front(self) -> float:
        return self.route_state.distance + HALF_LENGTH

    def road_users(self):
        return [user(self.seconds) if callable(user) else user for user in self.users]

    def light_ahead(self):
        return self.light(self) if self.light else None

    def step(self, action, seconds: float = 0.01):
        steering, throttle, brake, gear = map(float, action)
        assert gear == 1
        assert abs(steering) <= 1
        assert 0 <= throttle <= 1
        assert 0 <= brake <= 1
        assert throttle == 0 or brake == 0
        for _ in range(round(self.step_s / seconds)):
            drag = 0.2 + 0.004 * self.speed**2 + self.brakes * brake
            pushed = self.speed + self.engine * throttle * (1 - self.speed / 45) * seconds
            self.speed = max(0.0, pushed - drag * seconds)
            angle = math.radians(steering * self.max_steer_angle)
            self.slip = math.atan(0.5 * math.tan(angle))
            self.yaw_rate = self.speed / self.wheelbase * math.cos(self.slip) * math.tan(angle)
            self.yaw += self.yaw_rate * seconds
            self.x += self.speed * math.cos(self.yaw + self.slip) * seconds
            self.y += self.speed * math.sin(self.yaw + self.slip) * seconds
        self.seconds += self.step_s
        self._look()


def drive(vehicle: Bicycle, seconds: float, autopilot: CarlaAutopilot | None = None) -> dict[str, np.ndarray]:
    autopilot = autopilot or CarlaAutopilot()
    autopilot.reset(vehicle, seed=0)
    rows = []
    while vehicle.seconds < seconds and vehicle.route_state.remaining > 2:
        action = autopilot.act(NO_FRAME)
        assert action.shape == (4,)
        assert action.dtype == np.float32
        vehicle.step(action)
        state, pulled = vehicle.route_state, vehicle.speed * vehicle.yaw_rate
        rows.append((vehicle.seconds, vehicle.speed, state.lateral_offset, state.heading_error, pulled, *action[:3]))
    names = ("seconds", "speed", "lateral", "heading", "pulled", "steering", "throttle", "brake")
    return dict(zip(names, np.array(rows).T, strict=True))


def user_at(route: Route, distance: float, *, kind="vehicle", speed=0.0, lateral=0.0) -> RoadUser:
    """A road user at a distance along a route, ``lateral`` metres to the right of it."""
    heading = float(np.interp(distance, route.distances, np.unwrap(route.headings, period=360)))
    side = math.radians(heading + 90)
    x, y = route.point_at(distance)
    half = (HALF_LENGTH, 1.0) if kind == "vehicle" else (0.25, 0.25)
    return RoadUser(7, kind, x + lateral * math.cos(side), y + lateral * math.sin(side), heading, speed, *half)


# --- Keeping to the lane and the speed --------------------------------------------------------------------------------

VEHICLES = [
    {},
    {"step_s": 0.1},
    {"step_s": 0.2},
    {"engine": 2.8, "brakes": 6.0, "max_steer_angle": 70.0, "wheelbase": 3.6},
    {"engine": 8.0, "brakes": 12.0, "max_steer_angle": 40.0, "wheelbase": 2.3},
]


@pytest.mark.parametrize("vehicle", VEHICLES, ids=str)
def test_it_drives_routes_to_their_end_in_the_lane_and_within_the_limit(planner, starts, vehicle):
    rng = np.random.default_rng(11)
    for start in starts[::29]:
        route = planner.draw(start, rng, 300, 450)
        bicycle = Bicycle(route, **vehicle)
        log = drive(bicycle, 120)
        assert bicycle.route_state.remaining <= 2
        assert np.abs(log["lateral"]).max() < 0.7
        assert log["speed"].max() < LIMIT + 0.2
        assert np.abs(log["pulled"]).max() < 3.3
        assert bicycle.route_state.distance / bicycle.seconds > 5  # m/s on average


def test_bends_are_taken_slowly_and_straights_at_the_limit(straight):
    assert bend_speeds(straight).min() > 100
    log = drive(Bicycle(straight), 25)
    assert log["speed"][-1] == pytest.approx(0.97 * LIMIT, abs=0.3)
    assert np.abs(log["lateral"]).max() < 1e-6

    angles = np.linspace(0, np.pi, 40)  # After 100 m, a half circle with a radius of 12 m.
    ahead = np.stack((np.arange(0.0, 100.0), np.zeros(100)), axis=1)
    points = np.concatenate((ahead, np.stack((100 + 12 * np.sin(angles), 12 - 12 * np.cos(angles)), axis=1)))
    steps = np.hypot(*np.diff(points, axis=0).T)
    bend = Route(
        points=points,
        headings=np.concatenate((np.zeros(100), np.degrees(angles))),
        distances=np.concatenate(([0.0], np.cumsum(steps))),
        lane_widths=np.full(140, 3.5),
        in_junction=np.zeros(140, dtype=bool),
        commands=np.full(140, Command.LANE_FOLLOW),
    )
    speeds = bend_speeds(bend)
    assert speeds[120] == pytest.approx(math.sqrt(2.5 * 12), rel=0.03)
    before = speeds[:95]
    slowing = -np.diff(before**2) / (2 * np.diff(bend.distances[:95]))
    assert slowing == pytest.approx(2.0, abs=1e-6)


def test_pedals_do_not_take_turns(straight):
    log = drive(Bicycle(straight), 25)
    changes = np.count_nonzero(np.diff(log["brake"] > 0)) + np.count_nonzero(np.diff(log["throttle"] > 0))
    assert changes <= 6
    settled = log["seconds"] > 15
    assert np.ptp(log["throttle"][settled]) < 0.1


@pytest.mark.parametrize(
    ("lateral", "turned", "speed"),
    [(2, 20, 0), (-2, -20, 0), (2, -20, 0), (2, 20, 8), (-2, -20, 8), (2, -20, 8), (-3, 60, 8), (0, 170, 0)],
)
def test_it_recovers_from_a_disturbance(straight, lateral, turned, speed):
    vehicle = Bicycle(straight, lateral=lateral, turned=turned, speed=speed)
    log = drive(vehicle, 20)
    assert np.abs(log["lateral"]).max() < 12
    late = log["seconds"] > 9
    assert np.abs(log["lateral"][late]).max() < 0.3
    assert np.abs(log["heading"][late]).max() < 3
    assert vehicle.route_state.distance > 80


def test_the_limit_may_change_on_the_way(straight):
    vehicle = Bicycle(straight)
    drive(vehicle, 15)
    vehicle.speed_limit = 30 / 3.6
    autopilot = CarlaAutopilot()
    log = drive(vehicle, 22, autopilot)
    assert log["speed"][-1] == pytest.approx(0.97 * 30 / 3.6, abs=0.3)


# --- Others on the way ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vehicle", VEHICLES, ids=str)
def test_it_stops_behind_a_standing_vehicle(planner, starts, vehicle):
    route = planner.draw(starts[3], np.random.default_rng(0), 300, 400)
    bicycle = Bicycle(route, users=[user_at(route, 150)], **vehicle)
    log = drive(bicycle, 45)
    assert bicycle.speed == 0
    assert 1.5 < 150 - HALF_LENGTH - bicycle.front < 5
    assert log["brake"][-1] > 0.2


def test_it_follows_a_slower_vehicle_at_a_distance(straight):
    def leader(seconds):
        return user_at(straight, 40 + 6 * seconds, speed=6.0)

    vehicle = Bicycle(straight, users=[leader])
    drive(vehicle, 45)
    gap = 40 + 6 * vehicle.seconds - HALF_LENGTH - vehicle.front
    assert vehicle.speed == pytest.approx(6, abs=0.4)
    assert 6 < gap < 18


def test_traffic_in_the_other_lanes_does_not_matter(straight):
    heading = math.radians(-30)
    behind = RoadUser(9, "vehicle", -9 * math.cos(heading), -9 * math.sin(heading), -30.0, 9.0, HALF_LENGTH, 1.0)
    others = [user_at(straight, 60, lateral=3.5), user_at(straight, 80, lateral=-3.5), behind]
    alone, among = Bicycle(straight), Bicycle(straight, users=others)
    assert np.array_equal(drive(alone, 15)["speed"], drive(among, 15)["speed"])


def test_traffic_on_a_bridge_above_or_below_does_not_matter(straight):
    hill = replace(straight, heights=np.linspace(10.0, 40.0, len(straight.points)))
    across = user_at(hill, 60)
    alone, among = Bicycle(hill), Bicycle(hill, users=[replace(across, z=20.5), replace(across, z=8.5)])
    assert np.array_equal(drive(alone, 10)["speed"], drive(among, 10)["speed"])
    blocked = Bicycle(hill, users=[replace(across, z=14.5 + 0.5)])
    drive(blocked, 15)
    assert blocked.speed == 0


def test_it_brakes_for_a_pedestrian_who_steps_onto_the_road(straight):
    """From the kerb 5 m to the right, at 1.4 m/s, when the vehicle is 30 m away."""
    begun = []

    def pedestrian(seconds):
        if vehicle.front > 170 and not begun:
            begun.append(seconds)
        walked = 1.4 * (seconds - begun[0]) if begun else 0.0
        standing = user_at(straight, 200, kind="pedestrian", lateral=5 - walked)
        speed = 1.4 if begun else 0.0
        return RoadUser(8, "pedestrian", standing.x, standing.y, standing.yaw - 90, speed, 0.25, 0.25)

    vehicle = Bicycle(straight, users=[pedestrian])
    autopilot = CarlaAutopilot()
    autopilot.reset(vehicle, 0)
    nearest = math.inf
    while vehicle.seconds < 40 and vehicle.route_state.remaining > 2:
        vehicle.step(autopilot.act(NO_FRAME))
        across = 5 - 1.4 * (vehicle.seconds - begun[0]) if begun else 5.0
        if abs(across) < 1.25 and vehicle.front < 200:
            nearest = min(nearest, 200 - vehicle.front)
        assert not (abs(across) < 1.25 and vehicle.front - 2 * HALF_LENGTH < 200 < vehicle.front)
    assert nearest > 1.0
    assert vehicle.route_state.remaining <= 2  # It goes on when the way is clear.


def crossing_vehicle(route: Route, distance: float, arrives_s: float, speed: float = 8.0):
    """A vehicle that crosses a route from the right at a constant speed and is in its middle after ``arrives_s``."""

    def where(seconds):
        on_route = user_at(route, distance, lateral=(arrives_s - seconds) * speed)
        return RoadUser(5, "vehicle", on_route.x, on_route.y, on_route.yaw - 90, speed, HALF_LENGTH, 1.0)

    return where


@pytest.mark.parametrize("arrives_s", [12.0, 13.0, 13.5, 14.0, 14.5, 15.0])
def test_it_lets_vehicles_pass_that_cross_a_junction(straight, arrives_s):
    """Undisturbed, the vehicle would be in the middle of the junction after 14 s."""
    junction = replace(straight, in_junction=np.abs(straight.distances - 150) < 12)
    vehicle = Bicycle(junction, users=[crossing_vehicle(junction, 150, arrives_s)])
    autopilot = CarlaAutopilot()
    autopilot.reset(vehicle, 0)
    while vehicle.seconds < 40 and vehicle.route_state.remaining > 2:
        vehicle.step(autopilot.act(NO_FRAME))
        across = abs(arrives_s - vehicle.seconds) * 8.0
        along = abs(150 - vehicle.route_state.distance)
        assert not (across < HALF_LENGTH + 1.0 and along < HALF_LENGTH + 1.0)
    assert vehicle.route_state.remaining <= 2


@pytest.mark.parametrize("arrives_s", [6.0, 18.0])
def test_it_does_not_wait_for_vehicles_that_cross_earlier_or_later(straight, arrives_s):
    junction = replace(straight, in_junction=np.abs(straight.distances - 150) < 12)
    among = drive(Bicycle(junction, users=[crossing_vehicle(junction, 150, arrives_s)]), 20)
    assert np.array_equal(among["speed"], drive(Bicycle(junction), 20)["speed"])


def test_oncoming_traffic_keeps_to_its_lane(straight):
    junction = replace(straight, in_junction=np.abs(straight.distances - 150) < 12)

    def oncoming(seconds):
        user = user_at(junction, 300 - 10 * seconds, lateral=-3.5)
        return replace(user, yaw=user.yaw + 180, speed=10.0)

    among = drive(Bicycle(junction, users=[oncoming]), 20)
    assert np.array_equal(among["speed"], drive(Bicycle(junction), 20)["speed"])


# --- Traffic lights ---------------------------------------------------------------------------------------------------


def light_at(place: float, state_at):
    """A light whose line is at a place on the route, seen from 60 m until the vehicle's rear is 3 m past it."""

    def look(vehicle):
        metres = place - vehicle.front
        return (metres, state_at(vehicle)) if -2 * HALF_LENGTH - 3 < metres < 60 else None

    return look


@pytest.mark.parametrize("vehicle", VEHICLES, ids=str)
def test_it_stops_before_a_red_light_and_goes_on_at_green(straight, vehicle):
    bicycle = Bicycle(straight, light=light_at(150, lambda v: "red" if v.seconds < 40 else "green"), **vehicle)
    log = drive(bicycle, 40)
    assert bicycle.speed == 0
    assert 0.2 < 150 - bicycle.front < 3
    hard = -np.diff(log["speed"])[log["speed"][1:] > 1.0] / bicycle.step_s
    assert hard.max() < 4
    drive(bicycle, 60)
    assert bicycle.front > 200


def test_a_green_light_changes_nothing(straight):
    passing = Bicycle(straight, light=light_at(150, lambda v: "green"))
    unknown = Bicycle(straight, light=light_at(150, lambda v: "unknown"))
    free = drive(Bicycle(straight), 20)["speed"]
    assert np.array_equal(drive(passing, 20)["speed"], free)
    assert np.array_equal(drive(unknown, 20)["speed"], free)


def turning_red(metres):
    """A light at 200 m that is green until the vehicle is so near, then yellow for 3 s, then red."""
    begun = []

    def state(vehicle):
        if 200 - vehicle.front < metres and not begun:
            begun.append(vehicle.seconds)
        if not begun:
            return "green"
        return "yellow" if vehicle.seconds - begun[0] < 3 else "red"

    return light_at(200, state)


@pytest.mark.parametrize(("metres", "stops"), [(10, False), (20, False), (40, True), (55, True)])
def test_at_yellow_it_stops_where_that_is_possible(straight, metres, stops):
    """At 13.5 m/s, 20 m are needed to stop with 4.5 m/s^2."""
    vehicle = Bicycle(straight, light=turning_red(metres))
    log = drive(vehicle, 30)
    if stops:
        assert vehicle.speed == 0
        assert 0 < 200 - vehicle.front < 3
    else:
        assert vehicle.front > 250
        assert log["speed"][log["seconds"] > 15].min() > 12


@pytest.mark.parametrize(("beyond", "waits"), [(2.0, True), (6.0, True), (14.0, False)])
def test_at_green_it_waits_before_the_line_until_there_is_room_beyond(straight, beyond, waits):
    """A vehicle that stands on the line when the light turns red runs it as soon as the queue moves on."""

    def queue(seconds):  # its rear stands behind the line, and moves on after a minute
        moved = max(0.0, seconds - 60) * 5
        return user_at(straight, 200 + beyond + HALF_LENGTH + moved, speed=5.0 if moved else 0.0)

    vehicle = Bicycle(straight, users=[queue], light=light_at(200, lambda v: "green"))
    drive(vehicle, 55)
    assert vehicle.speed == 0
    assert (vehicle.front < 200) is waits
    drive(vehicle, 90)
    assert vehicle.front - 2 * HALF_LENGTH > 200


@pytest.mark.parametrize("metres", [22, 24, 26])
def test_it_never_gives_up_braking_half_way(straight, metres):
    """Weak brakes make a stop that was possible harder and harder; to drive on then is to run the red light."""
    vehicle = Bicycle(straight, light=turning_red(metres), brakes=6.0)
    drive(vehicle, 30)
    assert vehicle.speed == 0
    assert vehicle.front < 200


def test_a_patient_driver_stops_at_lights_and_in_queues_and_drives_on(straight):
    queue = lambda seconds: user_at(straight, 300, speed=0.0)  # noqa: E731
    is_red = lambda v: "red" if v.seconds < 40 else "green"  # noqa: E731
    for ahead in ({"light": light_at(200, is_red)}, {"users": [queue]}):
        plain, patient = Bicycle(straight, **ahead), Bicycle(straight, **ahead)
        drive(plain, 38)
        drive(patient, 38, PatientAutopilot())
        assert plain.speed == patient.speed == 0
        assert plain.front - 15 < patient.front <= plain.front + 0.1
    vehicle = Bicycle(straight, light=light_at(200, is_red))
    assert drive(vehicle, 75, PatientAutopilot())["speed"].max() > 12
    assert vehicle.route_state.remaining < 3


@pytest.mark.parametrize("over", [0.5, 2.5, 4.0])
@pytest.mark.parametrize("driver", [CarlaAutopilot, PatientAutopilot])
def test_who_came_to_a_stand_on_the_line_of_a_red_light_waits_there(straight, over, driver):
    """A light is run by the rear; a teacher that says to drive on teaches to run it."""
    is_red = lambda v: "red" if v.seconds < 20 else "green"  # noqa: E731
    vehicle = Bicycle(straight, step_s=0.2, light=light_at(HALF_LENGTH - over, is_red))
    drive(vehicle, 19, driver())
    assert (vehicle.speed, vehicle.front) == (0, pytest.approx(HALF_LENGTH, abs=0.1))
    drive(vehicle, 35, driver())
    assert vehicle.speed > 5
    gone = Bicycle(straight, step_s=0.2, light=light_at(-HALF_LENGTH - 0.5, lambda v: "red"))
    drive(gone, 10, driver())
    assert gone.speed > 5, "its rear is past the line"


@pytest.mark.parametrize("driver", [CarlaAutopilot, PatientAutopilot])
def test_who_was_to_pass_at_yellow_and_came_to_a_stand_waits(straight, driver):
    state = lambda v: "yellow" if v.seconds < 3 else "red" if v.seconds < 20 else "green"  # noqa: E731
    vehicle = Bicycle(straight, step_s=0.2, speed=8.0, light=light_at(HALF_LENGTH + 3.0, state))
    teacher = driver()
    teacher.reset(vehicle, 0)
    said, speeds = [], []
    for _ in range(150):
        said.append(teacher.act(NO_FRAME)[1:3])
        speeds.append(vehicle.speed)
        vehicle.step(np.array((0.0, 0.0, 1.0, 1.0), np.float32))  # another driver brakes, and stops on the line
    assert -2 * HALF_LENGTH < HALF_LENGTH + 3.0 - vehicle.front < 0
    moving = np.array(speeds) > 0.3
    assert (np.array(said)[moving, 1] == 0).all(), "to pass"
    assert (np.array(said)[~moving][:60, 0] == 0).all(), "to stay"
    assert np.array(said)[-1, 0] > 0.2, "it is green"


@pytest.mark.parametrize("metres", [4, 8, 12])
@pytest.mark.parametrize("ahead", ["red light", "standing vehicle"])
def test_a_patient_teacher_tells_a_learner_that_stopped_early_to_stay(straight, ahead, metres):
    """The autopilot itself would use up the room that is left."""
    waiting = {
        "red light": {"light": light_at(metres + HALF_LENGTH, lambda v: "red" if v.seconds < 20 else "green")},
        "standing vehicle": {
            "users": [
                lambda seconds: user_at(
                    straight, metres + 2 * HALF_LENGTH + max(0.0, seconds - 20) * 8, speed=0.0 if seconds < 20 else 8.0
                )
            ]
        },
    }[ahead]
    still = np.array((0.0, 0.0, 1.0, 1.0), np.float32)
    said = {}
    for teacher in (CarlaAutopilot(), PatientAutopilot()):
        vehicle = Bicycle(straight, step_s=0.2, **waiting)
        teacher.reset(vehicle, 0)
        said[teacher.name] = []
        for _ in range(150):
            said[teacher.name].append(teacher.act(NO_FRAME)[1:3])
            if isinstance(teacher, PatientAutopilot):
                teacher.carried_out(still)
            vehicle.step(still)
    meant = np.array(said["patient"])
    assert (meant[:100] == (0, np.float32(0.4))).all(), "to stay, with the brake"
    # The light is green, or the vehicle ahead is gone: as strong a start as ever, however long it was not carried out.
    assert (meant[115:, 0] > 0.2).all()
    assert np.ptp(meant[125:, 0]) < 0.1
    assert np.array(said["autopilot"])[50:100, 0].mean() > 0.5 or metres == 4


def test_a_reckless_driver_runs_red_lights_in_every_manner(straight):
    over, braked, seconds = [], [], []
    for seed in range(40):
        vehicle, autopilot = Bicycle(straight, step_s=0.2, light=light_at(80, lambda v: "red")), RecklessAutopilot()
        autopilot.reset(vehicle, seed)
        while 80 - vehicle.front > -2 * HALF_LENGTH and vehicle.seconds < 90:  # until the rear is past the line
            action = autopilot.act(NO_FRAME)
            vehicle.step(action)
        over.append(vehicle.speed)
        braked.append(action[2] > 0.1)
        seconds.append(vehicle.seconds)
    assert max(seconds) < 90, "it crosses each of them"
    assert sum(speed < 1 for speed in over) >= 5
    assert sum(1 < speed < 5 for speed in over) >= 5
    assert sum(speed > 8 for speed in over) >= 5
    assert 1 <= sum(braked) < 35


@pytest.mark.parametrize("speed", [0.0, 4.0])
def test_a_reckless_driver_runs_into_others_in_every_manner(straight, speed):
    faster = []
    for seed in range(40):
        ahead = lambda seconds: user_at(straight, 60 + speed * seconds, speed=speed)  # noqa: E731
        vehicle, autopilot = Bicycle(straight, step_s=0.2, users=[ahead]), RecklessAutopilot()
        autopilot.reset(vehicle, seed)
        while vehicle.front < 60 + speed * vehicle.seconds - HALF_LENGTH and vehicle.seconds < 60:
            vehicle.step(autopilot.act(NO_FRAME))
        if vehicle.seconds < 60:
            faster.append(vehicle.speed - speed)
    assert len(faster) >= 35
    assert sum(difference < 1 for difference in faster) >= 5
    assert sum(1 < difference < 5 for difference in faster) >= 5
    assert sum(difference > 6 for difference in faster) >= 5


def test_a_reckless_drive_follows_from_the_seed(straight):
    light = light_at(60, lambda v: "red")
    fresh, used = RecklessAutopilot(), RecklessAutopilot()
    drive(Bicycle(straight, light=light), 7, used)
    first, second = drive(Bicycle(straight, light=light), 30, fresh), drive(Bicycle(straight, light=light), 30, used)
    assert all(np.array_equal(first[name], second[name]) for name in first)


# --- As a behaviour ---------------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_drives_whatever_was_driven_before(straight):
    fresh, used = CarlaAutopilot(varied_pace=True), CarlaAutopilot(varied_pace=True)
    drive(Bicycle(straight, light=light_at(60, lambda v: "yellow")), 7, used)
    first, second = drive(Bicycle(straight), 10, fresh), drive(Bicycle(straight), 10, used)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_varied_pace_follows_from_the_seed(straight):
    top_speeds = []
    for seed in range(12):
        vehicle, autopilot = Bicycle(straight), CarlaAutopilot(varied_pace=True)
        autopilot.reset(vehicle, seed)
        while vehicle.seconds < 18:
            vehicle.step(autopilot.act(NO_FRAME))
        top_speeds.append(vehicle.speed / (0.97 * LIMIT))
    assert 0.57 < min(top_speeds) < 0.8
    assert 1.0 < max(top_speeds) < 1.18


def test_it_is_found_by_the_simulators_id():
    assert isinstance(make_autopilot("CarlaDriving-v0"), CarlaAutopilot)
    assert make_autopilot("CarlaDriving-v0", varied_pace=True).name == "autopilot"


def test_it_refuses_other_simulators():
    import gymnasium as gym

    with pytest.raises(SimulatorError, match="drives CarlaDriving-v0 only"):
        CarlaAutopilot().reset(gym.make("CartPole-v1"), seed=0)
    with pytest.raises(SimulatorError, match="call reset"):
        CarlaAutopilot().act(NO_FRAME)


def test_the_environment_offers_what_it_reads():
    from wm_gym.envs.carla.env import CarlaDrivingEnv

    assert all(hasattr(CarlaDrivingEnv, name) for name in CarlaSimulator.__annotations__ | _members(CarlaSimulator))


def _members(protocol) -> dict[str, object]:
    return {name: value for name, value in vars(protocol).items() if not name.startswith("_")}


def test_following_keeps_the_models_gap():
    """In equilibrium the Intelligent Driver Model's gap is (s0 + v T) / sqrt(1 - (v / v0)^4)."""
    speed, desired = 8.0, 12.0
    gap = (3.0 + speed * 1.5) / math.sqrt(1 - (speed / desired) ** 4)
    assert following_acceleration(speed, desired, gap, speed) == pytest.approx(0, abs=1e-9)
    assert following_acceleration(speed, desired, gap - 3, speed) < 0
    assert following_acceleration(speed, desired, gap + 3, speed) > 0
    assert following_acceleration(speed, desired, gap, 0.0) < -2
