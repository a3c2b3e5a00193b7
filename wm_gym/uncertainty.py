"""How far a dream may be off: the standard deviation of the error of the reward that it has summed up.

A small network reads the features of the state before each imagined step, and the action, and tells the variance that
the step adds. Variances of a dream's steps add up, and one multiplier for each horizon brings their root to the size of
the errors on held-out recordings. What a world model predicts does not depend on it.
"""

from __future__ import annotations

import copy
import math
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from wm_gym.precision import single_precision

Numbers: TypeAlias = NDArray[np.float64]

HIDDEN_DIM = 128
ONE_SIGMA = 0.6827
"""Share of normally distributed errors that are within one standard deviation."""
_LEAST_VARIANCE = 1e-6
_LEAST_DEVIATION = 1e-3


class VarianceNetwork(nn.Module):
    """Features and an action to the variance that the step adds to a dream's error.

    Args:
        feature_dim: ``F``, of the world model.
        action_dim: ``A``, of its stored actions.
        horizon: Steps for which there are multipliers.
        hidden_dim: Size of the two hidden layers.

    Attributes:
        mean: ``(F + A,)``, of the inputs that it was trained on.
        deviation: ``(F + A,)``, likewise.
        multipliers: ``(horizon,)``; see :meth:`Uncertainty.sigma`.
    """

    mean: Tensor
    deviation: Tensor
    multipliers: Tensor

    @single_precision()
    def __init__(self, feature_dim: int, action_dim: int, horizon: int, hidden_dim: int = HIDDEN_DIM) -> None:
        super().__init__()
        size = feature_dim + action_dim
        # Layer norm would take away how far features are from those of the training: an agent's are further.
        self.mlp = nn.Sequential(
            nn.Linear(size, hidden_dim),
            nn.SiLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.SiLU(),
            nn.Linear(hidden_dim, 1),
        )
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("deviation", torch.ones(size))
        self.register_buffer("multipliers", torch.ones(horizon))

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        """``(..., F)`` and ``(..., A)`` to variances ``(...)`` above 0, in squared units of reward."""
        inputs = (torch.cat((features, action), dim=-1) - self.mean) / self.deviation
        variance: Tensor = F.softplus(self.mlp(inputs)[..., 0]) + _LEAST_VARIANCE
        return variance


class Uncertainty:
    """The calibrated error of a world model's dreams; it belongs to a model, but is no part of its parameters.

    Args:
        network: What it was trained as, with multipliers.
    """

    def __init__(self, network: VarianceNetwork) -> None:
        self.network = network.eval().requires_grad_(False)
        self.multipliers: Numbers = network.multipliers.detach().cpu().double().numpy()

    @property
    def horizon(self) -> int:
        """Steps for which there are multipliers; a dream that goes on beyond keeps the last one."""
        return len(self.multipliers)

    def to(self, device: torch.device | str) -> Uncertainty:
        """A copy on another device; itself where it is there already."""
        if self.network.mean.device == torch.device(device):
            return self
        return Uncertainty(copy.deepcopy(self.network).to(device))

    @torch.no_grad()
    def step_variance(self, features: Tensor, action: Tensor) -> Tensor:
        """What a step adds to the variance ``(B,)`` float32, in squared units of reward, before multipliers.

        Args:
            features: ``(B, F)`` of the states before the step.
            action: ``(B, A)``, stored format.
        """
        variance: Tensor = self.network(features, action)
        return variance

    def sigma(self, variance: Numbers, steps: NDArray[np.int64]) -> Numbers:
        """One standard deviation of the error of the summed reward, in units of reward.

        Args:
            variance: ``(...)`` float64, sums of :meth:`step_variance` over the steps of each dream.
            steps: ``(...)`` int64, how many these are; without any the error is 0.

        Returns:
            ``(...)`` float64.
        """
        multipliers = self.multipliers[np.clip(steps, 1, self.horizon) - 1]
        sigma: Numbers = np.where(steps > 0, multipliers * np.sqrt(variance), 0.0)
        return sigma

    def sigma_of_one(self, variance: float, steps: int) -> float:
        """As :meth:`sigma`, of one dream after at least one step; in plain numbers, which a single dream is made of."""
        return float(self.multipliers[min(steps, self.horizon) - 1]) * math.sqrt(variance)

    def cumulated(self, variances: Numbers) -> Numbers:
        """The deviation after each step of dreams ``(B, K)`` float64, from what each step adds to the variance."""
        total = np.cumsum(variances, axis=1, dtype=np.float64)
        return self.sigma(total, np.broadcast_to(np.arange(1, total.shape[1] + 1), total.shape))

    def along(self, features: Tensor, actions: Tensor) -> Numbers:
        """The deviation after each step of dreams ``(B, K)`` float64; see :meth:`sigma`.

        Args:
            features: ``(B, K, F)``, of the state before each step.
            actions: ``(B, K, A)``, stored format.
        """
        return self.cumulated(self.step_variance(features, actions).cpu().numpy())


def fit_multipliers(errors: Numbers, deviations: Numbers) -> Numbers:
    """The multiplier of each horizon with which 68 % of the errors are within one deviation.

    Args:
        errors: ``(B, K)``, of held-out dreams; column ``h`` is of horizon ``h + 1``.
        deviations: ``(B, K)``, before multipliers; below 0.001 they count as that.

    Returns:
        ``(K,)`` float64, above 0.
    """
    multipliers: Numbers = np.quantile(np.abs(errors) / np.maximum(deviations, _LEAST_DEVIATION), ONE_SIGMA, axis=0)
    return np.maximum(multipliers, 1e-3)
