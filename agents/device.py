"""Devices by name."""

from __future__ import annotations

import torch

from wm_gym.errors import ConfigError


def resolve_device(name: str | torch.device) -> torch.device:
    """The device called ``name``; ``"auto"`` is a CUDA GPU where there is one, else the CPU.

    Raises:
        ConfigError: There is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={str(name)!r} is not usable here; use 'cpu' or 'auto'.") from error
    return device
