"""What a vehicle's model looks like as CARLA's ``VehiclePhysicsControl``."""

from __future__ import annotations

from typing import Any

from wm_gym.envs.carla_light.actors import WHEELBASES_IN_LENGTH, Actor
from wm_gym.envs.carla_light.geometry import attach
from wm_gym.envs.carla_light.layout import Pose
from wm_gym.envs.carla_light.vehicle_dynamics import (
    FINAL_RATIO,
    GEAR_RATIOS,
    GEAR_SWITCH_S,
    MASS_KG,
    MAX_RPM,
    MAX_STEER_DEG,
    STEERING_CURVE,
    TYRE_FRICTION,
)

_CENTIMETRES = 100.0
_TRACK = 0.85
"""Distance of a pair of wheels, as a part of the vehicle's width."""


def physics_control(vehicle: Actor) -> list[Any]:
    """For the wire; wheels are front left, front right, rear left and rear right, at positions in centimetres."""
    length, width, _ = vehicle.blueprint.extent
    axle, side = WHEELBASES_IN_LENGTH * length, _TRACK * width
    wheels = [
        _wheel(attach(vehicle.pose, Pose(front * axle, right * side, 0.3)), is_front=front > 0)
        for front, right in ((1, -1), (1, 1), (-1, -1), (-1, 1))
    ]
    torque = [[0.0, 200.0], [MAX_RPM, 200.0]]
    gears = [[ratio, 0.32, 0.72] for ratio in GEAR_RATIOS]
    return [
        torque, MAX_RPM, 1.0, 0.15, 2.0, 0.35, True, GEAR_SWITCH_S, 10.0, FINAL_RATIO, gears, MASS_KG, 0.3,
        [0.0, 0.0, -0.3], [list(point) for point in STEERING_CURVE], wheels, False,
    ]  # fmt: skip


def _wheel(pose: Pose, *, is_front: bool) -> list[Any]:
    position = [pose.x * _CENTIMETRES, pose.y * _CENTIMETRES, pose.z * _CENTIMETRES]
    steer, hand_brake = (MAX_STEER_DEG, 0.0) if is_front else (0.0, 3000.0)
    return [TYRE_FRICTION, 0.25, steer, 32.0, 1500.0, hand_brake, 3.0, 17.0, 1000.0, position]
