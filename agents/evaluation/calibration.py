"""Calibration: whether a world model's predicted rewards, ends and errors are as frequent, and as large, as it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wm_gym.actions import FloatArray
from wm_gym.metrics import reward_metrics, termination_metrics, uncertainty_metrics

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


@dataclass(frozen=True)
class UncertaintyCalibration:
    """How a dream's uncertainty relates to its errors over a number of steps.

    Attributes:
        steps: Number of steps.
        mean_deviation: Mean predicted standard deviation of the error of the summed reward.
        mean_error: Mean absolute error of the summed reward.
        coverage: Share of the errors that are within one predicted deviation; 0.68 where both are normal and fit.
        auroc: Probability that the deviation is larger in one of the quarter of windows with the largest errors than in
            another one; ``None`` where all errors are equal.
    """

    steps: int
    mean_deviation: float
    mean_error: float
    coverage: float
    auroc: float | None


def calibrate_uncertainty(
    predicted: FloatArray, real: FloatArray, deviation: FloatArray, horizons: Sequence[int]
) -> list[UncertaintyCalibration]:
    """Compare predicted deviations with the errors of summed rewards, by number of steps; nothing without windows.

    Args:
        predicted: ``(N, K)`` float32, rewards of dreams under the actions really taken.
        real: ``(N, K)`` float32.
        deviation: ``(N, K)`` float32, after each step.
        horizons: Numbers of steps, at most ``K``.
    """
    if len(deviation) == 0:
        return []
    error = np.cumsum(predicted.astype(np.float64) - real, axis=1)
    metrics = uncertainty_metrics(torch.from_numpy(deviation), torch.from_numpy(error), horizons)
    found = []
    for steps in horizons:
        coverage = metrics["coverage"][steps]
        assert coverage is not None
        found.append(
            UncertaintyCalibration(
                steps=steps,
                mean_deviation=_mean(deviation[:, steps - 1]),
                mean_error=_mean(np.abs(error[:, steps - 1])),
                coverage=coverage,
                auroc=metrics["auroc"][steps],
            )
        )
    return found


def calibrate_rewards(predicted: FloatArray, real: FloatArray) -> RewardCalibration | None:
    """Compare predicted with real rewards of single steps.

    Args:
        predicted: ``(T,)`` float32; steps whose prediction is not finite are left out.
        real: ``(T,)`` float32.

    Returns:
        The comparison, or ``None`` without steps.
    """
    finite = np.isfinite(predicted)
    predicted, real = predicted[finite], real[finite]
    steps = len(predicted)
    if steps == 0:
        return None
    borders = np.sort(predicted)[[steps * number // NUM_BINS for number in range(1, NUM_BINS)]]
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


def calibrate_ends(continuation: FloatArray, terminated: NDArray[np.bool_]) -> TerminationCalibration | None:
    """Compare predicted probabilities of going on with the real ends.

    Args:
        continuation: ``(T,)`` float32; steps whose prediction is not finite are left out.
        terminated: ``(T,)`` bool.

    Returns:
        The comparison, or ``None`` without steps.
    """
    finite = np.isfinite(continuation)
    continuation, terminated = continuation[finite], terminated[finite]
    if len(continuation) == 0:
        return None
    end = 1.0 - continuation.astype(np.float64)
    where = np.clip((end * NUM_BINS).astype(np.int64), 0, NUM_BINS - 1)
    bins = [
        EndBin(
            low=float(number / NUM_BINS),
            high=float((number + 1) / NUM_BINS),
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
