"""The training loss of a world model on a batch of clips."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wm_gym.clips import Clips
from wm_gym.config import LossConfig
from wm_gym.models.dynamics.base import Divergence
from wm_gym.models.vector import VectorHead
from wm_gym.state import LatentState
from wm_gym.world_model import WorldModel


class Unrolled(NamedTuple):
    """A clip as the model sees it: observed, and predicted from the first ``context`` frames on.

    Attributes:
        latents: ``(B, T, Z)``, encoded from the frames.
        observed: ``(B, T, Z)``, what the decoder shows of the frames once they are seen.
        open_loop: ``(B, T - context, Z)``, predictions of growing horizon without frames, drawn where the dynamics
            are stochastic; ``None`` where they were not asked for.
        predicted: Deterministic dynamics: ``(B, T - 1, Z)``; entry ``t`` predicts ``latents[:, t + 1]``. Entries from
            ``context - 1`` on are ``open_loop``; earlier ones are one-step predictions.
        features: ``(B, T - 1, F)`` that the heads learn from: of the predicted states, or of the observed ones where
            the dynamics are stochastic, since a drawn state need not be the one that the reward belongs to.
        divergence: Stochastic dynamics: of each observed step, ``(B, T - 1)``.
        seen: ``(B, T, F)``: features of the state at each time step, observed where the dynamics observed, for the
            vector's head; deterministic dynamics leave it out where the simulator has no vector.
        vector_loss: ``(B, T - 1)``: of dynamics that carry the vector, how badly they predicted it.
        imagined: Stochastic dynamics: ``(B, T - 1, F)``, features of each step as it is imagined from the observed
            state before it, without a gradient; ``None`` where they were not asked for.
    """

    latents: Tensor
    observed: Tensor
    open_loop: Tensor | None
    predicted: Tensor | None
    features: Tensor
    divergence: Divergence | None
    seen: Tensor | None
    vector_loss: Tensor | None = None
    imagined: Tensor | None = None


def unroll(
    model: WorldModel,
    clips: Clips[Tensor],
    context: int,
    checkpointed: bool = False,
    *,
    with_open_loop: bool = True,
    with_imagined: bool = False,
) -> Unrolled:
    """Encode a batch of clips and follow them with the dynamics.

    Deterministic dynamics observe the first ``context`` frames and imagine the rest; stochastic ones observe all
    frames, and imagine from the state after ``context`` frames beside that.

    Args:
        model: The world model.
        clips: The clips.
        context: Frames to observe before predicting, at least 1.
        checkpointed: Recompute the encoder's activations in the backward pass instead of keeping them.
        with_open_loop: Stochastic dynamics imagine only where this is set.
        with_imagined: Whether stochastic dynamics imagine each step by itself, too.
    """
    if clips.latents is not None:
        latents = clips.latents
    elif checkpointed:
        latents = checkpoint(model.encode, clips.observations, use_reentrant=False)
    else:
        latents = model.encode(clips.observations)
    if model.dynamics.is_stochastic:
        return _filter(model, clips, latents, context, with_open_loop=with_open_loop, with_imagined=with_imagined)
    state = model.dynamics.initial(latents[:, 0])
    predicted: list[Tensor] = []
    features: list[Tensor] = []
    states = [state]
    for t in range(clips.actions.shape[1]):
        prior: LatentState = model.imagine_state(state, clips.actions[:, t])
        predicted.append(prior.latent)
        features.append(model.features(prior))
        is_observed = t + 1 < context
        state = model.dynamics.correct(prior, latents[:, t + 1]) if is_observed else prior
        states.append(state)
    stacked = torch.stack(predicted, dim=1)
    seen = torch.stack([model.features(state) for state in states], dim=1) if model.simulator.vector else None
    return Unrolled(
        latents,
        latents,
        stacked[:, context - 1 :],
        stacked,
        torch.stack(features, dim=1),
        None,
        seen,
    )


def _filter(
    model: WorldModel,
    clips: Clips[Tensor],
    latents: Tensor,
    context: int,
    *,
    with_open_loop: bool,
    with_imagined: bool,
) -> Unrolled:
    batch, steps = clips.actions.shape[:2]
    states, divergence, vector_loss = model.filter(latents, clips.actions)
    seen = model.features(states).unflatten(0, (steps + 1, batch)).transpose(0, 1)  # (T * B, F) to (B, T, F)
    features = seen[:, 1:]  # not the first: no step led to it

    open_loop: list[Tensor] = []
    if with_open_loop:
        rows = slice((context - 1) * batch, context * batch)
        state = LatentState(states.latent[rows], states.memory[rows])
        for t in range(context - 1, steps):
            state = model.imagine_state(state, clips.actions[:, t])
            open_loop.append(state.latent)
    imagined: Tensor | None = None
    if with_imagined:
        with torch.no_grad():
            before = LatentState(states.latent[:-batch], states.memory[:-batch])  # ((T - 1) * B, ...)
            following = model.imagine_state(before, clips.actions.transpose(0, 1).flatten(0, 1))
            imagined = model.features(following).unflatten(0, (steps, batch)).transpose(0, 1)  # to (B, T - 1, F)
    assert divergence is not None
    return Unrolled(
        latents,
        states.latent.unflatten(0, (steps + 1, batch)).transpose(0, 1),
        torch.stack(open_loop, dim=1) if open_loop else None,
        None,
        features,
        Divergence(*(part.transpose(0, 1) for part in divergence)),
        seen,
        None if vector_loss is None else vector_loss.transpose(0, 1),
        imagined,
    )


def temporal_weights(horizon: int, strength: float, device: torch.device | None = None) -> Tensor:
    """``w_t = 1 + (t / T) * strength`` for ``t = 1 .. T`` (docs/guide.md, "Loss"): ``(T,)``."""
    return 1 + torch.arange(1, horizon + 1, device=device) / horizon * strength


class Draws(NamedTuple):
    """What one call of the loss draws at random, apart from the dynamics' states.

    Attributes:
        context: Frames observed before prediction starts.
        decoded: ``(S,)`` int64, the observed time steps that are decoded; ``None`` where none are.
        ahead: ``(S,)`` int64, the predicted time steps that are decoded, counted from ``context``; likewise.
        kl_share: Scalar, not drawn: the share of their weights with which the KL terms count; ``None`` is all.
    """

    context: int
    decoded: Tensor | None
    ahead: Tensor | None
    kl_share: Tensor | None = None

    def to(self, device: torch.device) -> Draws:
        """The same on the device."""
        return Draws(self.context, *(None if value is None else value.to(device) for value in self[1:]))


class WorldModelLoss(nn.Module):
    """Weighted sum of the loss terms of :class:`wm_gym.config.LossConfig`.

    Args:
        config: The weights.
        context: Frames observed before prediction starts.
        context_range: Fewest and most such frames, drawn with each call's generator; ``None``: always ``context``.
        decode_fraction: Share of the time steps decoded, drawn anew each time; decoding is the costliest part.
        perceptual: LPIPS network, needed where its weight is not 0.
        gradient_checkpointing: Recompute the convolutions' activations in the backward pass.
    """

    def __init__(
        self,
        config: LossConfig,
        context: int,
        decode_fraction: float = 1.0,
        perceptual: nn.Module | None = None,
        gradient_checkpointing: bool = False,
        *,
        context_range: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.context = context
        self.decode_fraction = decode_fraction
        self.perceptual = perceptual
        self.gradient_checkpointing = gradient_checkpointing
        self.context_range = context_range

    def forward(
        self, model: WorldModel, clips: Clips[Tensor], generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total loss, a scalar, and each unweighted term (detached scalars).

        Args:
            model: The world model.
            clips: The clips.
            generator: Draws the frames to observe and the time steps to decode (on the CPU).
        """
        return self.given(model, clips, self.draw(clips, generator).to(clips.actions.device))

    def draw(self, clips: Clips[Any], generator: torch.Generator | None = None) -> Draws:
        """Draw what a call needs for these clips, arrays or tensors; on the CPU."""
        weights, length = self.config, clips.actions.shape[1] + 1
        context = self.context
        if self.context_range is not None and generator is not None:
            fewest, most = self.context_range
            context = int(torch.randint(fewest, most + 1, (), generator=generator))
        decoded = ahead = None
        shown = None if clips.shown is None else torch.as_tensor(clips.shown).cpu()
        if weights.reconstruction > 0 or weights.squared > 0 or weights.perceptual > 0:
            decoded = self._steps(length, generator) if shown is None else shown
        if weights.prediction > 0:
            ahead = self._steps(length - context, generator) if shown is None else shown[shown >= context] - context
        return Draws(context, decoded, ahead)

    def given(self, model: WorldModel, clips: Clips[Tensor], draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """As :meth:`forward`, with what :meth:`draw` gave; no shape depends on what a tensor holds."""
        weights = self.config
        unrolled = unroll(
            model,
            clips,
            draws.context,
            self.gradient_checkpointing,
            with_open_loop=draws.ahead is not None,
            with_imagined=weights.imagined_continuation > 0,
        )

        def mean(values: Tensor) -> Tensor:
            """Of ``(B, T - 1, ...)``; steps after an episode's end count as 0.

            So processes with more or fewer of them average to what one would have.
            """
            if clips.is_real is None:
                return values.mean()
            return (values * clips.is_real.to(values).unflatten(1, (-1, *[1] * (values.dim() - 2)))).mean()

        terms = {"regularisation": unrolled.observed.float().square().mean()}
        if unrolled.predicted is not None and weights.consistency > 0:
            terms["consistency"] = mean((unrolled.predicted - unrolled.latents[:, 1:].detach()).float().square())
        terms["reward"] = mean(model.reward_head.losses(unrolled.features, clips.rewards))
        terms["continuation"] = mean(model.continuation_head.losses(unrolled.features, clips.terminated))
        if unrolled.imagined is not None:
            terms["imagined_continuation"] = mean(model.continuation_head.losses(unrolled.imagined, clips.terminated))
        if unrolled.vector_loss is not None:
            terms["vector"] = mean(unrolled.vector_loss)
        elif model.simulator.vector:
            assert unrolled.seen is not None
            assert isinstance(model.vector_head, VectorHead)
            terms["vector"] = model.vector_head.loss(unrolled.seen, clips.vectors)
        if unrolled.divergence is not None:
            for name, divergence in unrolled.divergence._asdict().items():
                terms[f"kl_{name}"] = mean(divergence.clamp(min=weights.free_nats))
        if draws.decoded is not None:
            terms.update(self._reconstruction_terms(model, unrolled.observed, clips, draws.decoded))
        if unrolled.open_loop is not None and draws.ahead is not None:
            terms["prediction"] = self._prediction_term(model, unrolled.open_loop, clips, draws.context, draws.ahead)

        weighted = {name: getattr(weights, name) * value for name, value in terms.items()}
        if draws.kl_share is not None:
            weighted |= {name: draws.kl_share * weighted[name] for name in weighted if name.startswith("kl_")}
        total = torch.stack(list(weighted.values())).sum()
        return total, {name: value.detach() for name, value in terms.items()}

    def _reconstruction_terms(
        self, model: WorldModel, observed: Tensor, clips: Clips[Tensor], decoded: Tensor
    ) -> dict[str, Tensor]:
        target = clips.frames[:, decoded] if clips.shown is None else clips.frames
        reconstruction = self._decode(model, observed[:, decoded])
        error = reconstruction - target
        terms = {"reconstruction": error.abs().mean()}
        if self.config.squared > 0:
            terms["squared"] = error.square().mean()
        if self.config.perceptual > 0:
            assert self.perceptual is not None
            terms["perceptual"] = self.perceptual(reconstruction.flatten(0, 1), target.flatten(0, 1)).mean()
        return terms

    def _prediction_term(
        self, model: WorldModel, open_loop: Tensor, clips: Clips[Tensor], context: int, ahead: Tensor
    ) -> Tensor:
        if not len(ahead):
            return open_loop.new_zeros(())
        # The steps of ``shown`` rise, so those that were predicted are the last ones.
        target = clips.frames[:, context + ahead] if clips.shown is None else clips.frames[:, -len(ahead) :]
        prediction = self._decode(model, open_loop[:, ahead])
        difference = (prediction - target).abs()
        if clips.is_real is None:
            error = difference.mean(dim=(0, 2, 3, 4))
        else:
            is_real = clips.is_real[:, context - 1 + ahead].to(difference)  # (B, S)
            error = (difference.mean(dim=(2, 3, 4)) * is_real).mean(dim=0)
        weight = temporal_weights(open_loop.shape[1], self.config.temporal, error.device).to(error)[ahead]
        return (weight * error).mean()

    def _steps(self, available: int, generator: torch.Generator | None) -> Tensor:
        count = max(1, round(available * self.decode_fraction))
        if count == available:
            return torch.arange(available)
        return torch.randperm(available, generator=generator)[:count].sort().values

    def _decode(self, model: WorldModel, latents: Tensor) -> Tensor:
        flat = latents.flatten(0, 1)
        if self.gradient_checkpointing:
            images: Tensor = checkpoint(model.decode_latent, flat, use_reentrant=False)
        else:
            images = model.decode_latent(flat)
        return images.float().unflatten(0, latents.shape[:2])
