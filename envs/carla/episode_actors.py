"""The actors of one episode. Used in the client process only."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from wm_gym.envs.carla.route import Route
from wm_gym.envs.carla.sensors import Camera, CollisionSensor
from wm_gym.envs.carla.state import RoadUser, RoadUserKind
from wm_gym.envs.carla.traffic import Traffic

if TYPE_CHECKING:
    import carla

DEFAULT_WHEELBASE_M = 2.9
_DEFAULT_STEER_ANGLE = 70.0
_REACH_M = 80.0
_REFRESH_TICKS = 20
_KINDS: dict[str, RoadUserKind] = {"vehicle": "vehicle", "walker": "pedestrian"}


_Known = tuple[int, RoadUserKind, float, float]
"""Number, kind, half length and half width of a road user."""


class EpisodeActors:
    """The ego vehicle, what is mounted on it, and the traffic around it.

    Args:
        ego: The ego vehicle.
        traffic: The other road users.

    Attributes:
        cameras: By name.
        collisions: The collision sensor, once it is mounted.
        is_autopilot: Whether the Traffic Manager has been given the ego vehicle.
        manager_seed: Seed for the Traffic Manager.
        route: The way to drive, once it is planned.
        max_steer_angle: Of the wheels at full lock, in degrees.
        wheelbase: In metres.
        half_length: Of the ego vehicle, in metres.
        half_width: Of the ego vehicle, in metres.
    """

    def __init__(self, ego: carla.Vehicle, traffic: Traffic) -> None:
        self.ego = ego
        self.half_length = float(ego.bounding_box.extent.x)
        self.half_width = float(ego.bounding_box.extent.y)
        self.traffic = traffic
        self.cameras: dict[str, Camera] = {}
        self.collisions: CollisionSensor | None = None
        self.is_autopilot = False
        self.manager_seed = 0
        self.route: Route | None = None
        self.max_steer_angle = _DEFAULT_STEER_ANGLE
        self.wheelbase = DEFAULT_WHEELBASE_M
        self._others: list[_Known] = []
        self._age = _REFRESH_TICKS

    @property
    def sensors(self) -> list[Any]:
        """Everything mounted on the ego vehicle."""
        collisions = [self.collisions.sensor] if self.collisions is not None else []
        return [*(camera.sensor for camera in self.cameras.values()), *collisions]

    def road_users(
        self, world: carla.World, snapshot: carla.WorldSnapshot, around: carla.Location
    ) -> tuple[RoadUser, ...]:
        """Vehicles and pedestrians within reach; who exists is looked up now and then, where they are every tick."""
        if self._age >= _REFRESH_TICKS:
            self._others, self._age = self._look_up(world), 0
        self._age += 1
        found = []
        for number, kind, half_length, half_width in self._others:
            state = snapshot.find(number)
            if state is None:
                continue
            transform, velocity = state.get_transform(), state.get_velocity()
            where = transform.location
            if abs(where.x - around.x) > _REACH_M or abs(where.y - around.y) > _REACH_M:
                continue
            yaw = math.radians(transform.rotation.yaw)
            speed = velocity.x * math.cos(yaw) + velocity.y * math.sin(yaw)
            found.append(
                RoadUser(
                    number, kind, where.x, where.y, transform.rotation.yaw, speed, half_length, half_width, where.z
                )
            )
        return tuple(found)

    def _look_up(self, world: carla.World) -> list[_Known]:
        known = {entry[0]: entry for entry in self._others}
        others = []
        for actor in world.get_actors():
            kind = _KINDS.get(actor.type_id.partition(".")[0])
            if kind is None or actor.id == self.ego.id:
                continue
            entry = known.get(actor.id)
            if entry is None:
                with suppress(RuntimeError):  # it was destroyed just now
                    extent = actor.bounding_box.extent
                    entry = (actor.id, kind, float(extent.x), float(extent.y))
            if entry is not None:
                others.append(entry)
        return others
