"""Dreams as LeRobot's policies see an environment, for its EnvHub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import ArrayLike

from wm_gym.envs.dream import DreamDrivingEnv
from wm_gym.envs.dream_model import DreamModel, resolve_model
from wm_gym.observation import split_observation

CAMERA = "front"
"""A policy sees the frame as ``observation.images.front``, as in an exported dataset."""


class LeRobotDream(gym.Wrapper[dict[str, Any], ArrayLike, Any, ArrayLike]):
    """A dream whose observations have the names that LeRobot knows.

    ``pixels`` has the frame ``(H, W, 3)`` uint8 under ``front``; ``agent_pos``, where the simulator gives a vector, has
    it, ``(V,)`` float32. LeRobot makes ``observation.images.front`` and ``observation.state`` of them, the names in
    an exported dataset. ``info["is_success"]`` says whether the horizon was reached.

    Args:
        env: A dream with observations ``"image"``.
        task: The task in words.
    """

    def __init__(self, env: DreamDrivingEnv, task: str) -> None:
        super().__init__(env)
        self.task = self.task_description = task
        self._max_episode_steps = env.horizon
        space = env.observation_space
        image, vector = (space["image"], space["vector"]) if isinstance(space, spaces.Dict) else (space, None)
        known: dict[str, gym.Space[Any]] = {"pixels": spaces.Dict({CAMERA: image})}
        self._has_vector = vector is not None
        if vector is not None:
            known["agent_pos"] = vector
        self.observation_space = spaces.Dict(known)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin a new dream."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._named(observation), info | {"is_success": False}

    def step(self, action: ArrayLike) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """Imagine one step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        is_success = bool(truncated and not terminated)
        return self._named(observation), reward, terminated, truncated, info | {"is_success": is_success}

    def _named(self, observation: Any) -> dict[str, Any]:
        frame, vector = split_observation(observation)
        named: dict[str, Any] = {"pixels": {CAMERA: frame}}
        if self._has_vector:
            named["agent_pos"] = vector
        return named


def make_lerobot_dreams(
    model: str | Path | DreamModel = "bundled", n_envs: int = 1, *, horizon: int = 200, task: str = "drive"
) -> SyncVectorEnv:
    """Dreams side by side, as LeRobot's evaluation runs them.

    Args:
        model: A world model, its folder, or its repository on the Hub.
        n_envs: How many.
        horizon: Steps until a dream is truncated.
        task: The task in words, which language-conditioned policies are given.

    Raises:
        BundleError: The model is missing or damaged.
        ConfigError: The horizon is out of range.
    """
    shared = resolve_model(model)

    def make() -> LeRobotDream:
        dream = DreamDrivingEnv(shared, horizon=horizon, observation="image", render_mode="rgb_array")
        return LeRobotDream(dream, task)

    return SyncVectorEnv([make] * n_envs, autoreset_mode=AutoresetMode.SAME_STEP)
