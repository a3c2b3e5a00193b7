"""Datasets as a world model's training takes them: split by episodes, with the record that identifies them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.download_cache import DownloadCache
from wm_gym.data_collection.datasets.joined import JoinedDataset, Scenes
from wm_gym.data_collection.datasets.window_returns import random_driving
from wm_gym.errors import DatasetError
from wm_gym.simulator import SimulatorSpec

_CACHE_BYTES = 4 << 30


class TrainingData(NamedTuple):
    """What a world model is trained on.

    Attributes:
        simulator: The simulator that the episodes were recorded from.
        train: Training episodes.
        validation: Held-out episodes; ``None`` where the fraction is 0.
        info: Paths, fingerprint and counts; kept with the run, and compared when it is resumed.
        metrics: Measures what a dream can be held against; see
            :func:`~wm_gym.data_collection.datasets.window_returns.random_driving`.
    """

    simulator: SimulatorSpec
    train: JoinedDataset
    validation: JoinedDataset | None
    info: dict[str, Any]
    metrics: Callable[[], dict[str, Any]]


def open_training_data(
    paths: str | Path | Sequence[str | Path],
    validation_fraction: float,
    shares: Sequence[float] | None = None,
    *,
    downloads: DownloadCache | None = None,
    scenes: Scenes | None = None,
) -> TrainingData:
    """Open and split one or several datasets.

    Args:
        paths: The folder or URL of a dataset, or of several of the same simulator.
        validation_fraction: Share of each dataset's episodes held out; 0 holds none out.
        shares: How much of the clips comes from each dataset; see :class:`JoinedDataset`.
        downloads: Where downloaded episodes are kept; see :meth:`Dataset.open`.
        scenes: In what they may differ; see :class:`JoinedDataset`. The first one's simulator is the model's.

    Raises:
        DatasetError: A dataset is missing, damaged, given twice or too small to split, or they do not fit each other.
    """
    folders = [paths] if isinstance(paths, (str, Path)) else list(paths)
    twice = next((folder for number, folder in enumerate(folders) if folder in folders[:number]), None)
    if twice is not None:
        raise DatasetError(f"the dataset {str(twice)!r} is given twice; give each once.")
    cache_bytes = _CACHE_BYTES // len(folders)
    datasets = [Dataset.open(folder, cache_bytes=cache_bytes, downloads=downloads) for folder in folders]
    joined = JoinedDataset(datasets, shares, scenes)
    train, validation = joined, None
    if validation_fraction > 0:
        splits = [dataset.split(validation_fraction) for dataset in joined.datasets]
        train = JoinedDataset([split[0] for split in splits], shares, scenes)
        validation = JoinedDataset([split[1] for split in splits], shares, scenes)
    returns = [header.return_ for header in joined.episodes]
    info = {
        "path": ", ".join(str(dataset.path) for dataset in datasets),
        "fingerprint": joined.fingerprint,
        "num_episodes": joined.num_episodes,
        "num_steps": joined.num_steps,
        "mean_return": sum(returns) / len(returns),
    }
    metrics = partial(random_driving, joined.datasets)
    return TrainingData(joined.datasets[0].metadata.simulator, train, validation, info, metrics)
