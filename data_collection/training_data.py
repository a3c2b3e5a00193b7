"""A dataset as a world model's training takes it: split by episodes, with the record that identifies it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from wm_gym.data_collection.dataset import Dataset
from wm_gym.simulator import SimulatorSpec

_CACHE_BYTES = 4 << 30


class TrainingData(NamedTuple):
    """What a world model is trained on.

    Attributes:
        simulator: The simulator that the episodes were recorded from.
        train: Training episodes.
        validation: Held-out episodes; ``None`` where the fraction is 0.
        info: Path, fingerprint and counts; kept with the run, and compared when it is resumed.
    """

    simulator: SimulatorSpec
    train: Dataset
    validation: Dataset | None
    info: dict[str, Any]


def open_training_data(path: str | Path, validation_fraction: float) -> TrainingData:
    """Open and split a dataset.

    Args:
        path: The dataset's folder.
        validation_fraction: Share of the episodes held out; 0 holds none out.

    Raises:
        DatasetError: The dataset is missing or damaged, or too small to split.
    """
    dataset = Dataset.open(path, cache_bytes=_CACHE_BYTES)
    train, validation = dataset.split(validation_fraction) if validation_fraction > 0 else (dataset, None)
    info = {
        "path": str(path),
        "fingerprint": dataset.fingerprint,
        "num_episodes": dataset.num_episodes,
        "num_steps": dataset.num_steps,
        "mean_return": sum(header.return_ for header in dataset.episodes) / dataset.num_episodes,
    }
    return TrainingData(dataset.metadata.simulator, train, validation, info)
