"""What one dream and a batch of dreams share: the contract of imagined rollouts.

The model owns prediction; the contract is start states, random numbers, horizon, termination, observations and
frames. :class:`~wm_gym.envs.imagined_rollouts.ImaginedRollouts` keeps it for many dreams in arrays,
:class:`~wm_gym.envs.single_rollout.SingleRollout` for one in plain numbers.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray
from torch import Tensor

from wm_gym.envs.arguments import check_choice, check_count, check_positive
from wm_gym.envs.dream_model import DreamModel, resolve_model, start_states_of, uncertainty_of
from wm_gym.envs.model_actions import ModelActions
from wm_gym.errors import BundleError, ConfigError
from wm_gym.frames import tensor_to_frames
from wm_gym.observation import Observation, join_observation, observation_space
from wm_gym.state import LatentState

if TYPE_CHECKING:
    from typing_extensions import NotRequired, Unpack

ObservationKind = Literal["latent", "image"]
Termination = Literal["sample", "threshold", "never"]
Observations = Any
"""Features ``(..., F)`` float32, frames ``(..., H, W, 3)`` uint8, or a ``Dict`` of frames and vectors."""

DEFAULT_FPS = 20.0
_CONTINUATION_LIMITS = {"threshold": math.nextafter(0.5, 0.0), "never": -math.inf}
"""A dream ends where the continuation is not above this; ``"sample"`` draws a limit for every step."""
_DECODE_BATCH = 64  # frames decoded at once: bounds the memory of rendering hundreds of dreams


class RolloutArguments(TypedDict):
    """What every kind of rollouts is made with: those arguments of :class:`~wm_gym.envs.dream.DreamDrivingEnv`."""

    model: str | Path | DreamModel
    horizon: int
    observation: str
    action: str | None
    device: str | torch.device | None
    start_states: LatentState | None
    termination: str
    uncertainty_limit: NotRequired[float | None]


class RolloutContract:
    """The model, the spaces and the rules of ``N`` dreams side by side.

    Args:
        num_slots: ``N``.
        arguments: See :class:`RolloutArguments`.

    Attributes:
        model: The world model.
        actions: Maps the environment's actions to the model's.
        horizon: Steps until a dream is truncated; it may be changed, for the dreams under way too.
        uncertainty: How far the model's dreams may be off, on its device; ``None`` where it does not tell.
        single_observation_space: Space of one dream's observation.

    Raises:
        ConfigError: An argument is out of range or unknown.
        BundleError: The model cannot be used, or has no start states.
    """

    def __init__(self, num_slots: int, **arguments: Unpack[RolloutArguments]) -> None:
        horizon, observation = arguments["horizon"], arguments["observation"]
        termination = arguments["termination"]
        check_count("num_envs", num_slots)
        check_choice("observation", observation, get_args(ObservationKind))
        check_choice("termination", termination, get_args(Termination))
        self.model = resolve_model(arguments["model"], arguments["device"])
        self.actions = ModelActions(self.model.simulator.action, arguments["action"])
        self.horizon = check_count("horizon", horizon)
        self.observation = observation
        self.single_observation_space = observation_space_of(self.model, observation)
        self._draws_ends = termination == "sample"
        self._continuation_limit = _CONTINUATION_LIMITS.get(termination, -math.inf)
        self._is_random = self._draws_ends or self.model.noise_dim > 0
        self._device = self.model.device
        self._is_on_cpu = self._device.type == "cpu"
        self.uncertainty = uncertainty_of(self.model)
        self._uncertainty_limit = self._check_limit(arguments.get("uncertainty_limit"))
        self._bank = start_states_of(self.model, arguments["start_states"])
        self._state = self._start(np.zeros(num_slots, np.int64))
        self._frames: NDArray[np.uint8] | None = None

    def _check_limit(self, limit: float | None) -> float:
        if limit is None:
            return math.inf
        if self.uncertainty is None:
            raise ConfigError(
                f"uncertainty_limit={limit!r} needs a world model that tells its uncertainty; add one with "
                "`wm-gym train-uncertainty`, or leave the limit out."
            )
        return check_positive("uncertainty_limit", limit)

    @property
    def num_start_states(self) -> int:
        """Size of the bank of start states."""
        return self._bank.batch_size

    @property
    def fps(self) -> float:
        """Frames a second at which a dream runs in the simulator's own time."""
        step_s = self.model.simulator.step_s
        return 1.0 / step_s if step_s > 0 else DEFAULT_FPS

    def metadata(self, base: dict[str, Any]) -> dict[str, Any]:
        """Environment metadata: ``base`` with the frame rate of this model and whether its actions are driving ones."""
        return {**base, "render_fps": self.fps, "driving": self.actions.format.kind == "driving"}

    def check_start_state(self, index: Any, shape: tuple[int, ...] = ()) -> NDArray[np.int64]:
        """Check a requested start state and return it as an array of ``shape``; a single number stands for all slots.

        Raises:
            ConfigError: It is not a whole number of the right shape, or out of the bank's range.
        """
        values = np.asarray(index)
        if not np.issubdtype(values.dtype, np.integer) or values.shape not in ((), shape):
            wanted = "a whole number" if shape == () else f"a whole number or {shape[0]} of them"
            raise ConfigError(f"the reset option 'start_state' takes {wanted}, but {index!r} was given.")
        if np.any((values < 0) | (values >= self.num_start_states)):
            raise ConfigError(
                f"the reset option 'start_state' is {index!r}, but this model has start states 0 to "
                f"{self.num_start_states - 1}."
            )
        return np.broadcast_to(values, shape).astype(np.int64)

    @property
    def state(self) -> LatentState:
        """The current states of all dreams, on the model's device; not to be written into."""
        return self._state

    def frames(self) -> NDArray[np.uint8]:
        """Frames of all dreams, ``(N, H, W, 3)`` uint8; not to be written into.

        They are decoded when first asked for, at most once a step.
        """
        if self._frames is None:
            self._frames = self._decode(self._state)
        return self._frames

    def _features(self, state: LatentState) -> NDArray[np.float32]:
        """``(K, F)`` float32, which may lie in the state's own memory."""
        features = self.model.features(state)
        array: NDArray[np.float32] = (features if self._is_on_cpu else features.cpu()).numpy()
        return array

    def _seen(self, frames: NDArray[np.uint8], state: LatentState) -> Observations:
        """What the simulator would give, in memory that nothing else uses."""
        vectors = np.zeros((len(frames), 0), np.float32)
        if self.model.simulator.vector:
            with torch.inference_mode():
                vectors = self.model.decode_vector(state).cpu().numpy()  # type: ignore[attr-defined]
        return join_observation(Observation(frames.copy(), vectors))

    def _start(self, chosen: NDArray[np.int64]) -> LatentState:
        return self._bank.select(self._tensor(chosen))

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        """The array on the model's device; on the CPU its own memory."""
        return self._on_device(torch.from_numpy(array))

    def _on_device(self, tensor: Tensor) -> Tensor:
        """A tensor from the CPU on the model's device; on the CPU it is returned as it is, without a call."""
        return tensor if self._is_on_cpu else tensor.to(self._device)

    @torch.inference_mode()
    def _decode(self, state: LatentState) -> NDArray[np.uint8]:
        batches = map(LatentState, state.latent.split(_DECODE_BATCH), state.memory.split(_DECODE_BATCH))
        parts = [tensor_to_frames(self.model.decode(batch)).contiguous().cpu().numpy() for batch in batches]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def reset_needed() -> ResetNeeded:
    """The error of a step without a dream under way."""
    return ResetNeeded("this dream is over or has not begun; call reset() before the next step().")


def not_finite() -> BundleError:
    """The error of a prediction that is not a number."""
    return BundleError(
        "the world model imagined a reward, continuation or uncertainty that is not finite; "
        "it has diverged or is damaged, so train it again or use another."
    )


def observation_space_of(model: DreamModel, observation: str) -> spaces.Space[Any]:
    """Space of one dream's observations."""
    if observation == "latent":
        return spaces.Box(-math.inf, math.inf, (model.feature_dim,), np.float32)
    height, width = model.config.frame_size
    return observation_space((height, width), model.simulator.vector)
