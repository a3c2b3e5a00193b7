"""Sensors on the ego vehicle, matched to ticks by frame number. Used in the client process only."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from wm_gym.envs.carla.config import CameraConfig
from wm_gym.envs.carla.messages import Collision
from wm_gym.errors import SimulatorLostError
from wm_gym.frames import Frame

if TYPE_CHECKING:
    import carla

_MAX_WAITING = 8
"""Pictures kept for a slow reader; in synchronous mode there is one for each tick."""
_START_TICK_S = 0.1
"""Time between the ticks that wait for cameras to start."""


class MissingImageError(SimulatorLostError):
    """A camera sent no picture of a tick."""


class Camera:
    """A camera whose pictures are asked for by frame number, so that a late or lost one is never mistaken for another.

    Args:
        sensor: The camera actor.
        config: What it is.
        name: For messages.
    """

    def __init__(self, sensor: carla.Sensor, config: CameraConfig, name: str) -> None:
        self.sensor = sensor
        self._config = config
        self.name = name or "front"
        self._images: queue.Queue[Any] = queue.Queue(_MAX_WAITING)
        sensor.listen(self._receive)

    def _receive(self, image: carla.Image) -> None:
        while True:
            try:
                self._images.put_nowait(image)
                return
            except queue.Full:
                try:
                    self._images.get_nowait()
                except queue.Empty:
                    continue

    def picture(self, frame: int, timeout_s: float) -> Frame:
        """The picture of one tick: ``(H, W, 3)`` uint8 RGB.

        Raises:
            MissingImageError: It did not come in time, or a later one came instead.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                image = self._images.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise MissingImageError(
                    f"the camera {self.name!r} sent no picture of frame {frame} within {timeout_s:g} s."
                ) from None
            if image.frame == frame:
                return self._to_frame(image)
            if image.frame > frame:
                raise MissingImageError(
                    f"the camera {self.name!r} sent frame {image.frame}, but frame {frame} never came."
                )

    def await_first(self, timeout_s: float) -> bool:
        """Whether a picture, of whatever tick, has come; waits for one."""
        try:
            self._images.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return False
        return True

    def _to_frame(self, image: carla.Image) -> Frame:
        if self._config.kind == "semantic":
            import carla

            image.convert(carla.ColorConverter.CityScapesPalette)
        bgra = np.frombuffer(image.raw_data, dtype=np.uint8).reshape(image.height, image.width, 4)
        return np.ascontiguousarray(bgra[:, :, 2::-1])


def start_cameras(cameras: Iterable[Camera], tick: Callable[[], object], timeout_s: float) -> None:
    """Tick until every camera has sent its first picture.

    CARLA connects to a new sensor in the background, as long as that takes, and a picture always comes after the
    snapshot of its tick. Any picture shows that the camera is connected: to wait for the one of the latest tick would
    never end where pictures take longer than the time between the ticks.

    Raises:
        MissingImageError: A camera sent nothing.
    """
    deadline = time.monotonic() + timeout_s
    for camera in cameras:
        while True:
            tick()
            if camera.await_first(_START_TICK_S):
                break
            if time.monotonic() > deadline:
                raise MissingImageError(f"the camera {camera.name!r} sent no first picture within {timeout_s:g} s.")


class CollisionSensor:
    """What the ego vehicle hits."""

    def __init__(self, sensor: carla.Sensor) -> None:
        self.sensor = sensor
        self._events: queue.SimpleQueue[Collision] = queue.SimpleQueue()
        sensor.listen(self._receive)

    def _receive(self, event: carla.CollisionEvent) -> None:
        other, impulse = event.other_actor, event.normal_impulse
        size = float(np.sqrt(impulse.x**2 + impulse.y**2 + impulse.z**2))
        # Buildings and the like are no actors of the episode: they have number 0 and a type such as static.building.
        self._events.put(Collision(event.frame, int(other.id) if other else 0, other.type_id if other else "", size))

    def take(self) -> tuple[Collision, ...]:
        """Everything that was hit since the last call."""
        found: list[Collision] = []
        while True:
            try:
                found.append(self._events.get_nowait())
            except queue.Empty:
                return tuple(found)


def camera_blueprint(library: carla.BlueprintLibrary, config: CameraConfig, role: str) -> Any:
    """The blueprint of a camera with its settings."""
    kind = {"rgb": "sensor.camera.rgb", "semantic": "sensor.camera.semantic_segmentation"}[config.kind]
    blueprint = library.find(kind)
    settings = {"image_size_x": config.width, "image_size_y": config.height, "fov": config.fov, "role_name": role}
    for name, value in settings.items():
        blueprint.set_attribute(name, str(value))
    return blueprint


def mount(carla_module: Any, config: CameraConfig) -> carla.Transform:
    """Where on the vehicle a camera is."""
    return carla_module.Transform(
        carla_module.Location(config.x, config.y, config.z),
        carla_module.Rotation(config.pitch, config.yaw, config.roll),
    )
