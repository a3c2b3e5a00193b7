"""Learning round by round with an algorithm of Stable-Baselines3, as every trainer of this package does it."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from wm_gym.errors import DivergedError

if TYPE_CHECKING:
    from typing_extensions import Self

Snapshot = dict[str, Any]
"""Parameters, optimiser states and counters: tensors and plain values only."""


class RoundTrainer:
    """An algorithm with its environments and its progress bar, which are closed at the end of a ``with`` statement.

    Attributes:
        trained_s: Seconds of training so far.
    """

    trained_s = 0.0
    _algorithm: BaseAlgorithm
    _env: VecEnv
    _bar: Any
    _unit = "steps"
    _remedy = "lower learning_rate"

    def close(self) -> None:
        """End the progress bar and close the environments."""
        self._bar.close()
        self._env.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _learn(self, steps: int, watch: RoundCallback, seed: int) -> dict[str, Any]:
        """Roll out and learn for ``steps`` steps, on top of those before.

        Returns:
            ``ep_rew_mean`` and ``ep_len_mean`` of the episodes that ended, ``fps`` (steps a second), ``wall_s`` (of all
            rounds), and what the algorithm has recorded of its losses, under names without their group; finite values
            only.

        Raises:
            DivergedError: A parameter is no longer finite.
        """
        began = time.monotonic()
        algorithm, before = self._algorithm, self._algorithm.num_timesteps
        set_random_seed(derived_seed(seed, before, 1), using_cuda=algorithm.device.type == "cuda")
        diverged = DivergedError(
            f"the policy's parameters are no longer finite after {before:,} {self._unit}; the last good checkpoint is "
            f"kept: {self._remedy}."
        )
        try:
            algorithm.learn(
                steps,
                callback=watch,
                log_interval=None,  # type: ignore[arg-type]  # every algorithm takes None; their base class omits it
                reset_num_timesteps=False,
            )
        except ValueError as error:
            # torch's distributions refuse NaN parameters before anything else notices them.
            if not _is_finite(algorithm):
                raise diverged from error
            raise
        if not _is_finite(algorithm):
            raise diverged
        recorded = algorithm.logger.name_to_value
        losses = {key.split("/", 1)[1]: float(value) for key, value in recorded.items() if key.startswith("train/")}
        algorithm.logger.dump()
        round_s = time.monotonic() - began
        self.trained_s += round_s
        return {
            **watch.statistics(),
            "fps": (algorithm.num_timesteps - before) / round_s,
            "wall_s": self.trained_s,
            **{name: value for name, value in losses.items() if math.isfinite(value)},
        }


class RoundCallback(BaseCallback):
    """Moves the progress bar and collects the returns of the episodes that end.

    Args:
        bar: The progress bar.
        first_only: Count the first episode of each environment only. Where a round begins all dreams anew and lasts
            whole horizons, those all end in it, while later ones are counted only if they happen to be short.

    Attributes:
        returns: Of the episodes that ended.
    """

    def __init__(self, bar: Any, *, first_only: bool = False) -> None:
        super().__init__()
        self._bar = bar
        self._first_only = first_only
        self._counted: set[int] = set()
        self.returns: list[float] = []
        self._lengths: list[int] = []

    def _on_step(self) -> bool:
        self._bar.update(len(self.locals["dones"]))
        for slot in np.flatnonzero(self.locals["dones"]).tolist():
            if self._first_only and slot in self._counted:
                continue
            self._counted.add(slot)
            episode = self.locals["infos"][slot]["episode"]
            self.returns.append(float(episode["r"]))
            self._lengths.append(int(episode["l"]))
        return True

    def statistics(self) -> dict[str, float | None]:
        """Mean return and length of the episodes that ended."""
        if not self.returns:
            return {"ep_rew_mean": None, "ep_len_mean": None}
        return {"ep_rew_mean": float(np.mean(self.returns)), "ep_len_mean": float(np.mean(self._lengths))}


def derived_seed(*parts: int) -> int:
    """A seed below 2**31 that follows from all parts; the environments add their slot to it."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)


def _is_finite(algorithm: BaseAlgorithm) -> bool:
    return all(bool(torch.isfinite(parameter).all()) for parameter in algorithm.policy.parameters())
