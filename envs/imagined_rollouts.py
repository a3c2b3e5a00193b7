"""Imagined rollouts in a batch: the one implementation of the dream behind its Gymnasium and Stable-Baselines3 faces.

The model owns prediction; this owns the rollout contract: start states, random numbers, horizon, termination,
observations and pictures.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray
from torch import Tensor

from wm_gym.actions import FloatArray
from wm_gym.envs.arguments import check_choice, check_count
from wm_gym.envs.dream_model import DreamModel, resolve_model, start_states_of
from wm_gym.envs.model_actions import ModelActions
from wm_gym.envs.slot_random import SlotRandom
from wm_gym.errors import BundleError, ConfigError
from wm_gym.frames import tensor_to_frames
from wm_gym.state import LatentState

ObservationKind = Literal["latent", "image"]
Termination = Literal["sample", "threshold", "never"]
Observations = NDArray[np.float32] | NDArray[np.uint8]

CONTINUATION_THRESHOLD = 0.5
DEFAULT_FPS = 20.0
_DECODE_BATCH = 64  # frames decoded at once: bounds the memory of rendering hundreds of dreams


class StepOutcome(NamedTuple):
    """What one step of all slots gave; slots that did not take part hold zeros and ``False``.

    Attributes:
        reward: ``(N,)`` float64.
        terminated: ``(N,)`` bool.
        truncated: ``(N,)`` bool; never true where ``terminated`` is.
        continuation: ``(N,)`` float64, the model's probability that the episode goes on.
    """

    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    continuation: NDArray[np.float64]


class ImaginedRollouts:
    """``N`` dreams in one batch: one call of the model advances them all.

    Args:
        num_slots: ``N``, dreams side by side.
        model: A model's folder, ``"bundled"`` or a :class:`~wm_gym.envs.dream_model.DreamModel`.
        horizon: Steps until a dream is truncated.
        observation: ``"latent"`` for the policy features, ``"image"`` for decoded frames.
        action: Kind of action; ``None`` is the model's own.
        device: See :func:`~wm_gym.envs.dream_model.resolve_model`.
        start_states: Bank of start states; ``None`` is the model's own.
        termination: ``"sample"`` draws ``terminated`` with probability ``1 - continuation``; ``"threshold"`` sets it
            where the continuation is below 0.5; ``"never"`` leaves the horizon as the only end.

    Attributes:
        model: The world model.
        actions: Maps the environment's actions to the model's.
        random: The random streams of the slots.
        horizon: Steps until a dream is truncated; see :meth:`set_horizon`.
        single_observation_space: Space of one slot's observation.
        elapsed: ``(N,)`` int64, steps of each current dream.
        needs_reset: ``(N,)`` bool, slots whose dream is over or has not begun.

    Raises:
        ConfigError: An argument is out of range or unknown.
        BundleError: The model cannot be used, or has no start states.
    """

    def __init__(
        self,
        num_slots: int,
        *,
        model: str | Path | DreamModel,
        horizon: int,
        observation: str,
        action: str | None,
        device: str | torch.device | None,
        start_states: LatentState | None,
        termination: str,
    ) -> None:
        check_count("num_envs", num_slots)
        check_count("horizon", horizon)
        check_choice("observation", observation, get_args(ObservationKind))
        check_choice("termination", termination, get_args(Termination))
        self.model = resolve_model(model, device)
        self.actions = ModelActions(self.model.simulator.action, action)
        self.random = SlotRandom(num_slots)
        self.horizon = horizon
        self.observation = observation
        self.termination = termination
        self.num_slots = num_slots
        self.single_observation_space = observation_space_of(self.model, observation)
        self.elapsed = np.zeros(num_slots, np.int64)
        self.needs_reset = np.ones(num_slots, np.bool_)
        self._is_random = termination == "sample" or self.model.noise_dim > 0
        self._all_rows = np.arange(num_slots)
        self._device = self.model.device
        self._is_on_cpu = self._device.type == "cpu"
        self._bank = start_states_of(self.model, start_states)
        self._state = self._start(np.zeros(num_slots, np.int64))
        self._frames: NDArray[np.uint8] | None = None

    def set_horizon(self, horizon: int) -> None:
        """Change the horizon, for the dreams under way too.

        Raises:
            ConfigError: It is not a whole number from 1 up.
        """
        check_count("horizon", horizon)
        self.horizon = horizon

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

    @torch.inference_mode()
    def reset(
        self, rows: NDArray[np.int64] | None = None, start_state: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Begin new dreams.

        Args:
            rows: ``(K,)`` slots to reset; ``None`` resets all.
            start_state: ``(K,)`` start states; ``None`` for all, or -1 for one, draws it with the slot's random stream.

        Returns:
            ``(K,)`` the start states used.
        """
        slots = self._all_rows if rows is None else rows
        drawn = self.random.below(self.num_start_states, slots)
        self.random.advance(slots)
        chosen = drawn if start_state is None else np.where(start_state < 0, drawn, start_state)
        fresh = self._start(chosen)
        if rows is None:
            self._state = fresh
        else:
            index = self._tensor(slots)
            self._state.latent[index] = fresh.latent
            self._state.memory[index] = fresh.memory
        self._frames = None
        self.elapsed[slots] = 0
        self.needs_reset[slots] = False
        return chosen

    @torch.inference_mode()
    def step(self, stored_actions: FloatArray, active: NDArray[np.bool_] | None = None) -> StepOutcome:
        """Advance the dreams by one step.

        Args:
            stored_actions: ``(N, A)`` float32 in the model's own format.
            active: ``(N,)`` bool, slots that take part; ``None`` is all. The others are left to be reset.

        Raises:
            ResetNeeded: A slot that takes part has no dream under way.
            BundleError: The model imagined a number that is not finite.
        """
        if self.needs_reset.any() and (active is None or (self.needs_reset & active).any()):
            raise ResetNeeded("this dream is over or has not begun; call reset() before the next step().")
        # The first lane is the termination's, whether it is drawn or not: the noise does not depend on it.
        random = self.random.uniform(1 + self.model.noise_dim) if self._is_random else None
        noise = None
        if random is not None and self.model.noise_dim > 0:
            noise = self._tensor(random[:, 1:].copy())
        self._state, reward, continuation = self.model.imagine(self._state, self._tensor(stored_actions), noise)
        self._frames = None
        numbers = self._numbers(reward, continuation)
        if not np.isfinite(numbers).all():
            raise BundleError(
                "the world model imagined a reward or continuation that is not finite; "
                "it has diverged or is damaged, so train it again or use another."
            )
        rewards, continuations = numbers
        if random is not None and self.termination == "sample":
            terminated = random[:, 0] >= continuations
        elif self.termination == "threshold":
            terminated = continuations < CONTINUATION_THRESHOLD
        else:
            terminated = np.zeros(self.num_slots, np.bool_)
        if active is None:
            self.elapsed += 1
            truncated = self.elapsed >= self.horizon
            self.random.advance()
        else:
            self.elapsed += active
            truncated = active & (self.elapsed >= self.horizon)
            terminated &= active
            rewards = np.where(active, rewards, 0.0)
            continuations = np.where(active, continuations, 0.0)
            self.random.advance(active)
        truncated &= ~terminated
        self.needs_reset |= terminated | truncated
        return StepOutcome(rewards, terminated, truncated, continuations)

    def no_step(self) -> StepOutcome:
        """The outcome of a step in which no slot takes part."""
        zeros, no = np.zeros(self.num_slots), np.zeros(self.num_slots, np.bool_)
        return StepOutcome(zeros, no, no.copy(), zeros.copy())

    def observations(self, rows: NDArray[np.int64] | None = None) -> Observations:
        """Observations of the slots ``rows`` (``None``: all), in memory that nothing else uses.

        Returns:
            ``(K, F)`` float32, or ``(K, H, W, 3)`` uint8 for image observations.
        """
        if self.observation == "latent":
            return self._features(rows)
        return self.frames(rows).copy()

    def frames(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """Pictures of the slots ``rows`` (``None``: all), ``(K, H, W, 3)`` uint8; not to be written into.

        They are decoded when first asked for, at most once a step.
        """
        if rows is not None:
            return self._decode(self._rows(rows)) if self._frames is None else self._frames[rows]
        if self._frames is None:
            self._frames = self._decode(self._state)
        return self._frames

    def _start(self, chosen: NDArray[np.int64]) -> LatentState:
        return self._bank.select(self._tensor(chosen))

    def _rows(self, rows: NDArray[np.int64]) -> LatentState:
        return self._state.select(self._tensor(rows))

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        """The array on the model's device; on the CPU its own memory, without asking for a move that is none."""
        tensor = torch.from_numpy(array)
        return tensor if self._is_on_cpu else tensor.to(self._device)

    def _numbers(self, *parts: Tensor) -> NDArray[np.float64]:
        """The parts ``(N,)`` as rows, by as few of PyTorch's operations as their device lets."""
        if self._is_on_cpu:
            return np.array([part.numpy() for part in parts], np.float64)
        # One transfer for all: each one waits for the accelerator.
        numbers: NDArray[np.float64] = torch.stack(parts).double().cpu().numpy()
        return numbers

    @torch.inference_mode()
    def _features(self, rows: NDArray[np.int64] | None) -> NDArray[np.float32]:
        features = self.model.features(self._state if rows is None else self._rows(rows))
        # A copy: features may be a view of the state, which a reset overwrites.
        on_cpu = features if self._is_on_cpu else features.cpu()
        return on_cpu.numpy().astype(np.float32)

    @torch.inference_mode()
    def _decode(self, state: LatentState) -> NDArray[np.uint8]:
        parts = [
            tensor_to_frames(
                self.model.decode(
                    LatentState(
                        state.latent[first : first + _DECODE_BATCH], state.memory[first : first + _DECODE_BATCH]
                    )
                )
            )
            .contiguous()
            .cpu()
            .numpy()
            for first in range(0, state.batch_size, _DECODE_BATCH)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def observation_space_of(model: DreamModel, observation: str) -> spaces.Box:
    """Space of one dream's observations."""
    if observation == "latent":
        return spaces.Box(-math.inf, math.inf, (model.feature_dim,), np.float32)
    return spaces.Box(0, 255, (*model.config.frame_size, 3), np.uint8)
