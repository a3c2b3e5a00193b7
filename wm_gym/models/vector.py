"""The vector of an observation: how the encoder reads it, and the head that predicts it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from wm_gym.config import HeadsConfig
from wm_gym.models.blocks import MLP
from wm_gym.vector import Fields

EMBEDDING_DIM = 128
"""Size of what the encoder makes of a vector before it is joined with the picture."""


class VectorFields(nn.Module):
    """Maps between vectors in the simulator's units and numbers that networks like.

    Measured entries are scaled from their bounds to [-1, 1]; an entry that gives a class becomes one number a class.

    Args:
        fields: Of the vector.
    """

    low: Tensor
    high: Tensor

    def __init__(self, fields: Fields) -> None:
        super().__init__()
        self.measured = [place for place, field in enumerate(fields) if not field.classes]
        self.classes = [(place, len(field.classes)) for place, field in enumerate(fields) if field.classes]
        self.dim = len(self.measured) + sum(count for _, count in self.classes)
        self.register_buffer("low", torch.tensor([fields[place].low for place in self.measured]), persistent=False)
        self.register_buffer("high", torch.tensor([fields[place].high for place in self.measured]), persistent=False)

    def scaled(self, vectors: Tensor) -> Tensor:
        """Measured entries of ``(..., V)`` in [-1, 1]: ``(..., M)``."""
        values = 2 * (vectors[..., self.measured] - self.low) / (self.high - self.low) - 1
        return values.clamp(-1, 1)

    def expand(self, vectors: Tensor) -> Tensor:
        """``(..., V)`` to ``(..., dim)``: measured entries scaled, then each class as a one-hot vector."""
        # Comparing is one-hot in every export format.
        one_hot = [
            (vectors[..., place : place + 1] == torch.arange(count, device=vectors.device)).to(vectors.dtype)
            for place, count in self.classes
        ]
        return torch.cat((self.scaled(vectors), *one_hot), dim=-1)

    def collapse(self, predicted: Tensor) -> Tensor:
        """Scaled measured entries and class logits ``(..., dim)`` to vectors ``(..., V)`` within their bounds."""
        size = len(self.measured)
        values = (predicted[..., :size].clamp(-1, 1) + 1) / 2 * (self.high - self.low) + self.low
        entries: dict[int, Tensor] = {place: values[..., column] for column, place in enumerate(self.measured)}
        for place, logits in self.logits(predicted):
            entries[place] = logits.argmax(-1).to(values.dtype)
        return torch.stack([entries[place] for place in sorted(entries)], dim=-1)

    def logits(self, predicted: Tensor) -> list[tuple[int, Tensor]]:
        """The place in the vector, and the logits ``(..., classes)``, of each entry that gives a class."""
        counts = [count for _, count in self.classes]
        parts = predicted[..., len(self.measured) :].split(counts, dim=-1) if counts else ()
        return [(place, logits) for (place, _), logits in zip(self.classes, parts, strict=True)]


class VectorEncoder(nn.Module):
    """``(..., V)`` to an embedding ``(..., EMBEDDING_DIM)`` that is joined with the picture's before the projection.

    Args:
        fields: Of the vector, at least one.
    """

    def __init__(self, fields: Fields) -> None:
        super().__init__()
        self.fields = VectorFields(fields)
        self.mlp = MLP(self.fields.dim, EMBEDDING_DIM, EMBEDDING_DIM)

    def forward(self, vectors: Tensor) -> Tensor:
        """The embedding."""
        embedding: Tensor = self.mlp(self.fields.expand(vectors))
        return embedding


class VectorHead(nn.Module):
    """Predicts the vector from the features: so they carry what a policy needs to know, however few pixels show it.

    Args:
        in_dim: ``F``.
        fields: Of the vector, at least one.
        config: Sizes.
    """

    def __init__(self, in_dim: int, fields: Fields, config: HeadsConfig) -> None:
        super().__init__()
        self.fields = VectorFields(fields)
        self.mlp = MLP(in_dim, config.hidden_dim, self.fields.dim, config.num_layers)

    def forward(self, features: Tensor) -> Tensor:
        """``(..., F)`` to the vector ``(..., V)`` float32 in the simulator's units; the likeliest class of each."""
        return self.fields.collapse(self.mlp(features).float())

    def loss(self, features: Tensor, vectors: Tensor) -> Tensor:
        """Summed over the entries: square error in scaled units, cross-entropy (in nats) of classes; a mean over rows.

        Args:
            features: ``(..., F)``.
            vectors: ``(..., V)``, as observed.
        """
        predicted = self.mlp(features).float()
        scaled = predicted[..., : len(self.fields.measured)]
        total = (scaled - self.fields.scaled(vectors)).square().sum(-1).mean()
        for place, logits in self.fields.logits(predicted):
            total = total + F.cross_entropy(logits.flatten(0, -2), vectors[..., place].long().flatten())
        return total
