"""How the light server's vehicles move: against what is known of real mid-size cars, and by themselves."""

from __future__ import annotations

import itertools
import math

import pytest

from wm_gym.envs.carla_light.vehicle_dynamics import (
    GRAVITY,
    MAX_STEER_DEG,
    TYRE_FRICTION,
    Motion,
    Pedals,
    VehicleDynamics,
)

WHEELBASE = 2.87
STEP = 0.05


def drive(pedals, speed=0.0, seconds=3.0, slope=0.0, step=STEP):
    """The way ``(x, y, heading)`` and the motion after every step."""
    vehicle, motion = VehicleDynamics(WHEELBASE), Motion(speed, 0.0, 0.0)
    x = y = heading = 0.0
    track = []
    for _ in range(round(seconds / step)):
        ahead, aside, turn = vehicle.advance(motion, pedals, slope, step)
        x += ahead * math.cos(heading) - aside * math.sin(heading)
        y += ahead * math.sin(heading) + aside * math.cos(heading)
        heading += turn
        track.append((x, y, heading, motion.forward, motion.right, motion.yaw_rate, vehicle.gear))
    return track


def pedals(throttle=0.0, brake=0.0, steer=0.0, hand_brake=False, direction=1):
    return Pedals(throttle, brake, steer, hand_brake, direction)


def test_it_gains_speed_as_a_mid_size_car():
    speeds = [state[3] for state in drive(pedals(throttle=1.0), seconds=15.0)]
    to_100 = next(index for index, speed in enumerate(speeds) if speed > 100 / 3.6) * STEP
    assert 7.5 < to_100 < 12.0
    assert all(after >= before - 0.05 for before, after in itertools.pairwise(speeds))


def test_it_stops_from_100_within_the_way_that_grip_allows():
    track = drive(pedals(brake=1.0), speed=100 / 3.6, seconds=5.0)
    assert track[-1][3] == 0.0
    assert 36.0 < track[-1][0] < 45.0
    # The first tenth of a second is the pedal's way.
    assert track[1][3] > 100 / 3.6 - 0.9


def test_the_engine_and_the_gearbox_take_their_time():
    track = drive(pedals(throttle=1.0), seconds=8.0)
    assert track[0][3] < 0.05  # not at once what it gives in the end
    gears = [state[6] for state in track]
    assert gears[0] == 1 and max(gears) >= 3
    shift = next(index for index, gear in enumerate(gears) if gear == 2)
    gains = [track[index][3] - track[index - 1][3] for index in range(1, len(track))]
    assert min(gains[shift : shift + 5]) < 0.3 * gains[shift - 3]


def test_the_wheel_follows_with_lag():
    first, later = (state[5] for state in (drive(pedals(steer=0.5), speed=8.0)[index] for index in (0, 5)))
    assert 0.0 < first < 0.5 * later


def test_slowly_it_drives_the_circle_of_its_wheels():
    track = drive(pedals(steer=1.0, throttle=0.05), speed=2.0, seconds=4.0)
    forward, right, yaw_rate = track[-1][3:6]
    radius = math.hypot(forward, right) / yaw_rate
    # Of the centre of gravity, which is a bit more than half the wheelbase before the rear axle.
    expected = math.hypot(WHEELBASE / math.tan(math.radians(MAX_STEER_DEG)), 0.55 * WHEELBASE)
    assert radius == pytest.approx(expected, rel=0.15)


def test_in_gentle_bends_it_turns_as_much_as_kinematics_say():
    forward, _, yaw_rate = drive(pedals(steer=0.05, throttle=0.1), speed=12.0)[-1][3:6]
    steer = math.radians(0.05 * MAX_STEER_DEG) * (1 - 0.3 * forward * 3.6 / 120)
    assert yaw_rate == pytest.approx(forward * steer / WHEELBASE, rel=0.1)


@pytest.mark.parametrize("speed", [25.0, 35.0])
def test_no_steering_turns_harder_than_grip_allows(speed):
    track = drive(pedals(steer=1.0, throttle=0.3), speed=speed, seconds=3.0)
    velocities = [
        (
            forward * math.cos(heading) - right * math.sin(heading),
            forward * math.sin(heading) + right * math.cos(heading),
        )
        for _, _, heading, forward, right, _, _ in track
    ]
    for before, after in itertools.pairwise(velocities):
        assert math.dist(before, after) / STEP < 1.2 * TYRE_FRICTION * GRAVITY
    # And so the path is wider than the wheels'.
    x, y = track[19][:2]
    assert y < 0.7 * x


def test_it_holds_the_bends_that_the_traffic_manager_takes_at_town_speed():
    """8.5 m/s on a radius of 6 m: the lateral acceleration of 12 m/s^2 is more than a road gives."""
    steer = math.degrees(math.atan(WHEELBASE / 6.0)) / MAX_STEER_DEG
    track = drive(pedals(steer=steer, throttle=0.4), speed=8.5, seconds=1.5)
    forward, right, yaw_rate = track[-1][3:6]
    assert math.hypot(forward, right) > 7.5
    assert math.hypot(forward, right) / yaw_rate < 7.0


def test_braking_takes_grip_from_steering():
    aside = [drive(pedals(steer=0.6, brake=brake), speed=20.0, seconds=0.8)[-1][1] for brake in (0.0, 1.0)]
    assert 0.0 < aside[1] < 0.85 * aside[0]


@pytest.mark.parametrize("direction", [1, -1])
def test_left_and_right_are_alike_and_reverse_drives_back(direction):
    right, left = (drive(pedals(throttle=0.5, steer=steer, direction=direction))[-1] for steer in (0.3, -0.3))
    assert right[0] == pytest.approx(left[0]) and right[1] == pytest.approx(-left[1])
    assert right[0] * direction > 0.5
    assert right[2] * direction > 0.0


def test_it_rolls_down_a_slope_and_the_brake_holds_it():
    assert drive(pedals(direction=0), slope=math.sin(math.radians(5)), seconds=2.0)[-1][3] < -1.0
    assert drive(pedals(brake=0.5), slope=math.sin(math.radians(5)), seconds=2.0)[-1][3] == 0.0


def test_equal_drives_are_nearly_equal_in_smaller_steps():
    coarse = drive(pedals(throttle=0.4, steer=0.15), speed=10.0, seconds=4.0)[-1]
    fine = drive(pedals(throttle=0.4, steer=0.15), speed=10.0, seconds=4.0, step=0.01)[-1]
    assert math.dist(coarse[:2], fine[:2]) < 1.5
