"""One drive, tick by tick: when it ends, what counts as what."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from wm_gym.envs.carla.config import CarlaConfig
from wm_gym.envs.carla.drive import Drive
from wm_gym.envs.carla.messages import Collision, EpisodeStarted, Tick
from wm_gym.envs.carla.route import Route
from wm_gym.envs.carla.state import EgoState, RoadUser
from wm_gym.envs.carla.stop_lines import StopLine

HALF_LENGTH = 2.5
FIRST_FRAME = 2**40


def straight(length: float) -> Route:
    """A route along x."""
    distances = np.linspace(0.0, length, round(length) + 1)
    return Route(
        points=np.stack((distances, np.zeros_like(distances)), axis=1),
        headings=np.zeros_like(distances),
        distances=distances,
        lane_widths=np.full_like(distances, 3.5),
        in_junction=np.zeros(len(distances), dtype=bool),
        commands=np.full(len(distances), 4),
    )


def line_at(x: float, light: int = 7, y: float = 0.0, lane: int = -1) -> StopLine:
    """A line of 1.2 lane widths across a lane that leads along x."""
    return StopLine(light, (x, y - 2.1), (x, y + 2.1), 0.0, 1, lane)


class Road:
    """A drive along x that a test moves by hand."""

    def __init__(self, length: float = 400.0, lines: tuple[StopLine, ...] = (), **settings):
        ego = EgoState(0.0, 0.0, 0.0, 0.0, 0.0, (0.0, 0.0), 0.0)
        lights = {line.light_id: "red" for line in lines}
        self.tick = Tick(FIRST_FRAME, ego, (0.0, 0.0, 0.0, 1.0), 10.0, True, (), lights, (), (1, -1))
        started = EpisodeStarted(
            "Town", None, straight(length), lines, 40.0, 2.9, HALF_LENGTH, 1.0, 0, 0, self.tick, {}
        )  # fmt: skip
        self.drive = Drive(started, CarlaConfig(**settings))

    def to(self, x: float, y: float = 0.0, speed: float = 10.0, **changes) -> Tick:
        """The next tick, with the vehicle somewhere."""
        ego = replace(self.tick.ego, x=x, y=y, speed=speed, velocity=(speed, 0.0))
        self.tick = replace(self.tick, frame=self.tick.frame + 1, ego=ego, collisions=(), **changes)
        return self.tick

    def go(self, x: float, y: float = 0.0, speed: float = 10.0, **changes) -> float:
        """One action of one tick; returns its reward."""
        return self.drive.add((self.to(x, y, speed, **changes),))

    def roll(self) -> None:
        """Stand at the start with the speed of the next ticks, so that no jerk comes of it."""
        for _ in range(2):
            self.go(0.0)

    def hit(self, x: float, actor: int, kind: str, speed: float = 10.0) -> None:
        """A tick in which the vehicle touches something."""
        tick = self.to(x, speed=speed)
        self.drive.add((replace(tick, collisions=(Collision(tick.frame, actor, kind, 100.0),)),))

    def drive_to(self, x: float, step: float = 0.5) -> None:
        for place in np.arange(self.tick.ego.x + step, x + step / 2, step):
            self.go(float(place))


def test_a_finished_route_is_paid_once_however_many_ticks_the_action_lasts():
    for ticks in (1, 2, 5):
        road = Road(100.0)
        road.drive_to(98.5)
        reward = road.drive.add(tuple(road.to(99.2 + 0.1 * index) for index in range(ticks)))
        assert road.drive.end == "route_done"
        assert road.drive.info()["reward_route_done"] == 100.0
        assert 90 < reward < 110


@pytest.mark.parametrize(("length", "done_at"), [(100.0, 99.0), (1000.0, 990.0), (5000.0, 4990.0)])
def test_a_route_is_done_beyond_99_per_cent_and_within_10_metres_of_its_end(length, done_at):
    road = Road(length, end={"max_s": 0})
    road.drive_to(done_at - 0.5)
    assert road.drive.end == ""
    road.drive_to(done_at + 0.5)
    assert road.drive.end == "route_done"
    assert road.drive.info()["route_completion"] == 100.0


def test_a_route_is_not_done_from_afar():
    road = Road(100.0, end={"max_deviation_m": 0})
    road.drive_to(98.5)
    road.go(99.5, y=10.5)
    assert road.drive.end == ""
    road.go(99.5, y=9.5)
    assert road.drive.end == "route_done"


def test_the_time_follows_from_the_route_unless_it_is_given():
    for length, settings, seconds in (
        (100.0, {}, 85.0),
        (400.0, {}, 325.0),
        (400.0, {"max_s": 60.0}, 60.0),
    ):
        road = Road(length, end={**settings, "stuck_s": 0})
        ticks = 0
        while not road.drive.end:
            road.go(0.0, speed=0.0)
            ticks += 1
        assert (road.drive.end, ticks) == ("time", seconds * 20)
    road = Road(100.0, end={"max_s": 0, "stuck_s": 0})
    for _ in range(20 * 100):
        road.go(0.0, speed=0.0)
    assert road.drive.end == ""


def test_waiting_at_a_light_of_four_groups_is_not_being_stuck():
    """CARLA's lights are 10 s green, 3 s yellow and 2 s red for each group: 47 s for the one that has just begun."""
    road = Road()
    for _ in range(20 * 47):
        road.go(0.0, speed=0.0)
    assert road.drive.end == ""
    while not road.drive.end:
        road.go(0.0, speed=0.05)
    assert road.drive.end == "stuck"
    assert road.tick.frame - FIRST_FRAME == 20 * 180


def test_a_deviation_is_30_metres():
    road = Road()
    road.go(10.0, y=29.5)
    assert road.drive.end == ""
    road.go(10.0, y=30.5)
    assert road.drive.end == "deviation"


def test_the_frame_counts_from_the_reset():
    road = Road()
    road.go(0.5)
    assert road.drive.info()["frame"] == 1.0


@pytest.mark.parametrize(("kind", "counted"), [("static.sidewalk", 0), ("static.pole", 1), ("vehicle.audi.tt", 1)])
def test_contact_with_a_sidewalk_is_no_collision(kind, counted):
    road = Road()
    road.drive_to(10.0)
    road.hit(10.5, 0, kind)
    info = road.drive.info()
    assert info["collisions"] == counted
    assert road.drive.end == ("collision" if counted else "")
    assert (info["reward_collision"] < 0) == bool(counted)


def test_a_vehicle_that_stands_is_hit_without_a_collision_of_its_own():
    road = Road()
    road.go(0.0, speed=0.05)
    road.hit(0.0, 3, "vehicle.audi.tt", speed=2.0)
    assert road.drive.info()["collisions"] == 0


def passes(road: Road, x: float) -> float:
    """Red lights after the vehicle's rear has passed a place."""
    road.drive_to(x + HALF_LENGTH + 1.0)
    return road.drive.info()["red_lights"]


def test_a_red_light_is_run_by_the_rear_end():
    road = Road(lines=(line_at(20.0),))
    road.drive_to(20.0 + HALF_LENGTH - 0.5)
    assert road.drive.info()["red_lights"] == 0
    assert passes(road, 20.0) == 1


def test_the_same_light_counts_once_in_a_row():
    road = Road(lines=(line_at(20.0), line_at(30.0), line_at(40.0, light=8), line_at(50.0)))
    assert passes(road, 35.0) == 1
    assert passes(road, 45.0) == 2
    assert passes(road, 55.0) == 3


def test_a_line_reaches_beyond_its_lane_but_counts_for_it_alone():
    """1.9 m from the lane's centre, which is half of 3.5 m wide, towards a lane with a light of its own."""
    for lane, run in ((-1, 1), (-2, 0)):
        road = Road(lines=(line_at(20.0, lane=-1),), end={"off_road": False})
        for x in np.arange(10.0, 30.0, 0.5):
            road.go(float(x), y=1.9, rear_lane=(1, lane))
        assert road.drive.info()["red_lights"] == run
    beyond = Road(lines=(line_at(20.0),), end={"off_road": False})
    for x in np.arange(10.0, 30.0, 0.5):
        beyond.go(float(x), y=2.2)
    assert beyond.drive.info()["red_lights"] == 0


def test_both_scores_are_told():
    road = Road(lines=(line_at(20.0),))
    passes(road, 20.0)
    info = road.drive.info()
    assert info["driving_score"] == pytest.approx(0.7 * info["route_completion"])
    assert info["driving_score_2_1"] == pytest.approx(info["route_completion"] / 1.4)
    assert math.isclose(info["infraction_penalty_2_1"], 1 / 1.4)


def test_route_completion_ends_at_a_red_light_and_pays_each_metre_once():
    road = Road(lines=(line_at(50.0),), reward="route_completion")
    road.roll()
    earned = [road.go(10.0), road.go(5.0), road.go(10.0), road.go(20.0)]
    assert earned == pytest.approx([2.5, 0.0, 0.0, 2.5])
    assert road.go(24.0, y=2.0) == 0.0, "outside its lane"
    passes(road, 50.0)
    assert (road.drive.end, road.drive.terminated) == ("red_light", True)


def test_a_light_is_observed_until_it_has_been_run():
    road = Road(lines=(line_at(50.0), line_at(90.0, light=8)), reward="route_completion")
    road.drive_to(49.0)
    assert road.drive.light_ahead() == (1.0 - HALF_LENGTH, "red")
    passes(road, 50.0)
    assert road.drive.end == "red_light"
    assert road.drive.light_ahead() == (pytest.approx(-2 * HALF_LENGTH - 1.0), "red")
    road.drive_to(50.0 + HALF_LENGTH + 4.0)
    assert road.drive.light_ahead() == (pytest.approx(40.0 - 2 * HALF_LENGTH - 4.0), "red")


def test_a_red_light_ends_a_drive_where_that_is_asked_for():
    for asked, expected in ((None, ""), (False, ""), (True, "red_light")):
        road = Road(lines=(line_at(50.0),), end={"red_light": asked})
        passes(road, 50.0)
        assert road.drive.end == expected


def test_being_about_to_hit_the_vehicle_ahead_halves_route_completion():
    road = Road(reward="route_completion")
    road.roll()
    ahead = RoadUser(9, "vehicle", 22.0, 0.0, 0.0, 0.0, 2.0, 1.0)
    # 20 m from the vehicle's centre to its rear end, less half the own length.
    assert road.go(10.0, road_users=(ahead,)) == pytest.approx(1.25)
    assert road.go(20.0, road_users=(replace(ahead, x=52.0),)) == pytest.approx(2.5)


def test_a_light_touch_ends_a_drive_only_where_any_collision_does():
    for least, end in ((0.0, "collision"), (100.0, "collision"), (101.0, "")):
        road = Road(end={"collision_impulse": least})
        road.go(1.0)
        road.hit(2.0, 5, "vehicle.audi.tt")  # 100 N s
        assert road.drive.end == end
        assert road.drive.info()["collisions"] == 1.0  # it counts all the same
    road = Road(end={"collision_impulse": 150.0})
    road.go(1.0)
    road.hit(2.0, 5, "vehicle.audi.tt")
    tick = road.to(3.0)
    road.drive.add((replace(tick, collisions=(Collision(tick.frame, 5, "vehicle.audi.tt", 200.0),)),))
    assert road.drive.end == "collision"  # the same contact, harder now


def test_infractions_are_told_with_place_and_time():
    road = Road(lines=(line_at(10.0),), end={"collision": False})
    assert road.drive.info()["infractions"] == ""
    road.go(1.0)
    road.hit(2.0, 5, "vehicle.audi.tt")
    road.drive_to(20.0)
    first, second = road.drive.info()["infractions"].splitlines()
    assert first == "collision_vehicle: with vehicle.audi.tt at (2.0, 0.0) after 0.1 s"
    assert second.startswith("red_light: light 7 was run at (")
