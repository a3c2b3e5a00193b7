"""A user's own environment on CARLA: another observation of the same simulator, under another id."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from wm_gym.envs import CarlaDrivingEnv


class OwnCarlaEnv(CarlaDrivingEnv):
    """CARLA upside down."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Start an episode."""
        observed, info = super().reset(seed=seed, options=options)
        return _turned(observed), info

    def step(self, action: Any) -> Any:
        """Hold an action."""
        observed, *rest = super().step(action)
        return (_turned(observed), *rest)


def _turned(observed: Any) -> Any:
    return {**observed, "image": observed["image"][::-1].copy()}


gym.register("OwnCarla-v0", OwnCarlaEnv)
