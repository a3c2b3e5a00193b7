"""Names of columns: those that people give to what is known here, and those that a reward's formula can write."""

from __future__ import annotations

import re

COLUMN_NAMES: dict[str, tuple[str, ...]] = {
    "picture": (
        *("image", "picture", "frame", "img", "filename", "file_name", "file", "path", "image_path", "img_path"),
        *("image_file", "image_name", "frame_path", "frame_file", "center", "center_image", "center_camera"),
    ),
    "steering": (
        *("steering", "steer", "steering_angle", "steer_angle", "angle", "steering_wheel", "wheel", "user_angle"),
        *("steering_cmd", "steer_cmd", "steering_command", "control_steer"),
    ),
    "throttle": (
        *("throttle", "gas", "accelerator", "gas_pedal", "accelerator_pedal", "user_throttle", "throttle_cmd"),
        "control_throttle",
    ),
    "brake": ("brake", "brakes", "braking", "brake_pedal", "brake_cmd", "control_brake"),
    "gear": ("gear", "gear_cmd"),
    "reward": ("reward", "rewards"),
    "speed": ("speed", "velocity", "speed_mps", "speed_ms", "speed_m_s"),
    "episode": ("episode", "episode_id", "run", "run_id", "trip", "session", "session_id", "sequence", "drive"),
    "time": (
        *("time", "timestamp", "t", "time_s", "timestamp_s", "seconds", "elapsed"),
        *(f"{name}_{unit}" for name in ("time", "timestamp") for unit in ("ms", "us", "ns")),
    ),
}
"""What people call each column that is known here; compared as :func:`plain_name` writes them."""


def plain_name(name: str) -> str:
    """A column's name in lower case, with ``_`` for every other sign."""
    return re.sub(r"\W+", "_", name.lower()).strip("_")


def spaced_name(name: str) -> str:
    """A column's name as :func:`plain_name` writes it, with ``_`` between ``steering`` and ``Angle``, too."""
    return plain_name(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name))


def column_name(name: str) -> str:
    """A column's name as the reward's formula can write it: ``"user/angle"`` becomes ``"user_angle"``."""
    plain = re.sub(r"\W+", "_", name.strip()).strip("_") or "column"
    return f"_{plain}" if plain[0].isdigit() else plain
