"""Actors: what they are, how they move, and how they are packed for the client."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field, replace
from typing import Any

from wm_gym.envs.carla_light.blueprints import Blueprint
from wm_gym.envs.carla_light.layout import Pose

WHEELBASE_M = 2.87
MAX_STEER_DEG = 40.0
_ENGINE_M_S2 = 4.5
_TOP_SPEED_M_S = 40.0
_BRAKE_M_S2 = 8.5
_ROLLING_M_S2 = 0.25

Vector = tuple[float, float, float]
_ZERO: Vector = (0.0, 0.0, 0.0)
_GREEN, _OFF = 2, 3
_ACTIVE = 1


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
        light: For a vehicle: the traffic light that it stands at, and its state.
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

    @property
    def kind(self) -> str:
        """First word of the blueprint's id."""
        return self.blueprint.id.partition(".")[0]

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
            return replace(self.pose, x=x, y=y, yaw=yaw)
        return self.pose

    def _drive(self, seconds: float) -> Pose:
        """A kinematic bicycle with an engine that weakens with speed."""
        control, speed = self.control, self.speed
        gear = -1 if control.reverse else (control.gear if control.manual_gear_shift else 1)
        engine = min(1.0, max(0.0, control.throttle)) * _ENGINE_M_S2 * (1 - abs(speed) / _TOP_SPEED_M_S)
        acceleration = engine * (0 if gear == 0 else math.copysign(1, gear))
        resistance = min(1.0, max(0.0, control.brake)) * _BRAKE_M_S2 + _ROLLING_M_S2 + 0.004 * speed * speed
        if control.hand_brake:
            resistance += _BRAKE_M_S2
        after = speed + acceleration * seconds
        slowed = max(0.0, abs(after) - resistance * seconds)
        after = math.copysign(slowed, after)
        steer = math.radians(min(1.0, max(-1.0, control.steer)) * MAX_STEER_DEG)
        turn = (speed + after) / 2 / WHEELBASE_M * math.tan(steer)
        yaw = math.radians(self.pose.yaw) + turn * seconds
        mean_yaw = math.radians(self.pose.yaw) + turn * seconds / 2
        way = (speed + after) / 2 * seconds
        before = self.velocity
        self.velocity = (after * math.cos(yaw), after * math.sin(yaw), 0.0)
        self.acceleration = tuple((new - old) / seconds for new, old in zip(self.velocity, before, strict=True))  # type: ignore[assignment]
        self.angular_velocity = (0.0, 0.0, math.degrees(turn))
        return replace(
            self.pose,
            x=self.pose.x + way * math.cos(mean_yaw),
            y=self.pose.y + way * math.sin(mean_yaw),
            yaw=(math.degrees(yaw) + 180.0) % 360.0 - 180.0,
        )

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
        head = struct.pack(
            "<IB15f",
            self.id,
            _ACTIVE,
            *pose_values(world_pose),
            *self.velocity,
            *self.angular_velocity,
            *self.acceleration,
        )
        return head + self._pack_special_state().ljust(54, b"\0")

    def _pack_special_state(self) -> bytes:
        if self.kind == "vehicle":
            c = self.control
            pedals = struct.pack(
                "<fff???i", c.throttle, c.steer, c.brake, c.hand_brake, c.reverse, c.manual_gear_shift, c.gear
            )
            light_id, state = self.light or (0, _OFF)
            return pedals + struct.pack("<fB?IB", self.speed_limit, state, self.light is not None, light_id, 0)
        if self.kind == "traffic":
            times = struct.pack("<ffff", 10.0, 3.0, 2.0, self.light_elapsed)
            return (
                self.sign_id.encode().ljust(32, b"\0")
                + times
                + struct.pack("<I?B", 0, self.is_frozen, self.light_state)
            )
        if self.kind == "walker":
            return struct.pack("<ffff?", *self.walk_direction, self.walk_speed, False)
        return b""


def pose_values(pose: Pose) -> tuple[float, ...]:
    """The six numbers of a transform as they lie in memory."""
    return (pose.x, pose.y, pose.z, pose.pitch, pose.yaw, pose.roll)


def pack_pose(pose: Pose) -> list[list[float]]:
    """CARLA's ``Transform``."""
    return [[pose.x, pose.y, pose.z], [pose.pitch, pose.yaw, pose.roll]]


def unpack_pose(value: list[list[float]]) -> Pose:
    """The inverse of :func:`pack_pose`."""
    return Pose(*value[0], *value[1])
