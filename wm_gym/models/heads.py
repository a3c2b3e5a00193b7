"""Reward and termination heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from wm_gym.config import HeadsConfig
from wm_gym.models.blocks import MLP


def symlog(x: Tensor) -> Tensor:
    """``sign(x) * ln(|x| + 1)``: squashes large rewards, keeps small ones (Hafner et al. 2023, eq. 1)."""
    return torch.sign(x) * torch.log1p(x.abs())


def symexp(x: Tensor) -> Tensor:
    """The inverse of :func:`symlog`."""
    return torch.sign(x) * torch.expm1(x.abs())


class RewardHead(nn.Module):
    """Reward as a distribution over fixed bins; its mean is the prediction.

    The target is spread over the two bins beside it such that its expectation is exact (two-hot; Hafner et al. 2023,
    eq. 9 and 10). Bins lie evenly in symlog space. Unlike a regression under L1 it does not collapse to the median,
    which for a reward of sparse pulses is zero. Targets and mean are taken in reward space, not in symlog space, so
    that the expectation is unbiased.
    """

    bins: Tensor

    def __init__(self, in_dim: int, config: HeadsConfig) -> None:
        super().__init__()
        self.mlp = MLP(in_dim, config.hidden_dim, config.reward_bins, config.num_layers, zero_init=True)
        limit = config.reward_limit
        self.register_buffer("bins", symexp(torch.linspace(-limit, limit, config.reward_bins)), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """``(..., F)`` to logits ``(..., bins)``."""
        logits: Tensor = self.mlp(features)
        return logits

    def mean(self, features: Tensor) -> Tensor:
        """``(..., F)`` to the expected reward ``(...,)``."""
        # Summed from both ends towards zero, so that a uniform distribution gives exactly zero in floating point.
        weighted = self(features).float().softmax(-1) * self.bins
        half = weighted.shape[-1] // 2
        upper = weighted[..., -half:].flip(-1)
        return (weighted[..., :half] + upper).sum(-1) + weighted[..., half : weighted.shape[-1] - half].sum(-1)

    def two_hot(self, reward: Tensor) -> Tensor:
        """Targets ``(..., bins)`` for rewards ``(...,)``; rewards beyond the bins count as the last bin."""
        reward = reward.clamp(self.bins[0], self.bins[-1])
        upper = torch.searchsorted(self.bins, reward.contiguous()).clamp(1, len(self.bins) - 1)
        lower = upper - 1
        weight = (reward - self.bins[lower]) / (self.bins[upper] - self.bins[lower])
        target = torch.zeros(*reward.shape, len(self.bins), device=reward.device)
        target.scatter_(-1, lower.unsqueeze(-1), (1 - weight).unsqueeze(-1))
        return target.scatter_(-1, upper.unsqueeze(-1), weight.unsqueeze(-1))

    def losses(self, features: Tensor, reward: Tensor) -> Tensor:
        """Cross-entropy ``(...,)`` of the rewards ``(...,)`` under the prediction from ``(..., F)``."""
        return -(self.two_hot(reward) * self(features).float().log_softmax(-1)).sum(-1)


class ContinuationHead(nn.Module):
    """Probability that the episode goes on after a step; ``1 - continuation`` is the termination probability."""

    def __init__(self, in_dim: int, config: HeadsConfig) -> None:
        super().__init__()
        self.mlp = MLP(in_dim, config.hidden_dim, 1, config.num_layers, zero_init=True)
        # Ends are rare: start from "goes on" instead of from one half.
        output = self.mlp[-1]
        assert isinstance(output, nn.Linear)
        nn.init.constant_(output.bias, 5.0)

    def forward(self, features: Tensor) -> Tensor:
        """``(..., F)`` to logits ``(...,)``."""
        logits: Tensor = self.mlp(features)
        return logits.squeeze(-1)

    def probability(self, features: Tensor) -> Tensor:
        """``(..., F)`` to the probability ``(...,)``."""
        return self(features).float().sigmoid()

    def losses(self, features: Tensor, terminated: Tensor) -> Tensor:
        """Binary cross-entropy ``(...,)`` against ``terminated`` ``(...,)`` bool."""
        wanted = (~terminated).float()
        return F.binary_cross_entropy_with_logits(self(features).float(), wanted, reduction="none")
