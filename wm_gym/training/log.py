"""A run's metrics: JSON lines as the record, and a tracker on top of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import BaseModel

from wm_gym.errors import TrainingError
from wm_gym.files import write_text_atomically
from wm_gym.plain_files import NotPlainError, leaves, parse_json, read_text
from wm_gym.training.trackers import TrackedRun

METRICS = "metrics.jsonl"
"""Name of the record in a run's folder."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line cut by a kill is left out.

    Raises:
        TrainingError: It is no text file.
    """
    if not path.exists():
        return []
    rows = []
    for line in read_text(path, error=TrainingError, remedy="remove it, or restore it from a copy").splitlines():
        try:
            row = parse_json(line)
        except NotPlainError:
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
    return rows


def _is_before(step: Any, first: int) -> bool:
    return isinstance(step, int) and step < first


def flatten(values: Mapping[str, Any]) -> dict[str, float | int]:
    """Nested numbers as ``{"a/b": number}``; whatever is not a number is left out."""
    return {
        name: value
        for name, value in leaves(values, "/")
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


class MetricsLog:
    """Appends rows to ``metrics.jsonl`` and mirrors their numbers to a tracker.

    Args:
        folder: The run's folder.
        keep_before: Rows of this step and later ones are dropped first: a resumed run repeats them.
        config: The run's settings, which the tracker shows beside the numbers.
        step_key: Name of the counter in each row.
        track: Where the numbers can be watched: one of :data:`wm_gym.training.TRACKERS`.

    Raises:
        ConfigError: There is no such tracker, or its package is not installed.
        TrainingError: The tracker refuses the run.
    """

    def __init__(
        self,
        folder: Path,
        keep_before: int,
        config: BaseModel,
        *,
        step_key: str = "update",
        track: str = "tensorboard",
    ) -> None:
        self.path = folder / METRICS
        self.step_key = step_key
        rows = read_metrics(self.path)
        self._tracked = TrackedRun(
            track,
            folder,
            rows,
            keep_before=keep_before,
            step_key=step_key,
            config=config.model_dump(mode="json"),
        )
        kept = [row for row in rows if _is_before(row.get(step_key), keep_before)]
        write_text_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one row ``{"kind": kind, step_key: step, **values}``."""
        self._file.write(json.dumps({"kind": kind, self.step_key: step, **values}) + "\n")
        self._file.flush()
        self._tracked.log(kind, step, flatten(values))

    def close(self, *, failed: bool = False) -> None:
        """Close the file, and end the tracked run, for now where it ``failed`` or was stopped."""
        self._file.close()
        self._tracked.close(failed=failed)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)
