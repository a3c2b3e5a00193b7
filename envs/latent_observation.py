"""A simulator seen through a world model: the observations that a policy had in the dream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import ArrayLike, NDArray

from wm_gym.envs.dream_model import DreamModel, resolve_model
from wm_gym.envs.model_actions import ModelActions
from wm_gym.envs.rollout_contract import observation_space_of
from wm_gym.envs.simulators import frame_shape
from wm_gym.errors import SimulatorError
from wm_gym.observation import split_observation
from wm_gym.rollouts import LatentFilter, latent_features
from wm_gym.simulator import SimulatorSpec
from wm_gym.state import LatentState


class LatentObservation(gym.Wrapper[Any, ArrayLike, Any, ArrayLike], RecordConstructorArgs):
    """Gives a simulator the ``"latent"`` observations of :class:`~wm_gym.envs.dream.DreamDrivingEnv`.

    It keeps a latent state: ``reset`` sets it from the first frame, and each ``step`` advances it with the action and
    the frame that followed. Observation and action spaces are those of the dream, so that a policy trained there drives
    here unchanged. Rewards, ends and ``info`` are the simulator's.

    Args:
        env: A simulator with the observations that the model was trained with, frames uint8 ``(H, W, 3)`` or a ``Dict``
            of frame and vector, and one of the model's action spaces, such as :func:`wm_gym.envs.make_simulator` gives.
        model: A model's folder, ``"bundled"`` or a :class:`~wm_gym.world_model.WorldModel`, which is shared and put in
            evaluation mode.
        device: Where a model that is read from a folder computes; ``None`` is the CPU. A model that is passed in stays
            where it is, and another device is refused.

    Raises:
        SimulatorError: Frames or actions of the simulator are not those that the model was trained with.
        BundleError: The model is missing or damaged.

    ```python
    env = LatentObservation(make_simulator("car-racing"), "bundled")
    ```
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        model: str | Path | DreamModel = "bundled",
        device: str | torch.device | None = None,
    ) -> None:
        RecordConstructorArgs.__init__(self, model=model, device=device)
        gym.Wrapper.__init__(self, env)
        self.model = resolve_model(model, device)
        _check_observations(env, self.model.simulator, self.model.config.frame_size)
        self.actions = _actions_of(env.action_space, self.model)
        self.observation_space = observation_space_of(self.model, "latent")
        self._filter = LatentFilter(self.model)

    @property
    def state(self) -> LatentState:
        """The current latent state, a batch of one on the model's device.

        Raises:
            ResetNeeded: There was no reset yet.
        """
        if self._filter.state is None:
            raise ResetNeeded("there is no latent state before the first reset().")
        return self._filter.state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Reset the simulator and start a latent state from its first frame."""
        observed, info = self.env.reset(seed=seed, options=options)
        return self._features(observed, None), info

    def step(self, action: ArrayLike) -> tuple[NDArray[np.float32], Any, bool, bool, dict[str, Any]]:
        """Step the simulator and advance the latent state with the action and the frame.

        Raises:
            ResetNeeded: There was no reset yet.
            ConfigError: The action has the wrong shape or a value that is not finite; the simulator is not stepped.
        """
        _ = self.state  # there must have been a reset
        stored = self.actions.to_stored(action)
        observed, reward, terminated, truncated, info = self.env.step(action)
        return self._features(observed, stored), reward, terminated, truncated, info

    def _features(self, observed: Any, last_action: NDArray[np.float32] | None) -> NDArray[np.float32]:
        return latent_features(self._filter, split_observation(observed), last_action)


def _check_observations(env: gym.Env[Any, Any], simulator: SimulatorSpec, frame_size: tuple[int, int]) -> None:
    """Raise a ``SimulatorError`` unless the observations are those that the model was trained with."""
    space, fields = env.observation_space, simulator.vector
    if isinstance(space, spaces.Dict) and set(space.spaces) == {"image", "vector"}:
        size = space["vector"].shape
        if size != (len(fields),):
            raise SimulatorError(
                f"the simulator gives vectors of shape {size} beside its frames, but the model was trained with "
                f"{len(fields)} numbers ({', '.join(field.name for field in fields)}); make the simulator as it was."
            )
    elif fields:
        raise SimulatorError(
            f"the model was trained with {len(fields)} numbers beside each frame "
            f"({', '.join(field.name for field in fields)}), but the simulator gives none; make it as it was "
            "recorded, with wm_gym.envs.make_simulator_from_spec."
        )
    shown = frame_shape(env, "the simulator")
    if shown != tuple(frame_size):
        height, width = frame_size
        raise SimulatorError(
            f"the simulator's frames are {shown[0]}x{shown[1]}, but the model was trained with "
            f"{height}x{width}; make the simulator with frame_size=({height}, {width})."
        )


def _actions_of(space: gym.Space[Any], model: DreamModel) -> ModelActions:
    """The model's kind of action whose space the simulator has."""
    action_format = model.simulator.action
    offered = [ModelActions(action_format, name) for name in action_format.names]
    for actions in offered:
        if actions.space == space:
            return actions
    wanted = " or ".join(f"action={actions.name!r}: {actions.space}" for actions in offered)
    raise SimulatorError(
        f"the simulator's actions are {space}, but the model was trained on {model.simulator.id} with {wanted}."
    )
