"""Vehicles that drive into something: they are pushed apart, slide along walls and move on."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

pytest.importorskip("msgpack")
from wm_gym.envs.carla_light.actors import Actor
from wm_gym.envs.carla_light.blueprints import BLUEPRINTS, Blueprint
from wm_gym.envs.carla_light.collisions import obstacle
from wm_gym.envs.carla_light.contacts import push_apart
from wm_gym.envs.carla_light.geometry import boxes_overlap, way_out
from wm_gym.envs.carla_light.layout import Pose

CAR, LORRY = BLUEPRINTS["vehicle.lincoln.mkz_2020"], BLUEPRINTS["vehicle.carlamotors.firetruck"]
WALL = Blueprint("static.building", (20.0, 1.0, 5.0))
STEP_S = 0.05

boxes = st.tuples(
    st.builds(Pose, st.floats(-4, 4), st.floats(-4, 4), yaw=st.floats(-180, 180)),
    st.tuples(st.floats(0.2, 4), st.floats(0.2, 4)),
)


def vehicle(blueprint: Blueprint, pose: Pose, speed: float = 0.0, number: int = 1) -> Actor:
    actor = Actor(number, blueprint, [], pose)
    actor.set_speed(speed)
    return actor


def roll(actor: Actor, *others: Actor) -> bool:
    """One step straight on at the velocity that it has; returns whether it touched something."""
    pose = actor.pose._replace(x=actor.pose.x + actor.velocity[0] * STEP_S, y=actor.pose.y + actor.velocity[1] * STEP_S)
    solid = (actor, *others)

    def in_the_way(moved: Actor, place: Pose) -> Actor | None:
        return obstacle(moved, place, [other for other in solid if other is not moved])

    other = in_the_way(actor, pose)
    if other is None:
        actor.pose = pose
        return False
    push_apart(actor, pose, other, lambda moved, place: in_the_way(moved, place) is None)
    return True


def roll_on(steps: int, actor: Actor, *others: Actor) -> bool:
    """Several steps; whether one of them touched something."""
    return sum(roll(actor, *others) for _ in range(steps)) > 0


@given(boxes, boxes)
def test_the_way_out_ends_the_overlap_and_no_shorter_one_along_it_does(first, second):
    (pose, extent), (there, size) = first, second
    way = way_out(pose, extent, there, size)
    assert (way is not None) == boxes_overlap(pose, extent, there, size)
    assume(way is not None and math.hypot(*way) > 1e-6)
    for part, overlaps in ((1.001, False), (0.99, True)):
        moved = pose._replace(x=pose.x + part * way[0], y=pose.y + part * way[1])
        assert boxes_overlap(moved, extent, there, size) is overlaps


def test_a_wall_takes_the_speed_towards_it_and_leaves_most_of_that_along_it():
    wall = Actor(0, WALL, [], Pose(0.0, 3.0))
    car = vehicle(CAR, Pose(-8.0, 0.0, yaw=15.0), 10.0)
    assert roll_on(20, car, wall)
    assert not boxes_overlap(car.pose, CAR.extent, wall.pose, WALL.extent)
    assert car.velocity[1] == pytest.approx(0.0, abs=1e-6)
    along = 10.0 * math.cos(math.radians(15))
    assert 0.8 * along < car.velocity[0] < along  # friction of 0.3 takes 0.3 of the 2.6 m/s towards the wall


def test_head_on_a_wall_stops_it():
    wall = Actor(0, WALL, [], Pose(0.0, 6.0))
    car = vehicle(CAR, Pose(0.0, 0.0, yaw=90.0), 15.0)
    assert roll_on(20, car, wall)
    assert math.hypot(*car.velocity[:2]) < 1e-6
    assert car.pose.y + CAR.extent[0] < 5.0


def test_a_lorry_pushes_a_car_and_hardly_loses_speed_a_car_hardly_moves_a_lorry():
    lorry, car = vehicle(LORRY, Pose(0.0, 0.0), 5.0), vehicle(CAR, Pose(7.0, 0.0), number=2)
    assert roll_on(5, lorry, car)
    assert 4.0 < lorry.velocity[0] < 5.0
    assert car.velocity[0] == pytest.approx(lorry.velocity[0])
    car, lorry = vehicle(CAR, Pose(0.0, 0.0), 5.0), vehicle(LORRY, Pose(7.0, 0.0), number=2)
    assert roll_on(5, car, lorry)
    assert 0.0 < lorry.velocity[0] < 1.0


def test_nothing_is_pushed_into_something_else():
    wall, car = Actor(0, WALL, [], Pose(0.0, 5.0)), vehicle(CAR, Pose(0.0, 1.5, yaw=90.0), number=2)
    lorry = vehicle(LORRY, Pose(0.0, -6.0, yaw=90.0), 8.0, number=3)
    assert roll_on(40, lorry, car, wall)
    assert not boxes_overlap(car.pose, CAR.extent, wall.pose, WALL.extent)
    assert not boxes_overlap(lorry.pose, LORRY.extent, car.pose, CAR.extent)
    assert math.hypot(*lorry.velocity[:2]) < 0.1


def test_what_is_held_in_place_or_walks_is_not_pushed():
    held = vehicle(CAR, Pose(5.5, 0.0), number=2)
    held.simulates_physics = False
    walker = Actor(3, BLUEPRINTS["walker.pedestrian.0001"], [], Pose(3.2, 0.0))
    for other in (held, walker):
        place, car = other.pose, vehicle(CAR, Pose(0.0, 0.0), 10.0)
        assert roll_on(5, car, other)
        assert other.pose == place
        assert car.velocity[0] < 1e-6
