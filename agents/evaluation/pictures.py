"""Pictures: how near dreamt frames are to the simulator's under equal actions, by number of steps and as sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm_gym.bundle_location import shipped_model
from wm_gym.frames import frames_to_tensor, resize_frame
from wm_gym.metrics import IMAGE_HORIZONS, frechet_distance, psnr, ssim
from wm_gym.perceptual import cached_perceptual_network
from wm_gym.world_model import WorldModel

Distance = Callable[[Tensor, Tensor], float]
"""Of frames ``(B, 3, H, W)`` in [-1, 1] from as many others, the mean."""
PICTURE_STEPS = (1, 5, 10, 15, 20, 25, 30)
"""Steps whose frames are kept; PSNR, SSIM and LPIPS are of those that are horizons of a training's validation, too."""
LEAST_LPIPS_SIDE = 32
"""Pixels of a frame of which AlexNet leaves something."""
_LEAST_SSIM_SIDE = 11  # pixels, of its window
_ENCODER = "f5188623d96f"
"""Fingerprint of the first world model that the package shipped: distances in another one's latents would differ."""
_BATCH = 64  # frames at once, whatever their size


@dataclass(frozen=True)
class PictureHorizon:
    """Dreamt frames against the simulator's, some steps ahead; ``copy`` is for repeating the last frame seen.

    Attributes:
        steps: Number of steps.
        frames: How many pairs there are: an episode that has ended shows no more.
        psnr: Mean peak signal-to-noise ratio in dB.
        ssim: Mean structural similarity, 1 for equal frames; ``None`` for frames smaller than its window.
        lpips: Mean perceptual distance, 0 for equal frames; ``None`` where its weights are not here.
        psnr_copy: As ``psnr``.
        ssim_copy: As ``ssim``.
        lpips_copy: As ``lpips``.
    """

    steps: int
    frames: int
    psnr: float
    ssim: float | None
    lpips: float | None
    psnr_copy: float
    ssim_copy: float | None
    lpips_copy: float | None


@dataclass(frozen=True)
class PictureScore:
    """How near dreamt pictures are to the simulator's.

    Attributes:
        sequences: Number of action sequences that were dreamt and driven.
        by_horizon: Frame by frame, the shortest horizon first.
        frechet_sequences: How many of them were driven to their end.
        frechet: Frechet distance of these sequences in the latents of a bundled encoder, which is not FVD;
            ``None`` for fewer than two.
        frechet_copy: The same for repeating the last frame seen.
    """

    sequences: int
    by_horizon: list[PictureHorizon]
    frechet_sequences: int
    frechet: float | None
    frechet_copy: float | None


def picture_steps(steps: int) -> list[int]:
    """Those of :data:`PICTURE_STEPS` that fit into ``steps``."""
    return [step for step in PICTURE_STEPS if step <= steps]


def frames_at(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Of the frames ``(M, H, W, 3)`` after each of ``M`` steps those that are kept, ``(P, H, W, 3)``."""
    return frames[[step - 1 for step in picture_steps(len(frames))]]


def score_pictures(
    real: Sequence[NDArray[np.uint8]],
    dreamt: Sequence[NDArray[np.uint8]],
    last: Sequence[NDArray[np.uint8]],
    *,
    device: str | torch.device = "cpu",
) -> PictureScore:
    """Compare the frames of one or more action sequences.

    Args:
        real: The simulator's ``(P, H, W, 3)`` of each sequence, after the steps of :func:`picture_steps`, up to an end.
        dreamt: Those of the dream, as many or more.
        last: ``(H, W, 3)``, the last frame that was seen before each sequence.
        device: Where encoder and perceptual network compute.
    """
    size = dreamt[0].shape[1:3]
    shown = [_resized(frames, size) for frames in real]
    seen = [_resized(frame[None], size) for frame in last]
    lpips = _perceptual_distance(device) if min(size) >= LEAST_LPIPS_SIDE else None
    by_horizon = []
    for place, steps in enumerate(PICTURE_STEPS):
        rows = [row for row, frames in enumerate(shown) if len(frames) > place]
        if steps in IMAGE_HORIZONS and rows:
            target = _tensor([shown[row][place] for row in rows])
            by_horizon.append(
                _horizon(
                    steps,
                    target,
                    _tensor([dreamt[row][place] for row in rows]),
                    _tensor([seen[row][0] for row in rows]),
                    lpips,
                )
            )
    length = max(len(frames) for frames in dreamt)
    whole = [row for row, frames in enumerate(shown) if len(frames) == length]
    frechet, frechet_copy = None, None
    if len(whole) > 1:
        encoder = WorldModel.from_pretrained(shipped_model(_ENCODER), device).eval()
        target = sequence_features(encoder, [shown[row] for row in whole])
        copies = [np.repeat(seen[row], length, axis=0) for row in whole]
        frechet = frechet_distance(sequence_features(encoder, [dreamt[row] for row in whole]), target)
        frechet_copy = frechet_distance(sequence_features(encoder, copies), target)
    return PictureScore(len(real), by_horizon, len(whole), frechet, frechet_copy)


@torch.no_grad()
def sequence_features(encoder: WorldModel, sequences: Sequence[NDArray[np.uint8]]) -> Tensor:
    """What a sequence looks like and how it moves: mean latent, and mean absolute change from one frame to the next.

    Args:
        encoder: A model that sees frames alone, of any size.
        sequences: ``N`` arrays ``(P, H, W, 3)``.

    Returns:
        ``(N, 2 Z)`` float32 on the CPU; without a second frame nothing changes.
    """
    features = []
    for frames in sequences:
        images = _tensor(list(_resized(frames, encoder.config.frame_size))).to(encoder.device)
        latents = encoder.encode(images).float()
        change = latents.diff(dim=0).abs().sum(0) / max(1, len(latents) - 1)
        features.append(torch.cat((latents.mean(0), change)).cpu())
    return torch.stack(features)


@torch.no_grad()
def _horizon(steps: int, target: Tensor, dreamt: Tensor, copy: Tensor, lpips: Distance | None) -> PictureHorizon:
    measures: dict[str, Distance | None] = {
        "psnr": psnr,
        "ssim": ssim if min(target.shape[-2:]) >= _LEAST_SSIM_SIDE else None,
        "lpips": lpips,
    }
    found: dict[str, float | None] = {}
    for name, measure in measures.items():
        found[name] = None if measure is None else _in_batches(measure, dreamt, target)
        found[f"{name}_copy"] = None if measure is None else _in_batches(measure, copy, target)
    return PictureHorizon(steps=steps, frames=len(target), **found)  # type: ignore[arg-type]


def _in_batches(measure: Distance, predicted: Tensor, target: Tensor) -> float:
    """The mean of a mean, over so many frames at once that any number fits into memory."""
    batches = list(zip(predicted.split(_BATCH), target.split(_BATCH), strict=True))
    return sum(measure(ours, theirs) * len(ours) for ours, theirs in batches) / len(target)


def _perceptual_distance(device: str | torch.device) -> Distance | None:
    network = cached_perceptual_network()
    if network is None:
        return None
    network.to(device)
    return lambda ours, theirs: float(network(ours.to(device), theirs.to(device)).mean())


def _resized(frames: NDArray[np.uint8], size: tuple[int, ...]) -> NDArray[np.uint8]:
    height, width = size
    return np.stack([resize_frame(frame, height, width) for frame in frames])


def _tensor(frames: list[NDArray[np.uint8]]) -> Tensor:
    """``(B, 3, H, W)`` in [-1, 1]."""
    return frames_to_tensor(torch.from_numpy(np.stack(frames)))
