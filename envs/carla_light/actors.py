"""Actors: what they are, how they move, and how they are packed for the client."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Any

from wm_gym.envs.angles import wrap_degrees
from wm_gym.envs.carla_light.blueprints import Blueprint
from wm_gym.envs.carla_light.layout import Pose
from wm_gym.envs.carla_light.vehicle_dynamics import Motion, Pedals, VehicleDynamics

WHEELBASES_IN_LENGTH = 0.586
"""Wheelbase of a vehicle, as a part of its length: that of CARLA's Lincoln."""

Vector = tuple[float, float, float]
_ZERO: Vector = (0.0, 0.0, 0.0)
_GREEN = 2
_ACTIVE = 1
# CARLA's ActorDynamicState: number, state, transform, velocities, acceleration, and 54 bytes for each kind's own.
_HEAD = "<IB15f"
_VEHICLE = struct.Struct(f"{_HEAD}fff???ifB?IB24x")
_LIGHT = struct.Struct(f"{_HEAD}32sffffI?B")
_WALKER = struct.Struct(f"{_HEAD}ffff?37x")
_OTHER = struct.Struct(f"{_HEAD}54x")


@dataclass
class VehicleControl:
    """The pedals, as in ``carla.VehicleControl``."""

    throttle: float = 0.0
    steer: float = 0.0
    brake: float = 0.0
    hand_brake: bool = False
    reverse: bool = False
    manual_gear_shift: bool = False
    gear: int = 0

    @classmethod
    def unpack(cls, values: list[Any]) -> VehicleControl:
        """From the wire; a timestamp at the end is ignored."""
        return cls(*values[:7])


@dataclass
class Actor:
    """One actor.

    Attributes:
        id: Its number, never used twice.
        blueprint: What it is.
        attributes: Name, kind and value as the client gave them.
        pose: Where it is; for a mounted one relative to its parent.
        parent_id: What it is mounted on; 0 for nothing.
        stream_id: Stream of a sensor; 0 for none.
        velocity: In metres a second.
        angular_velocity: In degrees a second.
        acceleration: In metres a second squared.
        control: Pedals of a vehicle.
        walk_direction: Unit vector of a walker's step.
        walk_speed: Of a walker.
        simulates_physics: Whether it moves by itself.
        light_state: Traffic lights: 0 red, 1 yellow, 2 green.
        sign_id: Traffic lights: the OpenDRIVE signal.
        trigger: Traffic lights: centre and half sizes of the box before the junction in which vehicles heed it.
        light: For a vehicle: the traffic light that it stands at, and its state; ``None`` away from lights.
        speed_limit: For a vehicle: km/h where it is.
        dynamics: For a vehicle that has moved: its wheels, pedals and gears.
    """

    id: int
    blueprint: Blueprint
    attributes: list[list[Any]]
    pose: Pose
    parent_id: int = 0
    stream_id: int = 0
    velocity: Vector = _ZERO
    angular_velocity: Vector = _ZERO
    acceleration: Vector = _ZERO
    control: VehicleControl = field(default_factory=VehicleControl)
    walk_direction: Vector = _ZERO
    walk_speed: float = 0.0
    simulates_physics: bool = True
    light_state: int = _GREEN
    light_elapsed: float = 0.0
    is_frozen: bool = False
    sign_id: str = ""
    trigger: tuple[Vector, Vector] | None = None
    light: tuple[int, int] | None = None
    speed_limit: float = 30.0
    dynamics: VehicleDynamics | None = None

    def __post_init__(self) -> None:
        self.kind = self.blueprint.id.partition(".")[0]
        """First word of the blueprint's id."""
        self.reach = math.hypot(*self.blueprint.extent[:2])
        """Metres from its middle to its corners, seen from above."""

    @property
    def color(self) -> tuple[int, int, int]:
        """RGB, for the picture."""
        try:
            red, green, blue = (int(part) for part in self.attribute("color", "60,90,160").split(","))
        except ValueError:
            return 60, 90, 160
        return red, green, blue

    def attribute(self, name: str, default: str) -> str:
        """Value of an attribute."""
        for found, _, value in self.attributes:
            if found == name:
                return str(value)
        return default

    @property
    def speed(self) -> float:
        """Along its own x axis, in metres a second; negative when it rolls backwards."""
        yaw = math.radians(self.pose.yaw)
        return self.velocity[0] * math.cos(yaw) + self.velocity[1] * math.sin(yaw)

    def set_speed(self, speed: float) -> None:
        """Give it a velocity along its own x axis, which does not move it by itself."""
        yaw = math.radians(self.pose.yaw)
        self.velocity = (speed * math.cos(yaw), speed * math.sin(yaw), 0.0)

    def stop(self) -> None:
        """Take all motion away."""
        self.velocity = self.angular_velocity = self.acceleration = _ZERO

    def move(self, seconds: float) -> Pose:
        """Where it will be after a time, were nothing in the way; sets its velocities."""
        if not self.simulates_physics:
            return self.pose
        if self.kind == "vehicle":
            return self._drive(seconds)
        if self.kind == "walker":
            self.velocity = tuple(part * self.walk_speed for part in self.walk_direction)  # type: ignore[assignment]
            x, y = self.pose.x + self.velocity[0] * seconds, self.pose.y + self.velocity[1] * seconds
            yaw = math.degrees(math.atan2(self.velocity[1], self.velocity[0])) if self.walk_speed > 0 else self.pose.yaw
            return self.pose._replace(x=x, y=y, yaw=yaw)
        return self.pose

    def _drive(self, seconds: float) -> Pose:
        """A single-track model with tyres that slip; see :mod:`wm_gym.envs.carla_light.vehicle_dynamics`."""
        control, pose, before = self.control, self.pose, self.velocity
        if self.dynamics is None:
            self.dynamics = VehicleDynamics(WHEELBASES_IN_LENGTH * 2 * self.blueprint.extent[0])
        direction = -1 if control.reverse else 1
        if control.manual_gear_shift:
            direction = (control.gear > 0) - (control.gear < 0)
        pedals = Pedals(
            min(1.0, max(0.0, control.throttle)),
            min(1.0, max(0.0, control.brake)),
            min(1.0, max(-1.0, control.steer)),
            control.hand_brake,
            direction,
        )
        yaw = math.radians(pose.yaw)
        cos, sin = math.cos(yaw), math.sin(yaw)
        forward, right = before[0] * cos + before[1] * sin, -before[0] * sin + before[1] * cos
        motion = Motion(forward, right, math.radians(self.angular_velocity[2]))
        slope = math.sin(math.radians(pose.pitch))
        ahead, aside, turn = self.dynamics.advance(motion, pedals, slope, seconds)
        x, y = pose.x + ahead * cos - aside * sin, pose.y + ahead * sin + aside * cos
        yaw += turn
        cos, sin = math.cos(yaw), math.sin(yaw)
        climb = motion.forward * math.tan(math.radians(pose.pitch))
        self.velocity = (
            motion.forward * cos - motion.right * sin,
            motion.forward * sin + motion.right * cos,
            climb,
        )
        self.acceleration = (
            (self.velocity[0] - before[0]) / seconds,
            (self.velocity[1] - before[1]) / seconds,
            (self.velocity[2] - before[2]) / seconds,
        )
        self.angular_velocity = (0.0, 0.0, math.degrees(motion.yaw_rate))
        return Pose(x, y, pose.z, pose.pitch, wrap_degrees(math.degrees(yaw)), pose.roll)

    def pack(self, token: bytes) -> list[Any]:
        """CARLA's ``Actor``."""
        description = [self.id, self.blueprint.id, self.attributes]
        return [self.id, self.parent_id, description, self.pack_box(), b"", token]

    def pack_box(self) -> list[Any]:
        """CARLA's ``BoundingBox`` in the actor's own frame."""
        if self.trigger is not None:  # CARLA's client takes the bounding box of a light for its trigger
            centre, extent = self.trigger
            return [list(centre), list(extent), [0.0, 0.0, 0.0], self.id]
        x, y, z = self.blueprint.extent
        return [[0.0, 0.0, z], [x, y, z], [0.0, 0.0, 0.0], self.id]

    def pack_state(self, world_pose: Pose) -> bytes:
        """CARLA's ``ActorDynamicState``: 119 bytes."""
        head = (
            self.id, _ACTIVE, *world_pose, *self.velocity, *self.angular_velocity, *self.acceleration,
        )  # fmt: skip
        if self.kind == "vehicle":
            c = self.control
            # Away from lights CARLA says green; any other state makes the Traffic Manager stop at the next junction.
            light, state = self.light or (0, _GREEN)
            return _VEHICLE.pack(
                *head, c.throttle, c.steer, c.brake, c.hand_brake, c.reverse, c.manual_gear_shift, c.gear,
                self.speed_limit, state, self.light is not None, light, 0,
            )  # fmt: skip
        if self.kind == "traffic":
            times = (10.0, 3.0, 2.0, self.light_elapsed)
            return _LIGHT.pack(*head, self.sign_id.encode(), *times, 0, self.is_frozen, self.light_state)
        if self.kind == "walker":
            return _WALKER.pack(*head, *self.walk_direction, self.walk_speed, False)
        return _OTHER.pack(*head)


def pack_pose(pose: Pose) -> list[list[float]]:
    """CARLA's ``Transform``."""
    return [[pose.x, pose.y, pose.z], [pose.pitch, pose.yaw, pose.roll]]


def unpack_pose(value: list[list[float]]) -> Pose:
    """The inverse of :func:`pack_pose`."""
    return Pose(*value[0], *value[1])
