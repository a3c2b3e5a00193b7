"""Devices by name."""

from __future__ import annotations

import torch

from wm_gym.errors import ConfigError


def resolve_device(name: str | torch.device) -> torch.device:
    """The device called ``name``; ``"auto"`` is a CUDA GPU where there is one, else the CPU.

    Raises:
        ConfigError: There is no such device here.
    """
    device = parse_device(name)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise _unusable(name) from error
    return device


def parse_device(name: str | torch.device) -> torch.device:
    """As :func:`resolve_device`, whether there is such a device here or not.

    Raises:
        ConfigError: No device has such a name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except (RuntimeError, TypeError, ValueError) as error:
        raise _unusable(name) from error


def _unusable(name: object) -> ConfigError:
    return ConfigError(f"device={str(name)!r} is not usable here; use 'cpu' or 'auto'.")
