"""The simulated world: actors, ticks, sensors and traffic lights. It knows nothing of sockets but where to send."""

from __future__ import annotations

import dataclasses
import math
import queue
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgpack
import numpy as np

from wm_gym.envs.carla_light.actors import Actor, Vector, VehicleControl, pack_pose
from wm_gym.envs.carla_light.blueprints import BLUEPRINTS, Blueprint
from wm_gym.envs.carla_light.camera import Box, render_rgb, render_semantic, traffic_light_head
from wm_gym.envs.carla_light.collisions import Scenery, neighbours, obstacle
from wm_gym.envs.carla_light.contacts import push_apart
from wm_gym.envs.carla_light.geometry import attach, boxes_overlap, rotation
from wm_gym.envs.carla_light.interference import Interference
from wm_gym.envs.carla_light.layout import Pose, Town, TrafficLight
from wm_gym.envs.carla_light.scenery import BUILDING_TYPE, POLE_TYPE, obstacles
from wm_gym.envs.carla_light.surface import NOWHERE
from wm_gym.envs.carla_light.towns import Towns
from wm_gym.envs.carla_light.wire import token_bytes

WORLD_STREAM = 1
_COLLISION_SENSOR, _RGB_CAMERA, _SEMANTIC_CAMERA, _WORLD_OBSERVER = 0, 13, 14, 17
_MAP_CHANGED = 1
_CAR_TAG, _WALKER_TAG, _OTHER_TAG = 14, 12, 22
_ANY_TAG = 255
_SCENERY_TAGS = {BUILDING_TYPE: 3, POLE_TYPE: 6}
_RED, _YELLOW, _GREEN = 0, 1, 2
_LIGHT_COLORS = ((230, 40, 30), (240, 200, 40), (50, 220, 90))
_GREEN_S, _YELLOW_S, _ALL_RED_S = 10.0, 3.0, 2.0
"""CARLA's times of a traffic light; the groups of a junction take turns."""
_FIRST_FRAME = 2**33
"""A server that has run for long has seen many frames, not all of them since a client came."""
_DEFAULT_STEP_S = 0.05
_SPAWN_HEIGHT_M = 2.0
_SAME_WAY_DEG = 60.0
"""Between a vehicle's heading and its lane's, below which the lane's light is for it."""


class Streams(Protocol):
    """Where sensor data go."""

    port: int

    def send(self, stream_id: int, message: bytes) -> None:
        """Send a message to everyone who listens to the stream."""

    def is_listened_to(self, stream_id: int) -> bool:
        """Whether anyone does."""
        ...

    def forget(self, stream_id: int) -> None:
        """End a stream."""


class SpawnError(ValueError):
    """An actor cannot be spawned."""


@dataclass
class Settings:
    """CARLA's ``EpisodeSettings``: the two that matter here, and the rest as it came."""

    synchronous: bool = False
    fixed_delta: float = 0.0
    rest: list[Any] = dataclasses.field(default_factory=lambda: [True, 0.01, 10, 0.0, False, 3000.0, 2000.0, True])
    no_rendering: bool = False

    def pack(self) -> list[Any]:
        """For the wire."""
        delta = [True, self.fixed_delta] if self.fixed_delta > 0 else [False]
        return [self.synchronous, self.no_rendering, delta, *self.rest]

    @classmethod
    def unpack(cls, values: list[Any]) -> Settings:
        """From the wire."""
        synchronous, no_rendering, delta, *rest = values
        return cls(synchronous, delta[1] if delta[0] else 0.0, rest, no_rendering)


class World:
    """Everything that the server simulates; every method may be called from any thread.

    Args:
        towns: What can be loaded; the first is at once.
        streams: Where sensor data go.
        interference: What shall go wrong.
    """

    def __init__(self, towns: Towns, streams: Streams, interference: Interference) -> None:
        self.lock = threading.RLock()
        self.streams = streams
        self.interference = interference
        self.towns = towns
        self.settings = Settings()
        self.weather: list[Any] = [10.0, 0.0, 0.0, 5.0, -1.0, 45.0, 2.0, 0.75, 0.1, 0.0, 1.0, 0.03, 0.0331, 0.0]
        self.frame = _FIRST_FRAME
        self.seconds = _FIRST_FRAME * _DEFAULT_STEP_S
        self.episode = 0
        self._lights_s = 0.0
        self._next_id = 1
        self.actors: dict[int, Actor] = {}
        self.traffic_lights: list[Actor] = []
        """In the order of the town's."""
        self._turns: dict[int, int] = {}
        """Groups of lights of each junction."""
        self._late_images: list[tuple[int, int, bytes]] = []
        self._images = _ImageSender(streams)
        self._is_new_map = False
        """Whether the next frame is the first one in a town."""
        self.town: Town
        self.load(towns.first)

    # -- towns ---------------------------------------------------------------------------------------------------

    def load(self, town: str) -> None:
        """Begin a new episode in a town; all actors are gone."""
        with self.lock:
            for actor in list(self.actors.values()):
                self._remove(actor)
            self.town = self.towns.load(town.rpartition("/")[2])
            self.episode += 1
            self.traffic_lights, self._turns = [], {}
            self.obstacles = tuple(obstacles(self.town))
            self.scenery = Scenery(self.obstacles)
            self.spectator = self._add(Blueprint("spectator", (0.0, 0.0, 0.0)), [], Pose(0.0, 0.0, 30.0))
            for light in self.town.lights:
                actor = self._add(Blueprint("traffic.traffic_light", (0.3, 0.3, 2.5)), [], _facing(light))
                actor.sign_id = light.opendrive_id
                actor.trigger = _trigger_volume(light)
                actor.simulates_physics = False
                self.traffic_lights.append(actor)
                self._turns[light.junction] = max(self._turns.get(light.junction, 0), light.group + 1)
            self._set_lights()
            # Told with the next frame, as CARLA does: the client's library ends its stream of frames while it loads a
            # town, and where one comes in just then, it crashes.
            self._is_new_map = True

    # -- actors --------------------------------------------------------------------------------------------------

    def spawn(self, blueprint: str, attributes: list[list[Any]], pose: Pose, parent: int = 0) -> Actor:
        """Make an actor.

        Raises:
            SpawnError: There is no such blueprint or parent, the place is taken, or something else refuses.
        """
        with self.lock:
            kind = BLUEPRINTS.get(blueprint)
            if kind is None:
                raise SpawnError(f"there is no blueprint {blueprint!r}")
            if self.interference.refuses(blueprint):
                raise SpawnError("Spawn failed because of collision at spawn position")
            if parent and parent not in self.actors:
                raise SpawnError("unable to spawn actor: parent actor not found")
            if kind.id.startswith(("vehicle.", "walker.", "static.")):
                for other in self._solid():
                    near = abs(other.pose.z - pose.z) < _SPAWN_HEIGHT_M
                    if near and boxes_overlap(pose, kind.extent, other.pose, other.blueprint.extent):
                        raise SpawnError("Spawn failed because of collision at spawn position")
            actor = self._add(kind, attributes, pose, parent)
            if kind.id.startswith("sensor.") and kind.id != "sensor.other.lane_invasion":
                actor.stream_id = WORLD_STREAM + actor.id
            actor.speed_limit = self.town.speed_limit
            if kind.id.startswith("vehicle."):
                self._heed_road(actor)
            return actor

    def destroy(self, actor_id: int) -> bool:
        """Remove an actor; what is mounted on it, and the controller of a walker, stays behind."""
        with self.lock:
            actor = self.actors.get(actor_id)
            if actor is None:
                return False
            self._remove(actor)
            return True

    def pack(self, actor: Actor) -> list[Any]:
        """The wire's description of an actor."""
        token = token_bytes(actor.stream_id, self.streams.port) if actor.stream_id else b""
        return actor.pack(token)

    def world_pose(self, actor: Actor) -> Pose:
        """Where an actor is."""
        parent = self.actors.get(actor.parent_id)
        return actor.pose if parent is None else attach(self.world_pose(parent), actor.pose)

    def _add(self, blueprint: Blueprint, attributes: list[list[Any]], pose: Pose, parent: int = 0) -> Actor:
        actor = Actor(self._next_id, blueprint, attributes, pose, parent)
        self._next_id += 1
        self.actors[actor.id] = actor
        return actor

    def _remove(self, actor: Actor) -> None:
        if actor.stream_id:
            self.streams.forget(actor.stream_id)
        self.actors.pop(actor.id, None)

    def _solid(self) -> list[Actor]:
        return [actor for actor in self.actors.values() if actor.kind in ("vehicle", "walker", "static")]

    # -- ticks ---------------------------------------------------------------------------------------------------

    @property
    def step_s(self) -> float:
        """Simulated seconds in a frame."""
        return self.settings.fixed_delta or _DEFAULT_STEP_S

    def tick(self) -> int:
        """Simulate one frame and send what the sensors see; returns its number."""
        self.interference.before_frame(self.frame + 1)
        with self.lock:
            self.frame += 1
            self.seconds += self.step_s
            self._lights_s += self.step_s
            self._set_lights()
            collisions = self._move()
            self._send_state()
            for actor, other in collisions:
                self._send_collision(actor, other)
            self._send_images()
            return self.frame

    def run(self, is_stopped: Callable[[], bool]) -> None:
        """Tick in real time while the client does not."""
        while not is_stopped():
            started = time.monotonic()
            if not self.settings.synchronous:
                self.tick()
            time.sleep(max(0.001, self.step_s - (time.monotonic() - started)))

    def _move(self) -> list[tuple[Actor, Actor]]:
        """Move everything; returns who ran into what."""
        hits: list[tuple[Actor, Actor]] = []
        solid = self._solid()
        near = dict(zip((actor.id for actor in solid), neighbours(solid, self.step_s), strict=True))

        def in_the_way(actor: Actor, pose: Pose) -> Actor | None:
            return obstacle(actor, pose, near[actor.id]) or obstacle(actor, pose, self.scenery.near(pose))

        for actor in solid:
            if actor.kind == "static":
                continue
            new = actor.move(self.step_s)
            other = in_the_way(actor, new)
            if other is None:
                actor.pose = new
            else:
                push_apart(actor, new, other, lambda moved, pose: in_the_way(moved, pose) is None)
                hits.append((actor, other))
            self._heed_road(actor)
        return hits

    def _heed_road(self, actor: Actor) -> None:
        """Put a vehicle or a walker on the ground below it, and tell a vehicle its light and its speed limit."""
        surface, pose = self.town.surface, actor.pose
        sample = surface.locate(pose.x, pose.y, pose.z)
        if sample == NOWHERE:
            actor.light = None
            return
        if actor.kind == "walker":
            # Of a walker the pose is that of its middle.
            height = surface.height(sample, pose.x, pose.y) + actor.blueprint.extent[2]
            actor.pose = pose._replace(z=height)
            return
        turned = surface.turned(sample, pose.yaw)
        slope = surface.slope[sample] * math.cos(math.radians(turned))
        height = surface.height(sample, pose.x, pose.y)
        actor.pose = Pose(pose.x, pose.y, height, math.degrees(math.atan(slope)), pose.yaw, pose.roll)
        if not math.isnan(surface.limit[sample]):
            actor.speed_limit = surface.limit[sample]
        number = surface.light[sample]
        if number == NOWHERE or abs(turned) > _SAME_WAY_DEG:
            actor.light = None
        else:
            light = self.traffic_lights[number]
            actor.light = light.id, light.light_state

    def lights_of_junction(self, actor_id: int) -> list[int]:
        """Numbers of the traffic lights at the junction of one of them, itself included."""
        places = {actor.id: light.junction for light, actor in zip(self.town.lights, self.traffic_lights, strict=True)}
        return [number for number, junction in places.items() if junction == places[actor_id]]

    def reset_lights(self) -> None:
        """Begin the lights' cycle anew."""
        self._lights_s = 0.0
        self._set_lights()

    def _set_lights(self) -> None:
        """The groups of a junction take turns: green, yellow, all red."""
        turn_s = _GREEN_S + _YELLOW_S + _ALL_RED_S
        # Half a step, so that sums of steps that miss a change by a rounding error do not decide.
        since = self._lights_s + self.step_s / 2
        now = {turns: divmod(since % (turn_s * turns), turn_s) for turns in set(self._turns.values())}
        for light, actor in zip(self.town.lights, self.traffic_lights, strict=True):
            if not actor.is_frozen:
                turn, elapsed = now[self._turns[light.junction]]
                current = _GREEN if elapsed < _GREEN_S else (_YELLOW if elapsed < _GREEN_S + _YELLOW_S else _RED)
                actor.light_state = current if light.group == turn else _RED
                actor.light_elapsed = elapsed

    # -- sensors -------------------------------------------------------------------------------------------------

    def _header(self, sensor_type: int, pose: Pose) -> bytes:
        return struct.pack("<QQd6f", sensor_type, self.frame, self.seconds, *pose)

    def _send_state(self) -> None:
        flags = _MAP_CHANGED if self._is_new_map else 0
        self._is_new_map = False
        state = struct.pack("<Qdf3iI", self.episode, time.time(), self.step_s, 0, 0, 0, flags)
        actors = b"".join(actor.pack_state(self.world_pose(actor)) for actor in self.actors.values())
        self.streams.send(WORLD_STREAM, self._header(_WORLD_OBSERVER, Pose(0.0, 0.0)) + state + actors)

    def _send_collision(self, actor: Actor, other: Actor) -> None:
        for hit, against in ((actor, other), (other, actor)) if other.id else ((actor, other),):
            for sensor in self.actors.values():
                if sensor.blueprint.id == "sensor.other.collision" and sensor.parent_id == hit.id:
                    impulse = [actor.blueprint.extent[0] * 1000.0, 0.0, 0.0]
                    event = msgpack.packb([self.pack(hit), self.pack(against), impulse])
                    self.streams.send(
                        sensor.stream_id, self._header(_COLLISION_SENSOR, self.world_pose(sensor)) + event
                    )

    def _send_images(self) -> None:
        due = [image for image in self._late_images if image[0] <= self.frame]
        self._late_images = [image for image in self._late_images if image[0] > self.frame]
        for _, stream_id, message in due:
            self._images.send(stream_id, message, 0.0)
        if self.settings.no_rendering:
            return
        for sensor in list(self.actors.values()):
            if sensor.blueprint.id.startswith("sensor.camera.") and self.streams.is_listened_to(sensor.stream_id):
                self._send_image(sensor)

    def _send_image(self, sensor: Actor) -> None:
        if self.interference.drops_image(self.frame):
            return
        message = self._image(sensor)
        if self.interference.delay_images_frames > 0:
            self._late_images.append((self.frame + self.interference.delay_images_frames, sensor.stream_id, message))
        else:
            self._images.send(sensor.stream_id, message, self.interference.delay_images_s)

    def _image(self, sensor: Actor) -> bytes:
        width, height = int(sensor.attribute("image_size_x", "800")), int(sensor.attribute("image_size_y", "600"))
        fov = float(sensor.attribute("fov", "90"))
        pose = self.world_pose(sensor)
        eye = self._flattened(pose)
        boxes = [
            Box(self._flattened(actor.pose), actor.blueprint.extent, actor.color, _tag(actor))
            for actor in self._solid()
            if actor.id != sensor.parent_id
        ]
        for light, actor in zip(self.town.lights, self.traffic_lights, strict=True):
            boxes.append(traffic_light_head(light, _LIGHT_COLORS[actor.light_state]))
        if sensor.blueprint.id == "sensor.camera.rgb":
            sun, fog = float(self.weather[5]), float(self.weather[6])
            brightness = float(np.clip(0.35 + sun / 90.0, 0.25, 1.0))
            picture = render_rgb(self.town, eye, fov, width, height, boxes, brightness=brightness, fog=fog / 100.0)
            kind = _RGB_CAMERA
        else:
            picture = render_semantic(self.town, eye, fov, width, height, boxes)
            kind = _SEMANTIC_CAMERA
        return self._header(kind, pose) + struct.pack("<IIf", width, height, fov) + picture.tobytes()

    def _flattened(self, pose: Pose) -> Pose:
        """A pose above a ground that is flat: pictures know no hills."""
        surface = self.town.surface
        sample = surface.locate(pose.x, pose.y, pose.z)
        return pose if sample == NOWHERE else pose._replace(z=pose.z - surface.height(sample, pose.x, pose.y))

    # -- commands ------------------------------------------------------------------------------------------------

    def actor(self, actor_id: int) -> Actor:
        """An actor by number.

        Raises:
            KeyError: There is none.
        """
        return self.actors[actor_id]

    def level_boxes(self, tag: int) -> list[Any]:
        """CARLA's ``BoundingBox`` of what stands beside the roads, in the world, by its semantic tag."""
        boxes = []
        for found in self.obstacles:
            if tag in (_ANY_TAG, _SCENERY_TAGS[found.blueprint.id]):
                pose, extent = found.pose, found.blueprint.extent
                middle = [pose.x, pose.y, pose.z + extent[2]]
                boxes.append([middle, list(extent), [pose.pitch, pose.yaw, pose.roll], 0])
        return boxes

    def set_pose(self, actor_id: int, pose: Pose, speed: float | None = None) -> None:
        """Put an actor somewhere, and say how fast it is there."""
        actor = self.actor(actor_id)
        actor.pose = pose
        if speed is not None:
            actor.set_speed(speed)

    def control_vehicle(self, actor_id: int, values: list[Any]) -> None:
        """Press the pedals."""
        self.actor(actor_id).control = VehicleControl.unpack(values)

    def control_walker(self, actor_id: int, values: list[Any]) -> None:
        """Send a walker on its way: direction, speed, jump."""
        actor = self.actor(actor_id)
        actor.walk_direction, actor.walk_speed = tuple(values[0]), float(values[1])

    def summary(self) -> dict[str, Any]:
        """What there is, for tests."""
        with self.lock:
            return {
                "frame": self.frame,
                "town": self.town.name,
                "synchronous": self.settings.synchronous,
                "fixed_delta": self.settings.fixed_delta,
                "no_rendering": self.settings.no_rendering,
                "actors": [
                    [actor.id, actor.blueprint.id, actor.attribute("role_name", "")] for actor in self.actors.values()
                ],
                "poses": {actor.id: pack_pose(self.world_pose(actor)) for actor in self.actors.values()},
                "weather": self.weather,
            }


class _ImageSender:
    """Sends pictures from a thread of its own, in their order: as from CARLA, each comes after its tick's snapshot."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._waiting: queue.SimpleQueue[tuple[float, int, bytes]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def send(self, stream_id: int, message: bytes, delay_s: float) -> None:
        """Send a picture some seconds from now."""
        self._waiting.put((time.monotonic() + delay_s, stream_id, message))

    def _run(self) -> None:
        while True:
            due, stream_id, message = self._waiting.get()
            time.sleep(max(0.0, due - time.monotonic()))
            self._streams.send(stream_id, message)


def _facing(light: TrafficLight) -> Pose:
    """The pose of a light's actor: its x axis points to the right of the traffic, as that of CARLA's own lights."""
    return light.pose._replace(yaw=light.trigger.yaw + 90.0)


def _trigger_volume(light: TrafficLight) -> tuple[Vector, Vector]:
    """Centre and half sizes of a light's trigger in the frame of its actor, whose x axis lies across the lanes."""
    pose = _facing(light)
    offset = rotation(pose).T @ np.subtract(
        (light.trigger.x, light.trigger.y, light.trigger.z), (pose.x, pose.y, pose.z)
    )
    along, across, up = light.trigger_extent
    return (float(offset[0]), float(offset[1]), float(offset[2])), (across, along, up)


def _tag(actor: Actor) -> int:
    return {"vehicle": _CAR_TAG, "walker": _WALKER_TAG}.get(actor.kind, _OTHER_TAG)
