"""Calibration: whether a world model's predicted rewards and ends happen as often, and as much, as it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wm_gym.actions import FloatArray
from wm_gym.metrics import reward_metrics, termination_metrics

NUM_BINS = 10


@dataclass(frozen=True)
class RewardBin:
    """Steps whose predicted rewards are neighbours.

    Attributes:
        mean_predicted: Mean predicted reward.
        mean_real: Mean real reward.
        count: Number of steps.
    """

    mean_predicted: float
    mean_real: float
    count: int


@dataclass(frozen=True)
class RewardCalibration:
    """How predicted rewards of single steps relate to the real ones.

    Attributes:
        steps: Number of steps.
        absolute_error: Mean absolute difference of predicted and real reward.
        correlation: Of predicted and real reward; ``None`` where one of them is constant.
        expected_calibration_error: Mean over the bins, weighted by their counts, of the absolute difference between
            mean predicted and mean real reward; in units of reward.
        bins: Ten bins of equal counts, from the lowest to the highest predicted reward; fewer where many predictions
            are equal.
    """

    steps: int
    absolute_error: float
    correlation: float | None
    expected_calibration_error: float
    bins: list[RewardBin]


@dataclass(frozen=True)
class EndBin:
    """Steps whose predicted probabilities of an end lie in one interval.

    Attributes:
        low: Lower bound of the probability.
        high: Upper bound.
        mean_predicted: Mean predicted probability.
        frequency: Share of the steps that really ended the episode.
        count: Number of steps.
    """

    low: float
    high: float
    mean_predicted: float
    frequency: float
    count: int


@dataclass(frozen=True)
class TerminationCalibration:
    """How predicted probabilities of an end relate to the real ends.

    Attributes:
        steps: Number of steps.
        num_real: Steps at which the simulator ended the episode.
        num_predicted: Steps at which an end was predicted with a probability above one half.
        precision: Share of the predicted ends that are real; ``None`` where none is predicted.
        recall: Share of the real ends that are predicted; ``None`` where there is none.
        brier: Mean squared difference of the probability and what happened (1 or 0).
        bins: Those of ten equal intervals of the probability that hold steps.
    """

    steps: int
    num_real: int
    num_predicted: int
    precision: float | None
    recall: float | None
    brier: float
    bins: list[EndBin]


def calibrate_rewards(predicted: FloatArray, real: FloatArray, num_bins: int = NUM_BINS) -> RewardCalibration | None:
    """Compare predicted with real rewards of single steps.

    Args:
        predicted: ``(T,)`` float32; steps whose prediction is not finite are left out.
        real: ``(T,)`` float32.
        num_bins: Bins of equal counts.

    Returns:
        The comparison, or ``None`` without steps.
    """
    finite = np.isfinite(predicted)
    predicted, real = predicted[finite], real[finite]
    steps = len(predicted)
    if steps == 0:
        return None
    borders = np.sort(predicted)[[steps * number // num_bins for number in range(1, num_bins)]]
    # Equal predictions belong to one bin: nothing tells their steps apart.
    where = np.searchsorted(np.unique(borders), predicted, side="right")
    bins = [
        RewardBin(_mean(predicted[where == number]), _mean(real[where == number]), int((where == number).sum()))
        for number in np.unique(where)
    ]
    metrics = reward_metrics(torch.from_numpy(predicted)[:, None], torch.from_numpy(real)[:, None], [1])
    error = metrics["absolute_error"][1]
    assert error is not None
    return RewardCalibration(
        steps=steps,
        absolute_error=error,
        correlation=metrics["correlation"][1],
        expected_calibration_error=sum(b.count * abs(b.mean_predicted - b.mean_real) for b in bins) / steps,
        bins=bins,
    )


def calibrate_ends(
    continuation: FloatArray, terminated: NDArray[np.bool_], num_bins: int = NUM_BINS
) -> TerminationCalibration | None:
    """Compare predicted probabilities of going on with the real ends.

    Args:
        continuation: ``(T,)`` float32; steps whose prediction is not finite are left out.
        terminated: ``(T,)`` bool.
        num_bins: Equal intervals of the probability.

    Returns:
        The comparison, or ``None`` without steps.
    """
    finite = np.isfinite(continuation)
    continuation, terminated = continuation[finite], terminated[finite]
    if len(continuation) == 0:
        return None
    end = 1.0 - continuation.astype(np.float64)
    where = np.clip((end * num_bins).astype(np.int64), 0, num_bins - 1)
    bins = [
        EndBin(
            low=float(number / num_bins),
            high=float((number + 1) / num_bins),
            mean_predicted=_mean(end[where == number]),
            frequency=_mean(terminated[where == number]),
            count=int((where == number).sum()),
        )
        for number in np.unique(where)
    ]
    metrics = termination_metrics(torch.from_numpy(continuation), torch.from_numpy(terminated))
    return TerminationCalibration(
        steps=len(end),
        num_real=int(terminated.sum()),
        num_predicted=int((continuation < 0.5).sum()),
        precision=metrics["precision"],
        recall=metrics["recall"],
        brier=_mean(np.square(end - terminated)),
        bins=bins,
    )


def _mean(values: NDArray[Any]) -> float:
    return float(np.mean(values, dtype=np.float64))
