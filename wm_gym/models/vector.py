"""The vector of an observation: how the encoder reads it, and the head that predicts it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from wm_gym.config import HeadsConfig
from wm_gym.models.blocks import MLP, at_temperature, inverse_cdf
from wm_gym.vector import Fields

EMBEDDING_DIM = 128
"""Size of what the encoder makes of a vector before it is joined with the frame."""
CARRIED_SCALE = 5.0
"""Of a vector that is a part of the state: networks read a state whose parts are of one size."""
_BINS = 17
"""Of each measured entry, over its bounds: steps of a 30th of them are plain to a linear layer."""
_LEAST_SEEN = 100
"""Steps of a class, before it is said what always holds for it."""
_AT_BOUND = CARRIED_SCALE * (1 - 1e-5)
_LEAST_LOG_SCALE = -9.0


class VectorFields(nn.Module):
    """Maps between vectors in the simulator's units and numbers that networks like.

    Measured entries are scaled from their bounds to [-1, 1]; an entry that gives a class becomes one number a class.

    Args:
        fields: Of the vector.
    """

    places: Tensor
    """``(M,)``: of the measured entries in the vector."""
    low: Tensor
    high: Tensor

    def __init__(self, fields: Fields) -> None:
        super().__init__()
        self.measured = [place for place, field in enumerate(fields) if not field.classes]
        self.classes = [(place, len(field.classes)) for place, field in enumerate(fields) if field.classes]
        self.dim = len(self.measured) + sum(count for _, count in self.classes)
        # A list would be copied to the device at every use.
        self.register_buffer("places", torch.tensor(self.measured, dtype=torch.long), persistent=False)
        self.register_buffer("low", torch.tensor([fields[place].low for place in self.measured]), persistent=False)
        self.register_buffer("high", torch.tensor([fields[place].high for place in self.measured]), persistent=False)

    def scaled(self, vectors: Tensor) -> Tensor:
        """Measured entries of ``(..., V)`` in [-1, 1]: ``(..., M)``."""
        values = 2 * (vectors[..., self.places] - self.low) / (self.high - self.low) - 1
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
    """``(..., V)`` to an embedding ``(..., EMBEDDING_DIM)`` that is joined with the frame's before the projection.

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


class VectorTransition(nn.Module):
    """The vector as a part of the state: how it moves in a step, to the precision that it was observed with.

    What is carried ``(..., dim)`` are the entries that :class:`VectorFields` makes, times :data:`CARRIED_SCALE`. The
    next ones are the ones before and a difference. A part of that follows from what the dynamics expect; the other part
    from what they drew, which tells what cannot be expected: that a light changes, or how the road goes on beyond the
    last point seen. Both are trained, and the first one alone too, so that what can be expected does not hang on a
    draw.

    With ``bounds_by_class``, training notes which numbers always lie at a bound under which class. They are put there
    when a dream draws that class: it would else draw that a light is gone, and keep its distance.

    Errors of an entry are measured by a scale that is learnt with them (Kendall and Gal 2017, arXiv 1703.04977, eq. 5),
    as some entries can be predicted a thousand times better than others.

    Args:
        fields: Of the vector, at least one.
        expected_dim: Size of what the dynamics expect.
        drawn_dim: Size of what they draw.
        bounds_by_class: See above.
    """

    def __init__(self, fields: Fields, expected_dim: int, drawn_dim: int, bounds_by_class: bool = False) -> None:
        super().__init__()
        self.fields = VectorFields(fields)
        self.dim = self.fields.dim
        self.noise_dim = len(self.fields.classes)
        self.temperature = 1.0
        self._size = len(self.fields.measured)
        self.bins_dim = self._size * _BINS
        self.spread_dim = self.bins_dim + self.dim - self._size
        self.expected = MLP(expected_dim, expected_dim, self.dim, zero_init=True)
        self.drawn = MLP(expected_dim + drawn_dim, expected_dim, self.dim, zero_init=True)
        self.bounds_by_class = bounds_by_class
        if bounds_by_class:
            classes = self.dim - self._size
            self.register_buffer("seen", torch.zeros(classes))
            self.register_buffer("at_bound", torch.zeros(2, classes, self._size))
        self.log_scale = nn.Parameter(torch.full((2, self._size), -2.0))
        self.register_buffer("centres", torch.linspace(-1, 1, _BINS), persistent=False)

    centres: Tensor
    seen: Tensor
    """``(C,)``: observed steps of each class."""
    at_bound: Tensor
    """``(2, C, M)``: of these, those with each number at its low and its high bound."""

    def carry(self, vectors: Tensor) -> Tensor:
        """Observed vectors ``(..., V)`` as they are carried ``(..., dim)``."""
        return CARRIED_SCALE * self.fields.expand(vectors)

    def spread(self, carried: Tensor) -> Tensor:
        """``(..., dim)`` as a network reads small differences of it best ``(..., spread_dim)``: by :meth:`bins`."""
        return torch.cat((self.bins(carried), carried[..., self._size :]), dim=-1)

    def bins(self, carried: Tensor) -> Tensor:
        """The measured entries of ``(..., dim)`` in bins ``(..., bins_dim)``: shares of the two nearest centres."""
        measured = carried[..., : self._size, None] / CARRIED_SCALE
        shares = (1 - (measured - self.centres).abs() * ((_BINS - 1) / 2)).clamp(min=0)  # (..., M, _BINS)
        return shares.flatten(-2)

    def forward(self, carried: Tensor, expected: Tensor, drawn: Tensor, noise: Tensor | None = None) -> Tensor:
        """What is carried after the step ``(..., dim)``.

        Args:
            carried: Before it, ``(..., dim)``.
            expected: What the dynamics expect, ``(..., expected_dim)``.
            drawn: What they drew, ``(..., drawn_dim)``.
            noise: ``(..., noise_dim)`` uniform numbers in [0, 1), which draw the classes, so that a light that stays
                red at most steps turns green at some; without them the likeliest ones are taken.
        """
        following = carried + self.expected(expected).float() + self.drawn(torch.cat((expected, drawn), dim=-1)).float()
        classes = []
        for number, (_, logits) in enumerate(self.fields.logits(following)):
            if noise is None:  # by comparing, as in VectorFields.expand
                one_hot = (
                    logits.argmax(-1, keepdim=True) == torch.arange(logits.shape[-1], device=logits.device)
                ).float()
            else:
                one_hot = inverse_cdf(at_temperature(logits.softmax(-1), self.temperature), noise[..., number])
            classes.append(CARRIED_SCALE * one_hot)
        measured = following[..., : self._size].clamp(-CARRIED_SCALE, CARRIED_SCALE)
        if self.bounds_by_class:
            low, high = self._bounds(torch.cat(classes, dim=-1))
            measured = torch.where(low, -CARRIED_SCALE, torch.where(high, CARRIED_SCALE, measured))
        return torch.cat((measured, *classes), dim=-1)

    def _bounds(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Which numbers lie at their low, and which at their high bound, under carried classes: ``(..., M)`` bool."""
        always = ((self.at_bound == self.seen[:, None]) & (self.seen[:, None] >= _LEAST_SEEN)).float()  # (2, C, M)
        low, high = (classes @ part > 0 for part in always)
        return low, high

    @torch.no_grad()
    def _note_bounds(self, carried: Tensor) -> None:
        """Count for observed vectors ``(..., dim)``."""
        flat = carried.flatten(0, -2).float()
        measured, classes = flat[:, : self._size], (flat[:, self._size :] > 0).float()  # (N, M), (N, C)
        self.seen += classes.sum(0)
        # No matrix product: in bfloat16 it would not count right.
        for number, is_there in enumerate((measured <= -_AT_BOUND, measured >= _AT_BOUND)):
            self.at_bound[number] += (classes[:, :, None] * is_there[:, None, :]).sum(0)

    def loss(self, carried: Tensor, following: Tensor, expected: Tensor, drawn: Tensor) -> Tensor:
        """Negative log-likelihood of a step ``(...,)`` in nats, but for a constant; of large errors less (Huber 1964).

        Args:
            carried: Before the step, ``(..., dim)``.
            following: After it, as observed.
            expected: What the dynamics expected, ``(..., expected_dim)``.
            drawn: What they drew, ``(..., drawn_dim)``.
        """
        by_expected = carried + self.expected(expected).float()
        by_both = by_expected + self.drawn(torch.cat((expected, drawn), dim=-1)).float()
        total = carried.new_zeros(carried.shape[:-1])
        is_free: float | Tensor = 1.0
        if self.bounds_by_class:
            if self.training:
                self._note_bounds(following)
            low, high = self._bounds(following[..., self._size :])
            is_free = (~(low | high)).float()
        for predicted, log_scale in zip(
            (by_expected, by_both), self.log_scale.clamp(min=_LEAST_LOG_SCALE), strict=True
        ):
            error = (predicted - following)[..., : self._size] * (-log_scale).exp()
            likelihood = F.huber_loss(error, torch.zeros_like(error), reduction="none") + log_scale
            total = total + (is_free * likelihood).sum(-1)
            wanted = self.fields.logits(following)
            for (_, logits), (_, classes) in zip(self.fields.logits(predicted), wanted, strict=True):
                total = total - (logits.log_softmax(-1) * (classes / CARRIED_SCALE)).sum(-1)
        return total / 2


class CarriedVector(nn.Module):
    """Reads the vector out of features that end with it; see :class:`VectorTransition`.

    Args:
        fields: Of the vector, at least one.
    """

    def __init__(self, fields: Fields) -> None:
        super().__init__()
        self.fields = VectorFields(fields)

    def forward(self, features: Tensor) -> Tensor:
        """``(..., F)`` to the vector ``(..., V)`` float32 in the simulator's units."""
        return self.fields.collapse(features[..., -self.fields.dim :].float() / CARRIED_SCALE)


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
