"""A user's own environment on CARLA: another observation of the same simulator, under another id."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from wm_gym.envs import CarlaDrivingEnv


class OwnCarlaEnv(CarlaDrivingEnv):
    """CARLA upside down."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Start an episode."""
        frame, info = super().reset(seed=seed, options=options)
        return frame[::-1].copy(), info

    def step(self, action: Any) -> Any:
        """Hold an action."""
        frame, *rest = super().step(action)
        return (frame[::-1].copy(), *rest)


gym.register("OwnCarla-v0", OwnCarlaEnv)
