"""One imagined rollout: the dream behind ``DreamDriving-v0``.

One row is little work for a model, so that everything beside it shows: numbers are plain Python ones, random numbers
are made ahead, and the tensors that the model reads are made once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from wm_gym.envs.rollout_contract import Observations, RolloutArguments, RolloutContract, not_finite, reset_needed
from wm_gym.envs.slot_random import StreamAhead
from wm_gym.observation import select_rows

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SingleRollout(RolloutContract):
    """One dream; it dreams what a slot of :class:`~wm_gym.envs.imagined_rollouts.ImaginedRollouts` with its key does.

    Args:
        arguments: See :class:`~wm_gym.envs.rollout_contract.RolloutArguments`.

    Attributes:
        random: The random stream.
        elapsed: Steps of the current dream.
        sigma: One standard deviation of the error of the reward that the current dream has summed up; 0 where the model
            does not tell.
        needs_reset: Whether the dream is over or has not begun.
    """

    def __init__(self, **arguments: Unpack[RolloutArguments]) -> None:
        super().__init__(1, **arguments)
        self.random = StreamAhead(1 + self.model.noise_dim)
        self.elapsed = 0
        self.sigma = self._variance = 0.0
        self.needs_reset = True
        self._action = _InputRow(self.actions.format.dim)
        self._noise = _InputRow(self.model.noise_dim)

    @torch.inference_mode()
    def reset(self, start_state: int | None = None) -> tuple[Observations, int]:
        """Begin a new dream.

        Args:
            start_state: Where from; ``None`` draws it with the random stream.

        Returns:
            The first observation, and the start state used.
        """
        chosen = self.random.below(self.num_start_states) if start_state is None else start_state
        self.random.advance()
        self._state = self._start(np.array([chosen]))
        self._frames = None
        self.elapsed = 0
        self.sigma = self._variance = 0.0
        self.needs_reset = False
        return self._observation(), chosen

    def step(self, action: ArrayLike) -> tuple[Observations, float, bool, bool, float]:
        """Advance the dream by one step.

        Args:
            action: One action of ``actions.space``.

        Returns:
            Observation, reward, terminated, truncated (never true where ``terminated`` is), and the model's
            probability that the episode goes on.

        Raises:
            ConfigError: The action has the wrong shape or a value that is not finite.
            ResetNeeded: The dream is over or has not begun.
            BundleError: The model imagined a number that is not finite.
        """
        stored = self.actions.one_to_stored(action)
        if self.needs_reset:
            raise reset_needed()
        self._action.row[:] = stored
        limit, noise = self._continuation_limit, None
        if self._is_random:
            # The first lane is the termination's, whether it is drawn or not: the noise does not depend on it.
            random = self.random.uniform()
            if self._draws_ends:
                limit = float(random[0])
            if len(random) > 1:
                self._noise.row[:] = random[1:]
                noise = self._on_device(self._noise.tensor)
        with torch.inference_mode():
            taken = self._on_device(self._action.tensor)
            added: tuple[Tensor, ...] = ()
            if self.uncertainty is not None:
                added = (self.uncertainty.step_variance(self.model.features(self._state), taken),)
            self._state, *predicted = self.model.imagine(self._state, taken, noise)
            predicted += added
            self._frames = None
            # On an accelerator one transfer for all: each one waits for it.
            reward, continuation, *variance = (
                [part.item() for part in predicted] if self._is_on_cpu else torch.cat(predicted).tolist()
            )
            if not math.isfinite(reward + continuation + sum(variance)):
                raise not_finite()
            terminated = continuation <= limit
            self.elapsed += 1
            if self.uncertainty is not None:
                self._variance += variance[0]
                self.sigma = self.uncertainty.sigma_of_one(self._variance, self.elapsed)
            is_over = self.elapsed >= self.horizon or self.sigma > self._uncertainty_limit
            truncated = is_over and not terminated
            self.needs_reset = terminated or truncated
            self.random.advance()
            return self._observation(), reward, terminated, truncated, continuation

    def _observation(self) -> Observations:
        """The observation, in memory that nothing else uses."""
        if self.observation == "latent":
            return self._features(self._state)[0].copy()
        return select_rows(self._seen(self.frames(), self._state), 0)


class _InputRow:
    """A row of float32 numbers for the model, written through NumPy: one memory, also where it is copied or pickled.

    Beside a model whose parameters fill the processor's caches, a tensor made anew for every step takes longer than all
    that is written into it.
    """

    def __init__(self, size: int) -> None:
        self.row = np.zeros(size, np.float32)
        self.tensor = torch.from_numpy(self.row)[None]

    def __reduce__(self) -> tuple[type[_InputRow], tuple[int]]:
        return type(self), (len(self.row),)
