"""How good a world model's open-loop predictions are, by horizon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_precision, binary_recall
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from wm_gym.clips import Clips
from wm_gym.observation import Observation
from wm_gym.rollouts import dream
from wm_gym.state import LatentState
from wm_gym.vector import Fields
from wm_gym.world_model import WorldModel

IMAGE_HORIZONS = (1, 5, 10, 30)
HELD_STEERING = (-0.3, -0.15, -0.05, 0.0, 0.05, 0.15, 0.3)
HELD_THROTTLE = 0.15
HELD_STEPS = 20


MAX_PSNR_DB = 60.0


def psnr(predicted: Tensor, target: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB over frames ``(B, 3, H, W)`` in [-1, 1].

    A frame counts at most 60 dB: equal frames (a standing car) would otherwise make the mean infinite.
    """
    values = peak_signal_noise_ratio(predicted, target, data_range=(-1.0, 1.0), reduction="none", dim=(1, 2, 3))
    return float(values.clamp(max=MAX_PSNR_DB).mean())


def ssim(predicted: Tensor, target: Tensor) -> float:
    """Mean structural similarity over frames ``(B, 3, H, W)`` in [-1, 1] (Wang et al. 2004, 11x11 Gaussian)."""
    value = structural_similarity_index_measure(predicted, target, data_range=(-1.0, 1.0))
    assert isinstance(value, Tensor)
    return float(value)


def explained_variance(predicted: Tensor, target: Tensor) -> float | None:
    """Share of what differs between pictures that a prediction of them gets right; R2, as statistics calls it.

    0 is what the mean of the pictures has. PSNR does not tell: where they are much alike, such as a road seen from
    behind the wheel, their mean alone is a good picture.

    Args:
        predicted: ``(B, 3, H, W)``.
        target: The same shape.

    Returns:
        At most 1; below 0 for a prediction that is worse than the mean. ``None`` where all pictures are equal.
    """
    target = target.double()
    spread = float((target - target.mean(0)).square().sum())
    return 1 - float((predicted.double() - target).square().sum()) / spread if spread > 0 else None


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Squared Frechet distance of the normal distributions that two sets have (Dowson and Landau 1982).

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``. The trace of the root is the sum of the singular values of the
    product of both centred sets, so that no root is taken of a matrix that few samples leave without full rank.

    Args:
        first: ``(N, D)``, two or more samples.
        second: ``(M, D)``, likewise.

    Returns:
        0 for equal sets, in squared units of the samples. Fewer samples than ``D`` make it larger than it would be with
        more.
    """
    sets = [samples.double() for samples in (first, second)]
    means = [samples.mean(0) for samples in sets]
    centred = [(samples - mean) / (len(samples) - 1) ** 0.5 for samples, mean in zip(sets, means, strict=True)]
    spread = sum(float(samples.square().sum()) for samples in centred)
    shared = float(torch.linalg.svdvals(centred[0] @ centred[1].T).sum())
    return max(0.0, float((means[0] - means[1]).square().sum()) + spread - 2 * shared)


@torch.no_grad()
def open_loop_metrics(
    model: WorldModel, clips: Clips[Tensor], context: int, noise: torch.Generator | None = None
) -> dict[str, Any]:
    """Observe ``context`` frames of each clip, imagine the rest under the recorded actions, and compare.

    Args:
        model: The world model.
        clips: Held-out clips, ``(B, T, ...)`` with ``T > context``.
        context: Frames observed.
        noise: Generator for the noise of stochastic dynamics.

    Returns:
        ``psnr`` and ``ssim`` by horizon (steps ahead), with the same for repeating the last observed frame
        (``psnr_copy``, ``ssim_copy``), ``psnr_reconstruction`` and ``r2_reconstruction`` (:func:`explained_variance`);
        ``vector``, where there is one: see :func:`vector_metrics`; ``reward``: by horizon the mean absolute error and
        the correlation of summed predicted and summed real reward (``None`` where one of them is constant);
        ``termination``: precision, recall (``None`` without any real or predicted termination) and counts, at
        probability one half.
    """
    horizon = clips.actions.shape[1] - context + 1
    horizons = sorted({h for h in IMAGE_HORIZONS if h <= horizon} | {horizon})
    state = _observed(model, clips, context)
    reconstruction = model.decode(state).float()
    last_frame = clips.frames[:, context - 1]
    images: dict[str, dict[int, float]] = {"psnr": {}, "ssim": {}, "psnr_copy": {}, "ssim_copy": {}}
    dreamt = dream(model, state, clips.actions[:, context - 1 :], noise)
    vectors: dict[int, Tensor] = {}
    for ahead in horizons:
        target = clips.frames[:, context + ahead - 1]
        predicted = model.decode(dreamt.states[ahead - 1]).float()
        images["psnr"][ahead] = psnr(predicted, target)
        images["ssim"][ahead] = ssim(predicted, target)
        images["psnr_copy"][ahead] = psnr(last_frame, target)
        images["ssim_copy"][ahead] = ssim(last_frame, target)
        vectors[ahead] = model.decode_vector(dreamt.states[ahead - 1])
    fields = model.simulator.vector
    return {
        **images,
        **({"vector": vector_metrics(fields, vectors, clips.vectors[:, context:])} if fields else {}),
        "psnr_reconstruction": psnr(reconstruction, last_frame),
        "r2_reconstruction": explained_variance(reconstruction, last_frame),
        "reward": reward_metrics(dreamt.rewards, clips.rewards[:, context - 1 :], horizons),
        "termination": termination_metrics(dreamt.continuations, clips.terminated[:, context - 1 :]),
    }


@torch.no_grad()
def held_wheel_metrics(model: WorldModel, clips: Clips[Tensor], context: int, seed: int) -> dict[str, Any]:
    """Observe ``context`` frames of each clip, then dream with wheel and pedals held, and see whether it matters.

    Error on recorded actions does not tell of a dream whose road follows the wheel (docs/experiments.md): driving comes
    out as well as recorded then, whatever the wheel does. The half of the clips counts in which the recorded drivers
    earned most: held far to one side, the wheel leads off the road there.

    Args:
        model: The world model, of a simulator with driving actions.
        clips: Held-out clips, ``(B, T, ...)`` with ``T > context``.
        context: Frames observed.
        seed: Of the noise of stochastic dynamics, which is the same for every angle.

    Returns:
        ``steps``; ``recorded``, what was earned over as many in the same clips; ``returns``, the mean return of the
        dreams by steering, where a reward counts by the probability that its dream has come so far; ``lost``, the share
        of the best one that the two outermost lack: 0 where the wheel does not matter, ``None`` if nothing is earned.
    """
    earned = clips.rewards[:, context - 1 :][:, :HELD_STEPS].sum(1)
    chosen = Clips(*(part[earned >= earned.median()] for part in clips[:5]))
    recorded = chosen.rewards[:, context - 1 :][:, :HELD_STEPS]
    batch, steps = recorded.shape
    state = _observed(model, chosen, context)
    returns: dict[float, float] = {}
    for steering in HELD_STEERING:
        held = torch.tensor((steering, HELD_THROTTLE, 0.0, 1.0), device=recorded.device).expand(batch, steps, 4)
        dreamt = dream(model, state, held, torch.Generator().manual_seed(seed))
        reached = torch.cat((torch.ones_like(recorded[:, :1]), dreamt.continuations[:, :-1].cumprod(1)), 1)
        returns[steering] = float((dreamt.rewards * reached).sum(1).mean())
    best, outermost = max(returns.values()), (returns[HELD_STEERING[0]] + returns[HELD_STEERING[-1]]) / 2
    return {
        "steps": steps,
        "recorded": float(recorded.sum(1).mean()),
        "returns": returns,
        "lost": 1 - outermost / best if best > 0 else None,
    }


def _observed(model: WorldModel, clips: Clips[Tensor], context: int) -> LatentState:
    """The states ``(B, ...)`` after the first ``context`` frames of the clips."""
    batch = len(clips.frames)
    seen = Observation(clips.frames[:, :context], clips.vectors[:, :context])
    states = model.filter(model.encode(seen), clips.actions[:, : context - 1]).states  # (context * B, ...)
    return LatentState(states.latent[-batch:], states.memory[-batch:])


def vector_metrics(fields: Fields, predicted: Mapping[int, Tensor], real: Tensor) -> dict[str, dict[int, float]]:
    """By field and horizon the mean absolute error in the field's unit, or the share of right classes.

    Args:
        fields: Of the vector.
        predicted: Vectors ``(B, V)`` by horizon.
        real: ``(B, K, V)``, recorded; entry ``h - 1`` belongs to horizon ``h``.
    """
    found: dict[str, dict[int, float]] = {}
    for place, field in enumerate(fields):
        for ahead, vectors in predicted.items():
            ours, theirs = vectors[:, place], real[:, ahead - 1, place]
            value = (ours == theirs).float().mean() if field.classes else (ours - theirs).abs().mean()
            found.setdefault(field.name, {})[ahead] = float(value)
    return found


def reward_metrics(predicted: Tensor, real: Tensor, horizons: list[int]) -> dict[str, dict[int, float | None]]:
    """Error and correlation of the summed reward over the first ``h`` steps, for each ``h`` of ``horizons``.

    Args:
        predicted: ``(B, K)`` predicted rewards.
        real: ``(B, K)`` recorded rewards.
        horizons: Numbers of steps, at most ``K``.
    """
    absolute_error: dict[int, float | None] = {}
    correlation: dict[int, float | None] = {}
    for steps in horizons:
        sums = torch.stack((predicted[:, :steps].sum(1), real[:, :steps].sum(1))).double()
        absolute_error[steps] = float((sums[0] - sums[1]).abs().mean())
        varies = sums.shape[1] > 1 and bool((sums.std(dim=1) > 1e-9).all())
        correlation[steps] = float(torch.corrcoef(sums)[0, 1]) if varies else None
    return {"absolute_error": absolute_error, "correlation": correlation}


def uncertainty_metrics(sigma: Tensor, error: Tensor, horizons: Sequence[int]) -> dict[str, dict[int, float | None]]:
    """Whether a predicted deviation fits the errors of the summed reward over the first ``h`` steps, for each ``h``.

    Args:
        sigma: ``(B, K)`` predicted standard deviations; column ``h - 1`` belongs to horizon ``h``.
        error: ``(B, K)`` predicted less real sums.
        horizons: Numbers of steps, at most ``K``.

    Returns:
        By horizon ``coverage``, the share of the errors that are within one deviation, and ``auroc``, how well the
        deviation tells the quarter of the largest errors from the others: the probability that it is larger for one of
        them; ``None`` where all errors are equal.
    """
    coverage: dict[int, float | None] = {}
    auroc: dict[int, float | None] = {}
    for steps in horizons:
        deviation, size = sigma[:, steps - 1].double(), error[:, steps - 1].abs().double()
        coverage[steps] = float((size <= deviation).double().mean())
        auroc[steps] = area_under_roc(deviation, size > size.quantile(0.75))
    return {"coverage": coverage, "auroc": auroc}


def area_under_roc(score: Tensor, is_wrong: Tensor) -> float | None:
    """How well a score ``(B,)`` tells which are wrong ``(B,)`` bool: 0.5 by chance; ``None`` where all or none are."""
    if is_wrong.all() or not is_wrong.any():
        return None
    # The ranks as probabilities: torchmetrics takes other numbers for logits, and rounds large ones to one.
    ranks = torch.unique(score.double(), return_inverse=True)[1] / len(score)
    return float(binary_auroc(ranks, is_wrong.long()))


def termination_metrics(continuation: Tensor, terminated: Tensor) -> dict[str, float | int | None]:
    """Precision and recall of predicted terminations (continuation below one half).

    Args:
        continuation: ``(B, K)`` predicted probabilities of going on.
        terminated: ``(B, K)`` bool, recorded.
    """
    predicted = (continuation < 0.5).flatten().long()
    real = terminated.flatten().long()
    return {
        "precision": float(binary_precision(predicted, real)) if predicted.any() else None,
        "recall": float(binary_recall(predicted, real)) if real.any() else None,
        "num_real": int(real.sum()),
        "num_predicted": int(predicted.sum()),
    }
