"""Ticks a second of ``CarlaDriving-v0`` beside a bare client loop that does the same tick and camera read."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from wm_gym.envs.carla.birdview_benchmark import measure_birdview
from wm_gym.envs.carla.client import connect, import_carla, server_calls
from wm_gym.envs.carla.config import CameraConfig, ConnectionConfig
from wm_gym.envs.carla.sensors import Camera, camera_blueprint, mount, start_cameras
from wm_gym.provenance import provenance

if TYPE_CHECKING:
    from collections.abc import Iterator

_BIRDVIEW_SIZES = (64, 128)
_ROUNDS = 5
_STEP_S = 0.05
_SPAWN_POINT = 0
_WARM_UP_TICKS = 20


def measure_carla(connection: ConnectionConfig, seconds: float, *, frame_size: int) -> dict[str, Any]:
    """Measure both loops in turns, on one server, from the same spawn point and with the same camera.

    The vehicle stands still, so that both loops draw the same pictures and nothing ends an episode.

    Args:
        connection: The server; nobody else may use it.
        seconds: Time for each of the loops in each of the rounds.
        frame_size: Side of the pictures.

    Returns:
        ``rows`` with the median ticks a second of the rounds, ``ratio`` (of each round, its median), ``birdview``
        (pictures a second of one core by their side, with 50 road users), the settings and what they were measured on.
    """
    rounds: dict[str, list[float]] = {"environment": [], "bare client": []}
    for _ in range(_ROUNDS):
        with _environment(connection, frame_size) as step:
            rounds["environment"].append(_rate(step, seconds))
        with _bare_client(connection, frame_size) as step:
            rounds["bare client"].append(_rate(step, seconds))
    ratios = [env / bare for env, bare in zip(*rounds.values(), strict=True)]
    return {
        "rows": [
            {"loop": name, "ticks_per_s": statistics.median(rates), "least": min(rates), "most": max(rates)}
            for name, rates in rounds.items()
        ],
        "ratio": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
        "birdview": {size: measure_birdview(seconds, size=size)["pictures_per_s"] for size in _BIRDVIEW_SIZES},
        "settings": {"seconds": seconds, "rounds": _ROUNDS, "frame_size": frame_size},
        "machine": {"cores": os.cpu_count()},
        "provenance": provenance(),
    }


def render_markdown(result: dict[str, Any]) -> str:
    """The measurements as a Markdown table with machine, versions and settings below."""
    lines = ["| loop | ticks/s (median) | least | most |", "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {row['loop']} | {row['ticks_per_s']:.0f} | {row['least']:.0f} | {row['most']:.0f} |"
        for row in result["rows"]
    ]
    ratio, made = result["ratio"], result["provenance"]
    settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
    versions = ", ".join(f"{name} {version}" for name, version in made["packages"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"Environment / bare client: {ratio['median']:.2f} (median; {ratio['least']:.2f} to {ratio['most']:.2f}).",
            "Bird's-eye views drawn a second on one core, with 50 road users in each: "
            + ", ".join(f"{rate:.0f} at {size}x{size}" for size, rate in result["birdview"].items())
            + ".",
            f"Settings: {settings}.",
            f"Machine: {result['machine']['cores']} cores, {made['machine']}.",
            f"Versions: {versions}.",
        ]
    )


@contextmanager
def _environment(connection: ConnectionConfig, frame_size: int) -> Iterator[Callable[[], None]]:
    # No limit ends an episode of a car that stands.
    end = {"max_s": 0, "stuck_s": 0}
    env = gym.make(
        "CarlaDriving-v0",
        **connection.model_dump(exclude_defaults=True),
        frame_size=frame_size,
        weather=None,
        end=end,
    )
    action = np.array([0.0, 0.0, 1.0, 1.0], np.float32)
    try:
        env.reset(seed=0, options={"spawn_point": _SPAWN_POINT})

        def step() -> None:
            env.step(action)

        yield step
    finally:
        env.close()


@contextmanager
def _bare_client(connection: ConnectionConfig, frame_size: int) -> Iterator[Callable[[], None]]:
    carla = import_carla()
    client = connect(connection, wait=False)
    with server_calls(f"{connection.host}:{connection.port}"), ExitStack() as clean_up:
        world = client.get_world()
        original, settings = world.get_settings(), world.get_settings()
        settings.synchronous_mode, settings.fixed_delta_seconds = True, _STEP_S
        world.apply_settings(settings)
        clean_up.callback(world.apply_settings, original)

        def tick() -> int:
            return int(world.tick(connection.timeout_s))

        def destroy(actor: Any) -> None:
            client.apply_batch_sync([carla.command.DestroyActor(actor)], False)
            tick()

        library = world.get_blueprint_library()
        vehicle = world.spawn_actor(
            library.find("vehicle.lincoln.mkz_2020"), world.get_map().get_spawn_points()[_SPAWN_POINT]
        )
        clean_up.callback(destroy, vehicle)
        config = CameraConfig(width=frame_size, height=frame_size)
        sensor = world.spawn_actor(camera_blueprint(library, config, "bench"), mount(carla, config), attach_to=vehicle)
        clean_up.callback(destroy, sensor)
        camera = Camera(sensor, config, "")
        clean_up.callback(sensor.stop)
        start_cameras([camera], tick, connection.timeout_s)
        control = carla.VehicleControl(brake=1.0)

        def step() -> None:
            vehicle.apply_control(control)
            camera.picture(tick(), connection.timeout_s)

        yield step


def _rate(step: Callable[[], None], seconds: float) -> float:
    for _ in range(_WARM_UP_TICKS):
        step()
    ticks, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        step()
        ticks += 1
    return ticks / (time.perf_counter() - started)
