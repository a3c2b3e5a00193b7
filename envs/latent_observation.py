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
from torch import Tensor

from wm_gym.envs.dream_model import DreamModel, resolve_model
from wm_gym.envs.model_actions import ModelActions
from wm_gym.envs.rollout_contract import observation_space_of
from wm_gym.errors import SimulatorError
from wm_gym.frames import Frame, frames_to_tensor
from wm_gym.state import LatentState


class LatentObservation(gym.Wrapper[Any, ArrayLike, Any, ArrayLike], RecordConstructorArgs):
    """Gives a simulator the ``"latent"`` observations of :class:`~wm_gym.envs.dream.DreamDrivingEnv`.

    It keeps a latent state: ``reset`` sets it from the first frame, and each ``step`` advances it with the action and
    the frame that followed. Observation and action spaces are those of the dream, so that a policy trained there drives
    here unchanged. Rewards, ends and ``info`` are the simulator's.

    Args:
        env: A simulator with observations uint8 ``(H, W, 3)`` of the model's frame size and one of the model's action
            spaces, such as :func:`wm_gym.envs.make_simulator` gives.
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
        _check_frames(env.observation_space, self.model.config.frame_size)
        self.actions = _actions_of(env.action_space, self.model)
        self.observation_space = observation_space_of(self.model, "latent")
        self._state: LatentState | None = None

    @property
    def state(self) -> LatentState:
        """The current latent state, a batch of one on the model's device.

        Raises:
            ResetNeeded: There was no reset yet.
        """
        if self._state is None:
            raise ResetNeeded("there is no latent state before the first reset().")
        return self._state

    @torch.no_grad()
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Reset the simulator and start a latent state from its first frame."""
        frame, info = self.env.reset(seed=seed, options=options)
        self._state = self.model.initial_state(self._to_tensor(frame))
        return self._features(), info

    @torch.no_grad()
    def step(self, action: ArrayLike) -> tuple[NDArray[np.float32], Any, bool, bool, dict[str, Any]]:
        """Step the simulator and advance the latent state with the action and the frame.

        Raises:
            ResetNeeded: There was no reset yet.
            ConfigError: The action has the wrong shape or a value that is not finite; the simulator is not stepped.
        """
        state = self.state
        stored = self.actions.to_stored(action)
        frame, reward, terminated, truncated, info = self.env.step(action)
        tensor = torch.from_numpy(stored[None]).to(self.model.device)
        self._state = self.model.observe(state, tensor, self._to_tensor(frame))
        return self._features(), reward, terminated, truncated, info

    def _to_tensor(self, frame: Frame) -> Tensor:
        """One frame ``(H, W, 3)`` uint8 to ``(1, 3, H, W)`` on the model's device."""
        return frames_to_tensor(torch.from_numpy(np.ascontiguousarray(frame)).to(self.model.device))[None]

    def _features(self) -> NDArray[np.float32]:
        return np.array(self.model.features(self.state)[0].cpu().numpy(), dtype=np.float32)


def _check_frames(space: gym.Space[Any], frame_size: tuple[int, int]) -> None:
    """Raise a ``SimulatorError`` unless the observations are frames of this size."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) != 3 or space.shape[2] != 3:
        raise SimulatorError(
            f"the simulator's observations must be frames, uint8 (H, W, 3), but they are {space}; "
            "make it with wm_gym.envs.make_simulator."
        )
    if space.shape[:2] != tuple(frame_size):
        height, width = frame_size
        raise SimulatorError(
            f"the simulator's frames are {space.shape[0]}x{space.shape[1]}, but the model was trained with "
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
