"""Checkpoints of a training run: tensors and plain values only, written in one move."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import torch

from wm_gym.errors import TrainingError
from wm_gym.files import write_atomically


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint in one move."""
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values are accepted, so reading runs no code from it.

    Raises:
        TrainingError: The file is missing, damaged or holds anything else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise TrainingError(
            f"the checkpoint {str(path)!r} cannot be read; remove the run's folder to start afresh."
        ) from error
    if not isinstance(state, dict):
        raise TrainingError(f"{str(path)!r} is no checkpoint of wm_gym; remove it to start afresh.")
    return state


class CheckpointClock:
    """Says when the next checkpoint is due, such that writing them costs at most a set share of the time.

    Small models are therefore saved every few updates, large ones every few minutes.

    Args:
        overhead: Share of the time that may go into writing, for example 0.05.
    """

    def __init__(self, overhead: float) -> None:
        self.overhead = overhead
        self._interval_s = 0.0
        self._last_end = time.monotonic()

    def is_due(self) -> bool:
        """Whether enough time has passed since the last checkpoint."""
        return time.monotonic() - self._last_end >= self._interval_s

    def record(self, started: float) -> None:
        """Note that a checkpoint begun at ``started`` (``time.monotonic()``) has been written."""
        self._last_end = time.monotonic()
        self._interval_s = (self._last_end - started) / self.overhead
