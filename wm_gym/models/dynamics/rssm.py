"""Recurrent state-space model with a categorical latent (Hafner et al. 2023, arXiv 2301.04104, "World model learning").

A deterministic vector carries the past, a stochastic one says which of the possible presents it is. The prior guesses
the stochastic one from the past, the posterior reads it off the frame; training makes the two agree, so that a dream
drawn from the prior looks like what the posterior would have seen. Unlike a deterministic prediction it does not blur
futures that differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from wm_gym.config import DynamicsConfig
from wm_gym.models.blocks import MLP, at_temperature, inverse_cdf
from wm_gym.models.dynamics.base import Divergence, Dynamics, Filtered
from wm_gym.models.dynamics.recurrence import Recurrence, has_kernel
from wm_gym.models.vector import VectorTransition
from wm_gym.state import LatentState
from wm_gym.vector import Fields

UNIFORM_SHARE = 0.01
"""Share of a uniform distribution in prior and posterior: keeps the divergence finite (arXiv 2301.04104)."""


class NormedGRUCell(nn.Module):
    """A GRU cell with layer norm on its gates."""

    def __init__(self, in_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gates = nn.Linear(in_dim + hidden_dim, 3 * hidden_dim, bias=False)
        self.norm = nn.LayerNorm(3 * hidden_dim)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """``x`` ``(B, in)`` and ``hidden`` ``(B, hidden)`` to the new ``hidden``."""
        reset, candidate, update = self.norm(self.gates(torch.cat((x, hidden), dim=-1))).chunk(3, dim=-1)
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        # The bias of -1 starts the cell as one that remembers.
        update = torch.sigmoid(update - 1)
        return update * candidate + (1 - update) * hidden


def uniform(shape: Sequence[int], device: torch.device) -> Tensor:
    """Numbers in [0, 1) from torch's global generator."""
    return torch.rand(shape, dtype=torch.float32, device=device)


class CategoricalDraw(nn.Module):
    """Draws one class of each group; a module without parameters, so that hooks can see what it is given.

    Args:
        classes: Classes of each group.

    Attributes:
        temperature: Of the draws by given noise.
        uniform: Makes the noise that was not given, in training mode: numbers in [0, 1) of a shape ``(..., B, groups)``
            on a device.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.temperature = 1.0
        self.uniform: Callable[[Sequence[int], torch.device], Tensor] = uniform

    def forward(self, probabilities: Tensor, noise: Tensor | None = None) -> Tensor:
        """``(B, groups, classes)`` to one-hot vectors ``(B, groups * classes)``; straight-through in training mode.

        Args:
            probabilities: ``(B, groups, classes)``.
            noise: ``(B, groups)`` uniform numbers in [0, 1); without them torch's global generator draws in training
                mode, and the most probable class is taken in evaluation mode.
        """
        if noise is None and self.training:
            noise = self.uniform(probabilities.shape[:-1], probabilities.device)
        if noise is None:
            one_hot = F.one_hot(probabilities.detach().argmax(-1), self.classes).to(probabilities.dtype)
        else:
            one_hot = inverse_cdf(at_temperature(probabilities.detach(), self.temperature), noise)
        if self.training:
            # The value is the one-hot vector, the gradient that of the probabilities.
            one_hot = one_hot + (probabilities - probabilities.detach())
        return one_hot.flatten(1)

    @staticmethod
    def margin(probabilities: Tensor, noise: Tensor | None = None) -> Tensor:
        """How far a draw was from falling on another class, as a difference of probabilities ``(B, groups)``."""
        if noise is None:
            best = probabilities.topk(2, dim=-1).values
            return best[..., 0] - best[..., 1]
        bounds = probabilities.cumsum(-1)[..., :-1]
        return (bounds - noise.to(probabilities.dtype).unsqueeze(-1)).abs().amin(-1)


class RSSMDynamics(Dynamics):
    """``h' = GRU(h, MLP(z, a))``; ``z'`` is drawn from ``p(z' | h')`` (imagined) or ``q(z' | h', frame)`` (observed).

    ``h`` is a vector of ``hidden_dim``, ``z`` are ``groups`` one-hot vectors of ``classes``. The memory holds both,
    ``(B, 1, hidden_dim + groups * classes)``, and is what the features show. The latent is a learned read-out of
    both, for the decoder; the encoder's latent enters through the posterior alone.

    With ``fields`` the state has the observation's vector as a third part, at the end of the memory and of the encoded
    latent: as it was observed, or as :class:`VectorTransition` predicts it. With ``shows_bins`` the features have it in
    bins as well, before its own entries.
    """

    reads_latent = False

    def __init__(self, config: DynamicsConfig, latent_dim: int, action_dim: int, fields: Fields = ()) -> None:
        hidden = config.hidden_dim
        stochastic = config.groups * config.classes
        vector = VectorTransition(fields, hidden, stochastic, config.bounds_by_class) if fields else None
        carried, spread = (0, 0) if vector is None else (vector.dim, vector.spread_dim)
        super().__init__(config, latent_dim + carried, action_dim)
        self.vector = vector
        self._embedded_dim = latent_dim
        self._drawn = slice(hidden, hidden + stochastic)
        memory = hidden + stochastic + carried
        self.feature_dim = memory + (vector.bins_dim if vector is not None and config.shows_bins else 0)
        self.noise_dim = config.groups + (0 if vector is None else vector.noise_dim)
        self.start = nn.Parameter(torch.zeros(hidden))
        self.input = nn.Sequential(nn.Linear(stochastic + spread + action_dim, hidden), nn.LayerNorm(hidden), nn.SiLU())
        self.cell = NormedGRUCell(hidden, hidden)
        self.prior = MLP(hidden, hidden, stochastic)
        self.draw = CategoricalDraw(config.classes)
        # Encoders start with outputs near 0; beside h the posterior would not notice them.
        self.embedding_norm = nn.LayerNorm(latent_dim)
        self.posterior = MLP(hidden + latent_dim, hidden, stochastic)
        self.output = MLP(memory, hidden, latent_dim)

    def initial(self, latent: Tensor) -> LatentState:
        """The posterior of the first frame; ``h`` starts from a learned vector."""
        hidden = self._first_hidden(latent.shape[0])  # len() would be a constant in a traced export
        return self._state(hidden, self.draw(self._posterior(hidden, latent)), self._observed(latent))

    def carry(self, vectors: Tensor) -> Tensor:
        """All of it, where the state has the vector."""
        return super().carry(vectors) if self.vector is None else self.vector.carry(vectors)

    def set_temperature(self, temperature: float) -> None:
        """Of the latent's classes and of the vector's."""
        self.draw.temperature = temperature
        if self.vector is not None:
            self.vector.temperature = temperature

    def imagine(self, state: LatentState, action: Tensor, noise: Tensor | None = None) -> LatentState:
        """``z'`` is drawn from the prior, and the vector's classes with it, by ``noise`` ``(B, noise_dim)``."""
        hidden = self._advance(state.memory[:, 0], action)
        carried = self._carried(state.memory[:, 0])
        if self.vector is None:
            return self._state(hidden, self.draw(self._prior(hidden), noise), carried)
        if noise is None and self.training:
            noise = self.draw.uniform((hidden.shape[0], self.noise_dim), hidden.device)
        groups = self.config.groups
        drawn = self.draw(self._prior(hidden), None if noise is None else noise[:, :groups])
        carried = self.vector(carried, hidden, drawn, None if noise is None else noise[:, groups:])
        return self._state(hidden, drawn, carried)

    def correct(self, predicted: LatentState, latent: Tensor) -> LatentState:
        """``z`` of the predicted state is drawn anew from the posterior; ``h`` stays."""
        hidden = self._hidden(predicted)
        return self._state(hidden, self.draw(self._posterior(hidden, latent)), self._observed(latent))

    def observe(self, state: LatentState, action: Tensor, latent: Tensor) -> LatentState:
        """As the base class does it, without drawing from the prior what the posterior then replaces."""
        hidden = self._advance(state.memory[:, 0], action)
        return self._state(hidden, self.draw(self._posterior(hidden, latent)), self._observed(latent))

    def filter(self, latents: Tensor, actions: Tensor) -> Filtered:
        """As the base class does it; only what one step needs of the one before is computed step by step."""
        latents, actions = latents.transpose(0, 1), actions.transpose(0, 1)  # to (T, B, ...)
        follow = self._follow_at_once if self._has_kernel(latents) else self._follow
        hiddens, posteriors, drawn = follow(latents, actions)
        followed = torch.cat((hiddens, drawn, self._observed(latents)), dim=-1)
        memory = followed.flatten(0, 1)
        states = LatentState(self.output(memory), memory.unsqueeze(1))
        divergence = _divergence(posteriors[1:], self._prior(hiddens[1:]))
        if self.vector is None:
            return Filtered(states, divergence)
        carried = self._carried(followed)
        return Filtered(states, divergence, self.vector.loss(carried[:-1], carried[1:], hiddens[1:], drawn[1:]))

    def _follow(self, latents: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``h`` ``(T, B, hidden)``, the posterior's probabilities ``(T, B, groups, classes)`` and what was drawn."""
        hidden = self._first_hidden(latents.shape[1])
        hiddens: list[Tensor] = []
        posteriors: list[Tensor] = []
        drawn: list[Tensor] = []
        for t, latent in enumerate(latents):
            if t:
                memory = torch.cat((hidden, drawn[-1], self._observed(latents[t - 1])), dim=-1)
                hidden = self._advance(memory, actions[t - 1])
            posterior = self._posterior(hidden, latent)
            hiddens.append(hidden)
            posteriors.append(posterior)
            drawn.append(self.draw(posterior))
        return torch.stack(hiddens), torch.stack(posteriors), torch.stack(drawn)

    def _has_kernel(self, latents: Tensor) -> bool:
        """Whether a compiled kernel follows these ``(T, B, Z)``."""
        stochastic = self.config.groups * self.config.classes
        return (
            self.draw.training
            and torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and latents.device.type == "cpu"
            and self.start.dtype == torch.float32
            and self.draw.temperature == 1.0
            and has_kernel(self.config.hidden_dim, stochastic, (self._layers[1], self.cell.norm, self._layers[4]))
        )

    @property
    def _layers(self) -> tuple[Any, ...]:
        """Those of the first layer, then those of the posterior."""
        return (*self.input, *self.posterior)

    def _follow_at_once(self, latents: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`_follow`, by a compiled kernel."""
        known = [actions]
        if self.vector is not None:
            known.insert(0, self.vector.spread(self._observed(latents[:-1])))
        first, norm_input, _, second, norm_posterior, _, logits = self._layers
        stochastic, size = self.config.groups * self.config.classes, self.config.hidden_dim
        embedded = self.embedding_norm(latents[..., : self._embedded_dim])
        recurrence = Recurrence(
            self._first_hidden(latents.shape[1]),
            F.linear(torch.cat(known, dim=-1), first.weight[:, stochastic:], first.bias),
            F.linear(embedded, second.weight[:, size:], second.bias),
            first.weight[:, :stochastic],
            self.cell.gates.weight,
            second.weight[:, :size],
            logits.weight,
            logits.bias,
            *(part for norm in (norm_input, self.cell.norm, norm_posterior) for part in (norm.weight, norm.bias)),
        )
        hiddens, posteriors, drawn = recurrence.follow(
            self.draw.uniform((*latents.shape[:2], self.config.groups), latents.device),
            groups=self.config.groups,
            mixed=UNIFORM_SHARE,
        )
        return hiddens, posteriors.unflatten(-1, (self.config.groups, self.config.classes)), drawn

    def shown(self, state: LatentState) -> Tensor:
        """The read-out of the memory."""
        latent: Tensor = self.output(state.memory[:, 0])
        return latent

    def features(self, state: LatentState) -> Tensor:
        """``(B, F)``: ``h`` and ``z``, and the vector where the state has it."""
        memory = state.memory.select(1, 0)  # a fifth of the time of an index, and a dream asks at every step
        if self.vector is None or not self.config.shows_bins:
            return memory
        carried = self._carried(memory)
        return torch.cat((memory[:, : self._drawn.stop], self.vector.bins(carried), carried), dim=-1)

    def divergence(self, observed: LatentState, latent: Tensor) -> Divergence:
        """``KL(q || p)``, summed over the groups."""
        hidden = self._hidden(observed)
        return _divergence(self._posterior(hidden, latent), self._prior(hidden))

    def _first_hidden(self, batch: int) -> Tensor:
        """``h`` ``(B, hidden)`` where an episode begins."""
        return torch.tanh(self.start).expand(batch, -1)

    def _hidden(self, state: LatentState) -> Tensor:
        return state.memory[:, 0, : self.config.hidden_dim]

    def _advance(self, memory: Tensor, action: Tensor) -> Tensor:
        """``h'`` ``(B, hidden)`` after what ``memory`` ``(B, F)`` holds."""
        size = self.config.hidden_dim
        known = [memory[:, size:]]
        if self.vector is not None:
            known = [memory[:, self._drawn], self.vector.spread(self._carried(memory))]
        hidden: Tensor = self.cell(self.input(torch.cat((*known, action), dim=-1)), memory[:, :size])
        return hidden

    def _carried(self, memory: Tensor) -> Tensor:
        """The vector's part ``(..., D)`` of memories ``(..., F)``."""
        return memory[..., self._drawn.stop :]

    def _observed(self, latent: Tensor) -> Tensor:
        """The vector's part ``(..., D)`` of encoded latents ``(..., Z)``."""
        return latent[..., self._embedded_dim :]

    def _prior(self, hidden: Tensor) -> Tensor:
        """Probabilities ``(B, groups, classes)``."""
        return self._probabilities(self.prior(hidden))

    def _posterior(self, hidden: Tensor, latent: Tensor) -> Tensor:
        """Probabilities ``(B, groups, classes)``."""
        embedded = self.embedding_norm(latent[..., : self._embedded_dim])
        return self._probabilities(self.posterior(torch.cat((hidden, embedded), dim=-1)))

    def _probabilities(self, logits: Tensor) -> Tensor:
        logits = logits.float().unflatten(-1, (self.config.groups, self.config.classes))
        return (1 - UNIFORM_SHARE) * logits.softmax(-1) + UNIFORM_SHARE / self.config.classes

    def _state(self, hidden: Tensor, stochastic: Tensor, carried: Tensor) -> LatentState:
        memory = torch.cat((hidden, stochastic, carried), dim=-1)
        return LatentState(self.output(memory), memory.unsqueeze(1))


def _divergence(posterior: Tensor, prior: Tensor) -> Divergence:
    return Divergence(categorical_kl(posterior.detach(), prior), categorical_kl(posterior, prior.detach()))


def categorical_kl(first: Tensor, second: Tensor) -> Tensor:
    """``KL(first || second)`` ``(B,)`` in nats of independent distributions ``(B, groups, classes)``, all above 0."""
    return (first * (first.log() - second.log())).sum((-2, -1))
