"""Several datasets of one simulator as one source of training clips."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm_gym.clips import Clips
from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.episode import Episode
from wm_gym.data_collection.datasets.episode_file import EpisodeHeader
from wm_gym.data_collection.datasets.metadata import first_difference
from wm_gym.errors import DatasetError

_SAME_STEP = 0.01  # steps that were measured, as those of recordings, are never quite equal
Scenes = Callable[[str], Collection[str]]
"""Gives, for a simulator's id, the keyword arguments that choose what is met, and not what is observed or paid."""


class JoinedDataset:
    """Datasets side by side: clips are drawn from all of them, uniformly over the start frames of each.

    Positions count through the datasets in the order given.

    Args:
        datasets: At least one.
        shares: How much of the draws each dataset has, relative to each other; ``None`` gives every start frame of all
            datasets the same chance.
        scenes: Gives, for a simulator's id, the keyword arguments in which they may differ; ``None``: in none.

    Raises:
        DatasetError: There are none, or they are of different simulators, or the shares are not one positive number
            for each.
    """

    def __init__(
        self, datasets: Sequence[Dataset], shares: Sequence[float] | None = None, scenes: Scenes | None = None
    ) -> None:
        if not datasets:
            raise DatasetError("there is no dataset to train on; give at least one.")
        scene = scenes(datasets[0].metadata.simulator.id) if scenes and len(datasets) > 1 else ()
        first = _without(datasets[0], scene)
        for dataset in datasets[1:]:
            other = _without(dataset, scene)
            if math.isclose(first["step_s"], other["step_s"], rel_tol=_SAME_STEP):
                other["step_s"] = first["step_s"]
            different = first_difference("", first, other)
            if different:
                raise DatasetError(
                    f"{datasets[0].path} was recorded in another simulator, or with another setting, than "
                    f"{dataset.path}: {different}; datasets that are trained on together must agree."
                )
        if shares is not None and (len(shares) != len(datasets) or min(shares) <= 0):
            raise DatasetError(
                f"the shares {list(shares)} are not one positive number for each of {len(datasets)} datasets."
            )
        self.datasets = list(datasets)
        self.shares = None if shares is None else list(shares)
        self._first_positions = np.cumsum([0, *(dataset.num_episodes for dataset in datasets)])

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the contents; for one dataset they are its own."""
        if len(self.datasets) == 1:
            return self.datasets[0].fingerprint
        names = " ".join(dataset.fingerprint for dataset in self.datasets)
        return hashlib.sha256(names.encode()).hexdigest()[:16]

    @property
    def num_episodes(self) -> int:
        """Episodes of all datasets."""
        return sum(dataset.num_episodes for dataset in self.datasets)

    @property
    def episodes(self) -> list[EpisodeHeader]:
        """What is known of the episodes of all datasets, by position."""
        return [header for dataset in self.datasets for header in dataset.episodes]

    def read_episode(self, position: int) -> Episode:
        """The whole episode at a position; raises as :meth:`Dataset.read_episode`."""
        index = int(np.searchsorted(self._first_positions, position, side="right")) - 1
        return self.datasets[index].read_episode(position - int(self._first_positions[index]))

    @property
    def num_steps(self) -> int:
        """Steps of all datasets."""
        return sum(dataset.num_steps for dataset in self.datasets)

    def episode_lengths(self) -> NDArray[np.int64]:
        """Steps of each episode, by position: ``(E,)`` int64."""
        return np.concatenate([dataset.episode_lengths() for dataset in self.datasets])

    def draw_clips(self, rng: np.random.Generator, batch_size: int, length: int) -> NDArray[np.int64]:
        """Draw clips without reading them: ``(B, 2)`` int64, the position of the episode and the first frame in it.

        With one dataset the draws are those of :meth:`Dataset.draw_clips`.

        Raises:
            DatasetError: No episode is long enough.
        """
        counts = np.array([dataset.num_clips(length) for dataset in self.datasets], np.float64)
        if len(self.datasets) == 1 or counts.sum() == 0:
            return self.datasets[0].draw_clips(rng, batch_size, length)  # says what is wrong where no clip is left
        weights = counts if self.shares is None else np.where(counts > 0, self.shares, 0.0)
        owners = rng.choice(len(counts), size=batch_size, p=weights / weights.sum())
        draws = np.empty((batch_size, 2), np.int64)
        for index, dataset in enumerate(self.datasets):
            rows = np.flatnonzero(owners == index)
            if len(rows):
                draws[rows] = dataset.draw_clips(rng, len(rows), length)
                draws[rows, 0] += self._first_positions[index]
        return draws

    def read_clips(self, draws: NDArray[np.int64], length: int) -> Clips[NDArray[Any]]:
        """Read the clips of ``length`` frames that :meth:`draw_clips` drew.

        Raises:
            DatasetError: A file is damaged.
        """
        if len(self.datasets) == 1:
            return self.datasets[0].read_clips(draws, length)
        owners = np.searchsorted(self._first_positions, draws[:, 0], side="right") - 1
        rows = [np.flatnonzero(owners == index) for index in range(len(self.datasets))]
        parts = [
            dataset.read_clips(draws[own] - [first, 0], length)
            for dataset, own, first in zip(self.datasets, rows, self._first_positions[:-1], strict=True)
            if len(own)
        ]
        back = np.argsort(np.concatenate(rows), kind="stable")
        return Clips(*(np.concatenate(arrays)[back] for arrays in zip(*(part[:5] for part in parts), strict=True)))


def _without(dataset: Dataset, scene: Collection[str]) -> dict[str, Any]:
    """The record of a dataset's simulator without some of its keyword arguments."""
    record = dataset.metadata.simulator.model_dump(mode="json")
    return {**record, "kwargs": {name: value for name, value in record["kwargs"].items() if name not in scene}}
