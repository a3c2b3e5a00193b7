"""How well predicted returns of several policies agree with real ones: correlation and the order of policies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from wm_gym.errors import ConfigError

_EQUAL = 1e-12  # of the larger value's size: less is rounding


def pearson(predicted: Sequence[float], real: Sequence[float]) -> float | None:
    """Pearson's correlation coefficient.

    Args:
        predicted: One number for each policy.
        real: One for each, too.

    Returns:
        -1 to 1; ``None`` where one of the two does not vary, or there are fewer than two policies.

    Raises:
        ConfigError: The two have different lengths, or a number is not finite.
    """
    ours, theirs = _arrays(predicted, real)
    if len(ours) < 2 or _is_constant(ours) or _is_constant(theirs):
        return None
    return float(np.clip(np.corrcoef(ours, theirs)[0, 1], -1.0, 1.0))


def spearman(predicted: Sequence[float], real: Sequence[float]) -> float | None:
    """Spearman's rank correlation: Pearson's of the ranks, equal values sharing their mean rank.

    Arguments, returns and errors as for :func:`pearson`.
    """
    ours, theirs = _arrays(predicted, real)
    return pearson(stats.rankdata(ours).tolist(), stats.rankdata(theirs).tolist())


def mean_maximum_rank_violation(predicted: Sequence[float], real: Sequence[float]) -> float:
    """The mean maximum rank violation (MMRV) of Li et al. 2024, "Evaluating Real-World Robot Manipulation Policies in
    Simulation" (SIMPLER, https://arxiv.org/abs/2405.05941).

    Where a prediction puts two policies in the wrong order, the violation is the difference of their real returns. Of
    each policy the largest violation counts, and the mean over the policies is taken.

    Args:
        predicted: One number for each policy.
        real: One for each, too.

    Returns:
        0 for the right order, up to the range of ``real``, in its unit; 0 for fewer than two policies.

    Raises:
        ConfigError: As for :func:`pearson`.
    """  # noqa: D205
    ours, theirs = _arrays(predicted, real)
    if len(ours) < 2:
        return 0.0
    is_wrong = (ours[:, None] < ours) != (theirs[:, None] < theirs)
    violations = np.where(is_wrong, np.abs(theirs[:, None] - theirs), 0.0)
    return float(violations.max(axis=1).mean())


def _arrays(predicted: Sequence[float], real: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    ours, theirs = np.asarray(predicted, np.float64), np.asarray(real, np.float64)
    if ours.shape != theirs.shape or ours.ndim != 1 or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise ConfigError(
            f"predicted and real returns need one finite number for each policy, but {ours.shape} and {theirs.shape} "
            "were given; leave out what has none."
        )
    return ours, theirs


def _is_constant(values: NDArray[np.float64]) -> bool:
    return bool(np.ptp(values) <= _EQUAL * max(1.0, float(np.abs(values).max())))
