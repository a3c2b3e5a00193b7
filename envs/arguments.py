"""Checks of constructor arguments and reset options that several environments share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wm_gym.errors import ConfigError, did_you_mean
from wm_gym.vector import Fields


def check_count(name: str, value: Any) -> int:
    """A whole number from 1 up as one of Python's; raises a ``ConfigError`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ConfigError(f"{name}={value!r} must be a whole number from 1 up.")
    return int(value)


def check_positive(name: str, value: Any) -> float:
    """A finite number above 0 as one of Python's; raises a ``ConfigError`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < value < math.inf:
        raise ConfigError(f"{name}={value!r} must be a number above 0.")
    return float(value)


def check_seed(seed: Any) -> int | None:
    """A seed as one of Python's numbers, or ``None``; Gymnasium itself takes no other.

    Raises:
        ConfigError: It is not a whole number from 0 up.
    """
    if seed is None:
        return None
    if isinstance(seed, (bool, np.bool_)) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ConfigError(f"seed={seed!r} must be a whole number from 0 up, or None.")
    return int(seed)


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
    if options is not None and not isinstance(options, Mapping):
        raise ConfigError(f"the options of a reset are a dictionary, but {options!r} was given.")
    for name in options or {}:
        check_choice("reset option", name, known)
    return dict(options or {})


def check_frame_size(frame_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width from one number or two.

    Raises:
        ConfigError: They are not one or two whole numbers of at least 8.
    """
    given = (frame_size, frame_size) if isinstance(frame_size, (int, np.integer)) else frame_size
    size = tuple(given) if isinstance(given, (tuple, list, np.ndarray)) else ()
    if len(size) != 2 or any(not _is_whole(n) or n < 8 for n in size):
        raise ConfigError(f"frame_size={frame_size!r} must be one or two whole numbers of at least 8 pixels.")
    return int(size[0]), int(size[1])


def choose_fields(known: Mapping[str, Fields], names: Sequence[str]) -> Fields:
    """The fields of a vector by names, each of which stands for one or several, in the order in which they are named.

    Raises:
        ConfigError: A name is unknown or occurs twice, or the names are one text.
    """
    if isinstance(names, str):
        raise ConfigError(f"vector={names!r} takes a list of names, as in vector=({names!r},).")
    for name in names:
        if name not in known:
            hint = did_you_mean(str(name), known)
            raise ConfigError(f"vector={list(names)!r} knows no {name!r}{hint}; choose from {', '.join(known)}.")
    if len(set(names)) < len(names):
        raise ConfigError(f"vector={list(names)!r} names a field twice.")
    return tuple(field for name in names for field in known[name])


def _is_whole(value: Any) -> bool:
    if isinstance(value, (float, np.floating)):
        return float(value).is_integer()
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
