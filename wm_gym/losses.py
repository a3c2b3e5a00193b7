"""The training loss of a world model on a batch of clips."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wm_gym.config import LossConfig
from wm_gym.state import LatentState
from wm_gym.world_model import WorldModel


class ClipTensors(NamedTuple):
    """A batch of clips on the device.

    Attributes:
        frames: ``(B, T, 3, H, W)`` float in [-1, 1].
        actions: ``(B, T - 1, A)`` float32, stored format; ``actions[:, t]`` leads from frame ``t`` to ``t + 1``.
        rewards: ``(B, T - 1)`` float32.
        terminated: ``(B, T - 1)`` bool.
    """

    frames: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor


class Unrolled(NamedTuple):
    """A clip as the model sees it: observed for ``context`` frames, then predicted without frames.

    Attributes:
        latents: ``(B, T, Z)``, encoded from the frames.
        predicted: ``(B, T - 1, Z)``; entry ``t`` predicts ``latents[:, t + 1]``. Entries from ``context - 1`` on are
            open-loop predictions of growing horizon; earlier ones are one-step predictions.
        features: ``(B, T - 1, F)`` of the predicted states.
    """

    latents: Tensor
    predicted: Tensor
    features: Tensor


def unroll(model: WorldModel, clips: ClipTensors, context: int, checkpointed: bool = False) -> Unrolled:
    """Encode a batch of clips, observe the first ``context`` frames and imagine the rest.

    Args:
        model: The world model.
        clips: The clips.
        context: Frames to observe, at least 1.
        checkpointed: Recompute the encoder's activations in the backward pass instead of keeping them.
    """
    latents = (
        checkpoint(model.encode, clips.frames, use_reentrant=False) if checkpointed else model.encode(clips.frames)
    )
    state = model.dynamics.initial(latents[:, 0])
    predicted: list[Tensor] = []
    features: list[Tensor] = []
    for t in range(clips.actions.shape[1]):
        prior: LatentState = model.imagine_state(state, clips.actions[:, t])
        predicted.append(prior.latent)
        features.append(model.features(prior))
        is_observed = t + 1 < context
        state = model.dynamics.correct(prior, latents[:, t + 1]) if is_observed else prior
    return Unrolled(latents, torch.stack(predicted, dim=1), torch.stack(features, dim=1))


def temporal_weights(horizon: int, strength: float) -> Tensor:
    """``w_t = 1 + (t / T) * strength`` for ``t = 1 .. T`` (guide, "Prediction Loss"): ``(T,)``."""
    return 1 + torch.arange(1, horizon + 1) / horizon * strength


class WorldModelLoss(nn.Module):
    """Weighted sum of the loss terms of :class:`wm_gym.config.LossConfig`.

    Args:
        config: The weights.
        context: Frames observed before prediction starts.
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
    ) -> None:
        super().__init__()
        self.config = config
        self.context = context
        self.decode_fraction = decode_fraction
        self.perceptual = perceptual
        self.gradient_checkpointing = gradient_checkpointing

    def forward(
        self, model: WorldModel, clips: ClipTensors, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total loss, a scalar, and each unweighted term (detached scalars).

        Args:
            model: The world model.
            clips: The clips.
            generator: Draws the time steps to decode (on the CPU).
        """
        weights = self.config
        unrolled = unroll(model, clips, self.context, self.gradient_checkpointing)
        open_loop = unrolled.predicted[:, self.context - 1 :]
        horizon = open_loop.shape[1]

        terms = {
            "regularisation": unrolled.latents.float().square().mean(),
            "consistency": (unrolled.predicted - unrolled.latents[:, 1:].detach()).float().square().mean(),
            "reward": model.reward_head.loss(unrolled.features, clips.rewards),
            "continuation": model.continuation_head.loss(unrolled.features, clips.terminated),
        }

        decoded = self._steps(clips.frames.shape[1], generator)
        target = clips.frames[:, decoded]
        reconstruction = self._decode(model, unrolled.latents[:, decoded])
        terms["reconstruction"] = (reconstruction - target).abs().mean()
        if weights.perceptual > 0:
            assert self.perceptual is not None
            terms["perceptual"] = self.perceptual(reconstruction.flatten(0, 1), target.flatten(0, 1)).mean()

        ahead = self._steps(horizon, generator)
        target = clips.frames[:, self.context :][:, ahead]
        prediction = self._decode(model, open_loop[:, ahead])
        error = (prediction - target).abs().mean(dim=(0, 2, 3, 4))
        weight = temporal_weights(horizon, weights.temporal)[ahead].to(error)
        terms["prediction"] = (weight * error).mean()

        total = torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()
        return total, {name: value.detach() for name, value in terms.items()}

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
