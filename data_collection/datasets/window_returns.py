"""What recorded episodes earned in so many steps in a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm_gym.actions import FloatArray
from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.episode_file import read_steps

RANDOM = "random"
"""The behaviour that is looked for."""
WINDOWS = (5, 10, 15, 20, 30, 50, 100)
"""Steps in a row, for :func:`random_driving`."""
_ENOUGH = 50


def window_returns(rewards: FloatArray, steps: int, *, ended: bool) -> NDArray[np.float64]:
    """The return of every ``steps`` successive steps of an episode.

    Args:
        rewards: ``(T,)`` float32.
        steps: Length of a window, at least 1.
        ended: Whether the task ended the episode: nothing more can be earned then, so that its last steps count as
            whole windows however few they are.

    Returns:
        ``(W,)`` float64, empty where the episode is too short.
    """
    values = rewards.astype(np.float64)
    if ended:
        values = np.concatenate((values, np.zeros(steps - 1)))
    if len(values) < steps:
        return np.empty(0)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    return sums[steps:] - sums[:-steps]


def random_driving(datasets: Sequence[Dataset]) -> dict[str, Any]:
    """What random driving earned in the recordings; a dream can be held against it. Frames are not read.

    Returns:
        ``{"random_driving": ...}`` with the number of random ``episodes``, the ``mean_reward`` of a step over all
        drivers, and ``returns``: by the steps of a window the ``mean`` of random driving, and ``high``, which 19 of 20
        windows do not exceed. Lengths of which there are few windows are left out; empty where that is all of them.

    Raises:
        DatasetError: A file is missing or damaged.
    """
    headers = [header for dataset in datasets for header in dataset.episodes]
    episodes = [(read_steps(header)["rewards"], header.end) for header in headers if header.behaviour == RANDOM]
    returns = {}
    for steps in WINDOWS:
        windows = [window_returns(rewards, steps, ended=end == "terminated") for rewards, end in episodes]
        found = np.concatenate([np.empty(0), *windows])
        if len(found) >= _ENOUGH:
            returns[str(steps)] = {"mean": float(np.mean(found)), "high": float(np.quantile(found, 0.95))}
    if not returns:
        return {}
    mean_reward = sum(header.return_ for header in headers) / sum(header.length for header in headers)
    return {"random_driving": {"episodes": len(episodes), "mean_reward": mean_reward, "returns": returns}}
