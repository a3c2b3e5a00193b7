"""One round of learning with an algorithm of Stable-Baselines3, as every trainer of this package does it."""

from __future__ import annotations

import math

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from wm_gym.errors import TrainingError


def learn(algorithm: BaseAlgorithm, steps: int, callback: BaseCallback, diverged: TrainingError) -> dict[str, float]:
    """Roll out and learn for ``steps`` steps, on top of those before.

    Returns:
        What the algorithm has recorded of its losses, under names without their group; finite values only.

    Raises:
        TrainingError: ``diverged``, where a parameter is no longer finite.
    """
    try:
        algorithm.learn(
            steps,
            callback=callback,
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
    report = {key.split("/", 1)[1]: float(value) for key, value in recorded.items() if key.startswith("train/")}
    algorithm.logger.dump()
    return {name: value for name, value in report.items() if math.isfinite(value)}


def derived_seed(*parts: int) -> int:
    """A seed below 2**31 that follows from all parts; the environments add their slot to it."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)


def _is_finite(algorithm: BaseAlgorithm) -> bool:
    return all(bool(torch.isfinite(parameter).all()) for parameter in algorithm.policy.parameters())
