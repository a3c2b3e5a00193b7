"""Confidence intervals of a mean over few episodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

CONFIDENCE_LEVEL = 0.95
NUM_RESAMPLES = 9999


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % confidence interval of the mean by the percentile bootstrap (Efron and Tibshirani 1993, section 13.3).

    The episodes are drawn again with replacement 9999 times; the interval is the 2.5 to the 97.5 percentile of the
    resampled means. It covers the choice of episodes (tracks) only, not the chance of training.

    Args:
        values: One number for each episode; equal ones give the equal interval.

    Returns:
        Lower and upper bound; ``None`` for fewer than two values, which say nothing about their spread. Equal values
        give an interval of no width.
    """
    if len(values) < 2:
        return None
    if min(values) == max(values):
        return float(values[0]), float(values[0])
    result = stats.bootstrap(
        (np.asarray(values, np.float64),),
        np.mean,
        n_resamples=NUM_RESAMPLES,
        confidence_level=CONFIDENCE_LEVEL,
        method="percentile",
        random_state=np.random.default_rng(0),
        batch=1000,
    )
    interval = result.confidence_interval
    return float(interval.low), float(interval.high)
