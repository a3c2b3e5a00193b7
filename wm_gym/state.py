"""The latent state: everything the dynamics carry from one step to the next."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LatentState(NamedTuple):
    """A batch of latent states.

    Attributes:
        latent: ``(B, Z)`` float: what is known of the current frame; the encoder's output, or its prediction.
        memory: ``(B, ...)`` float: what the dynamics remember of the past. Its shape belongs to the dynamics
            (``(B, layers, hidden)`` for a GRU).
    """

    latent: Tensor
    memory: Tensor

    @property
    def batch_size(self) -> int:
        """Number of states in the batch."""
        return self.latent.shape[0]

    def select(self, rows: Tensor) -> LatentState:
        """The states at the given rows: an index tensor ``(K,)`` int64 or a mask ``(B,)`` bool."""
        return LatentState(self.latent[rows], self.memory[rows])

    def first(self, count: int) -> LatentState:
        """The first ``count`` states."""
        return LatentState(self.latent[:count], self.memory[:count])

    def where(self, mask: Tensor, other: LatentState) -> LatentState:
        """These states where ``mask`` ``(B,)`` bool is true, ``other``'s elsewhere."""
        return LatentState(
            torch.where(mask.view(-1, 1), self.latent, other.latent),
            torch.where(mask.view(-1, *(1,) * (self.memory.dim() - 1)), self.memory, other.memory),
        )

    def to(self, target: torch.device | torch.dtype | str) -> LatentState:
        """The states on another device or in another dtype, as ``Tensor.to``."""
        return LatentState(self.latent.to(target), self.memory.to(target))

    @staticmethod
    def cat(states: list[LatentState]) -> LatentState:
        """Join batches along ``B``."""
        return LatentState(torch.cat([s.latent for s in states]), torch.cat([s.memory for s in states]))
