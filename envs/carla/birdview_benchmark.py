"""Bird's-eye views a second on one core, of a made-up town; needs neither CARLA nor a server."""

from __future__ import annotations

import time
from typing import Any

import cv2
import numpy as np

from wm_gym.envs.carla.birdview import BirdView, BirdViewConfig, EpisodeView
from wm_gym.envs.carla.messages import LightState
from wm_gym.envs.carla.route import Route
from wm_gym.envs.carla.state import EgoState, RoadUser
from wm_gym.envs.carla.stop_lines import StopLine
from wm_gym.envs.carla.town_raster import Ground, TownRaster

_SIDE_M = 512
_BLOCK_M = 64
_PIXELS_PER_METRE = 4
_LIGHTS: tuple[LightState, ...] = ("red", "yellow", "green")


def measure_birdview(seconds: float, *, size: int = 128, num_users: int = 50) -> dict[str, Any]:
    """Draw along a street with a stop line at each block, for a while.

    Args:
        seconds: How long.
        size: Side of the pictures.
        num_users: Vehicles and pedestrians, all of them in the picture.

    Returns:
        ``pictures_per_s`` of processor time, and the settings.
    """
    rng = np.random.default_rng(0)
    config = BirdViewConfig(width=size, height=size)
    view = BirdView(config, _town())
    # Northwards up the middle of the town: from the lower edge, y falls.
    street = _SIDE_M / 2 + 2
    y = np.arange(_SIDE_M - _BLOCK_M, _BLOCK_M, -1.0)
    count = len(y)
    route = Route(
        points=np.stack((np.full(count, street), y), axis=1),
        headings=np.full(count, -90.0),
        distances=np.arange(count, dtype=np.float64),
        lane_widths=np.full(count, 3.5),
        in_junction=np.zeros(count, np.bool_),
        commands=np.full(count, 4, np.int64),
    )
    stops = np.arange(_BLOCK_M, _SIDE_M - _BLOCK_M, _BLOCK_M // 2, dtype=np.float64)
    lines = [StopLine(i, (street - 2, stop), (street + 2, stop), -90.0, 0, 0) for i, stop in enumerate(stops)]
    lights = {line.light_id: _LIGHTS[line.light_id % len(_LIGHTS)] for line in lines}
    episode = EpisodeView.of(route, lines, 2.4, 1.0)
    half = size * config.scale / 2
    places = rng.uniform((-half, -config.ahead_m), (half, 2 * half - config.ahead_m), (num_users, 2))
    yaws = rng.uniform(-180, 180, num_users)

    def draw(distance: float) -> None:
        x, y = (float(value) for value in route.point_at(distance))
        users = [
            RoadUser(i, "pedestrian", x + dx, y + dy, yaw, 1.0, 0.2, 0.2)
            if i % 5 == 0
            else RoadUser(i, "vehicle", x + dx, y + dy, yaw, 5.0, 2.4, 1.0)
            for i, ((dx, dy), yaw) in enumerate(zip(places.tolist(), yaws.tolist(), strict=True))
        ]
        view.draw(episode, EgoState(x, y, 0.0, -90.0, 5.0, (0.0, -5.0), 0.0), distance, users, lights)

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        draw(0.0)
        pictures, begun, stop_at = 0, time.process_time(), time.perf_counter() + seconds
        while time.perf_counter() < stop_at:
            draw(pictures * 0.5 % (route.length - config.ahead_m))
            pictures += 1
        rate = pictures / (time.process_time() - begun)
    finally:
        cv2.setNumThreads(threads)
    return {
        "pictures_per_s": rate,
        "settings": {"seconds": seconds, "size": size, "road_users": num_users, "threads": 1},
    }


def _town() -> TownRaster:
    """Streets of four lanes around square blocks."""
    side = _SIDE_M * _PIXELS_PER_METRE
    across = np.abs((np.arange(side) / _PIXELS_PER_METRE + _BLOCK_M / 2) % _BLOCK_M - _BLOCK_M / 2)
    profile = np.select(
        [across < 0.2, across < 7.0, across < 10.0], [Ground.SOLID_LINE, Ground.ROAD, Ground.BESIDE], Ground.NOTHING
    ).astype(np.uint8)
    return TownRaster(np.maximum(profile[:, None], profile), float(_PIXELS_PER_METRE), (0.0, 0.0))
