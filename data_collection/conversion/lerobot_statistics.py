"""What a LeRobot dataset says of its numbers.

``meta/stats.json``, by which policies normalise, is of all episodes; ``meta/episodes`` says the same of each, from
which LeRobot makes the former anew where it takes episodes out of a dataset.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
_FRAMES_AN_EPISODE = 20


class Statistics:
    """Gathers the numbers of rows, and some of the frames, of one or several episodes."""

    def __init__(self) -> None:
        self._columns: dict[str, list[NDArray[np.float64]]] = {}
        self._frames: dict[str, list[NDArray[np.float64]]] = {}

    def add(self, columns: dict[str, NDArray[Any]]) -> None:
        """Add the rows of an episode: ``(N,)`` or ``(N, size)`` by feature."""
        for name, values in columns.items():
            self._columns.setdefault(name, []).append(values.reshape(len(values), -1).astype(np.float64))

    def add_frames(self, camera: str, frames: NDArray[np.uint8]) -> None:
        """Add frames ``(N, H, W, 3)`` uint8; a few of them, evenly spaced, are enough."""
        chosen = np.unique(np.linspace(0, len(frames) - 1, _FRAMES_AN_EPISODE).round().astype(np.int64))
        levels = np.zeros((3, 256))
        for channel in range(3):
            levels[channel] = np.bincount(frames[chosen, ..., channel].ravel(), minlength=256)
        self._frames.setdefault(camera, []).append(np.array([levels, np.full_like(levels, len(chosen))]))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """For each feature ``min``, ``max``, ``mean``, ``std``, ``count`` and quantiles; of frames from 0 to 1.

        Absent values (NaN) are left out; a feature without any value counts as 0.
        """
        found = {}
        for name, parts in self._columns.items():
            values = np.concatenate(parts)
            entries = [column[np.isfinite(column)] for column in values.T]
            told = [entry if len(entry) else np.zeros(1) for entry in entries]
            found[name] = _described([(entry, np.ones(len(entry))) for entry in told], len(values))
        for camera, counted in self._frames.items():
            levels = np.sum([part[0] for part in counted], axis=0)
            grey = np.arange(256) / 255
            seen = [(grey[weights > 0], weights[weights > 0]) for weights in levels]
            described = _described(seen, int(sum(part[1][0, 0] for part in counted)))
            found[camera] = {
                name: values if name == "count" else [[[value]] for value in values]
                for name, values in described.items()
            }
        return found


def episode_columns(statistics: Statistics) -> dict[str, list[Any]]:
    """The same as columns of ``meta/episodes``: ``"stats/action/mean"`` and so on."""
    return {
        f"stats/{feature}/{name}": values
        for feature, described in statistics.to_dict().items()
        for name, values in described.items()
    }


def _described(entries: list[tuple[NDArray[np.float64], NDArray[np.float64]]], count: int) -> dict[str, list[Any]]:
    """The statistics of values with a weight each, entry by entry."""
    means = [float(np.average(values, weights=weights)) for values, weights in entries]
    spreads = [
        float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))
        for (values, weights), mean in zip(entries, means, strict=True)
    ]
    described: dict[str, list[Any]] = {
        "min": [float(values.min()) for values, _ in entries],
        "max": [float(values.max()) for values, _ in entries],
        "mean": means,
        "std": spreads,
        "count": [count],
    }
    for share in _QUANTILES:
        described[f"q{round(100 * share):02d}"] = [_quantile(values, weights, share) for values, weights in entries]
    return described


def _quantile(values: NDArray[np.float64], weights: NDArray[np.float64], share: float) -> float:
    """The least value that at least a share of the weight lies at or below."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    place = min(int(np.searchsorted(reached, share * reached[-1])), len(values) - 1)
    return float(values[order[place]])
