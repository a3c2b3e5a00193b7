"""Imagined rollouts in a batch: the dreams behind the vector APIs, Gymnasium's and Stable-Baselines3's."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm_gym.actions import FloatArray
from wm_gym.envs.rollout_contract import Observations, RolloutArguments, RolloutContract, not_finite, reset_needed
from wm_gym.envs.slot_random import SlotRandom
from wm_gym.shared_cores import adapt_threads
from wm_gym.state import LatentState

if TYPE_CHECKING:
    from typing_extensions import Unpack


class StepOutcome(NamedTuple):
    """What one step of all slots gave; slots that did not take part hold zeros and ``False``.

    Attributes:
        reward: ``(N,)`` float64.
        terminated: ``(N,)`` bool.
        truncated: ``(N,)`` bool; never true where ``terminated`` is.
        continuation: ``(N,)`` float64, the model's probability that the episode goes on.
        uncertainty: ``(N,)`` float64, one standard deviation of the error of the reward summed up so far; ``None``
            where the model does not tell.
    """

    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    continuation: NDArray[np.float64]
    uncertainty: NDArray[np.float64] | None


class ImaginedRollouts(RolloutContract):
    """``N`` dreams in one batch: one call of the model advances them all.

    Args:
        num_slots: ``N``, dreams side by side.
        arguments: See :class:`~wm_gym.envs.rollout_contract.RolloutArguments`.

    Attributes:
        random: The random streams of the slots.
        elapsed: ``(N,)`` int64, steps of each current dream.
        needs_reset: ``(N,)`` bool, slots whose dream is over or has not begun.
    """

    def __init__(self, num_slots: int, **arguments: Unpack[RolloutArguments]) -> None:
        super().__init__(num_slots, **arguments)
        self.num_slots = num_slots = int(num_slots)
        self.random = SlotRandom(num_slots)
        self.elapsed = np.zeros(num_slots, np.int64)
        self.needs_reset = np.ones(num_slots, np.bool_)
        self._variance = np.zeros(num_slots)
        self._all_rows = np.arange(num_slots)

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
        self._variance[slots] = 0.0
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
            raise reset_needed()
        adapt_threads()
        noise: Tensor | None = None
        limit: float | FloatArray = self._continuation_limit
        if self._is_random:
            # The first lane is the termination's, whether it is drawn or not: the noise does not depend on it.
            random = self.random.uniform(1 + self.model.noise_dim)
            if self.model.noise_dim > 0:
                noise = self._tensor(random[:, 1:].copy())
            if self._draws_ends:
                limit = random[:, 0]
        actions = self._tensor(stored_actions)
        added: tuple[Tensor, ...] = ()
        if self.uncertainty is not None:
            added = (self.uncertainty.step_variance(self.model.features(self._state), actions),)
        self._state, reward, continuation = self.model.imagine(self._state, actions, noise)
        self._frames = None
        numbers = self._numbers(reward, continuation, *added)
        if not np.isfinite(numbers).all():
            raise not_finite()
        rewards, continuations = numbers[:2]
        terminated = continuations <= limit
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
        uncertainty = None
        if self.uncertainty is not None:
            self._variance += numbers[2] if active is None else np.where(active, numbers[2], 0.0)
            uncertainty = self.uncertainty.sigma(self._variance, self.elapsed)
            too_uncertain = uncertainty > self._uncertainty_limit
            if active is not None:
                uncertainty = np.where(active, uncertainty, 0.0)
                too_uncertain &= active
            truncated |= too_uncertain
        truncated &= ~terminated
        self.needs_reset |= terminated | truncated
        return StepOutcome(rewards, terminated, truncated, continuations, uncertainty)

    def no_step(self) -> StepOutcome:
        """The outcome of a step in which no slot takes part."""
        zeros, no = np.zeros(self.num_slots), np.zeros(self.num_slots, np.bool_)
        uncertainty = None if self.uncertainty is None else zeros.copy()
        return StepOutcome(zeros, no, no.copy(), zeros.copy(), uncertainty)

    @torch.inference_mode()
    def observations(self, rows: NDArray[np.int64] | None = None) -> Observations:
        """Observations of the slots ``rows`` (``None``: all), in memory that nothing else uses.

        Returns:
            ``(K, F)`` float32, or for image observations ``(K, H, W, 3)`` uint8, in a ``Dict`` with ``(K, V)`` float32
            where the simulator gives vectors.
        """
        if self.observation == "latent":
            # A copy: features may be a view of the state, which a reset overwrites.
            return self._features(self._state if rows is None else self._rows(rows)).astype(np.float32)
        return self._seen(self.frames(rows), self._state if rows is None else self._rows(rows))

    def frames(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """Frames of the slots ``rows`` (``None``: all), ``(K, H, W, 3)`` uint8; not to be written into."""
        if rows is None:
            return super().frames()
        return self._decode(self._rows(rows)) if self._frames is None else self._frames[rows]

    def _rows(self, rows: NDArray[np.int64]) -> LatentState:
        return self._state.select(self._tensor(rows))

    def _numbers(self, *parts: Tensor) -> NDArray[np.float64]:
        """The parts ``(N,)`` as rows, by as few of PyTorch's operations as their device lets."""
        if self._is_on_cpu:
            return np.array([part.numpy() for part in parts], np.float64)
        # One transfer for all: each one waits for the accelerator.
        numbers: NDArray[np.float64] = torch.stack(parts).double().cpu().numpy()
        return numbers
