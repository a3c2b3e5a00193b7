"""Checks of constructor arguments and reset options that several environments share."""

from __future__ import annotations

from typing import Any

import numpy as np

from wm_gym.errors import ConfigError, did_you_mean


def check_count(name: str, value: Any) -> None:
    """Raise a ``ConfigError`` unless ``value`` is a whole number from 1 up."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ConfigError(f"{name}={value!r} must be a whole number from 1 up.")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise a ``ConfigError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ConfigError(
            f"{name}={value!r} is not known{did_you_mean(str(value), choices)}; "
            f"use one of {', '.join(map(repr, choices))}."
        )


def check_reset_options(options: dict[str, Any] | None, known: tuple[str, ...]) -> dict[str, Any]:
    """Return the options of a reset.

    Raises:
        ConfigError: One of them is unknown.
    """
    for name in options or {}:
        check_choice("reset option", name, known)
    return options or {}


def check_frame_size(frame_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width from one number or two.

    Raises:
        ConfigError: They are not one or two whole numbers of at least 8.
    """
    size = (frame_size, frame_size) if isinstance(frame_size, int) else tuple(frame_size)
    if len(size) != 2 or any(int(n) != n or n < 8 for n in size):
        raise ConfigError(f"frame_size={frame_size!r} must be one or two whole numbers of at least 8 pixels.")
    return int(size[0]), int(size[1])
