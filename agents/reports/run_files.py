"""What the folder of a run holds, as far as it is there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.bundles.folder import MANIFEST
from wm_gym.agents.evaluation.results_file import SavedEvaluation, read_evaluation, read_result
from wm_gym.agents.evaluation.scorecard import Scorecard
from wm_gym.agents.reports.judgement import JSON_NAME as SCORECARD_NAME
from wm_gym.agents.reports.judgement import read_scorecard
from wm_gym.bundle import MANIFEST as MODEL_MANIFEST
from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.errors import BundleError
from wm_gym.plain_files import read_json, read_yaml
from wm_gym.run_folder import CONFIG, RECORD
from wm_gym.training.log import read_metrics

PARTS = ("model", "agent")
"""Folders of what is trained."""
METRICS = "metrics.jsonl"
_EVALUATION, _JUDGE, _SUMMARY = "evaluation", "judge", "summary.json"
_FILES_OF_A_PART = (METRICS, "metrics.json", RECORD, CONFIG, MODEL_MANIFEST, MANIFEST)
_ORDER = ("agent", "random", "autopilot", "noisy")


class HeldWheel(BaseModel):
    """What :func:`~wm_gym.metrics.held_wheel_metrics` measured of a world model."""

    steps: int
    returns: dict[float, float] = Field(min_length=1)
    lost: float | None = None


class ModelMetrics(BaseModel):
    """What is read of a world model's ``metrics.json``."""

    update: int | None = None
    r2_reconstruction: float | None = None
    held_wheel: HeldWheel | None = None


@dataclass
class Run:
    """What a run's folder holds; whatever is not there is ``None`` or empty.

    ``keep`` says of which update the training keeps the world model.
    """

    folder: Path
    evaluations: dict[str, SavedEvaluation] = field(default_factory=dict)
    data: Dataset | None = None
    model_rows: list[dict[str, Any]] = field(default_factory=list)
    model_metrics: ModelMetrics = field(default_factory=ModelMetrics)
    keep: str = "best"
    agent_rows: list[dict[str, Any]] = field(default_factory=list)
    driver: Driver | None = None
    scorecard: Scorecard | None = None
    summary: dict[str, Any] = field(default_factory=dict)


def holds_a_run(folder: Path) -> bool:
    """Whether there is a world model or an agent in a folder, or a training of one."""
    return any((folder / part / name).exists() for part in PARTS for name in (RECORD, MODEL_MANIFEST, MANIFEST))


def read_record(folder: Path) -> Run:
    """Read the small files of a run; neither its data nor its agent.

    Raises:
        BundleError: One of them is damaged.
        TrainingError: A training's metrics are no text.
    """
    model, agent = folder / "model", folder / "agent"
    metrics_file = model / "metrics.json"
    summary_file, scorecard_file = folder / _SUMMARY, folder / _JUDGE / SCORECARD_NAME
    names = [file.stem for file in _evaluation_files(folder)]
    names.sort(key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    return Run(
        folder=folder,
        evaluations={name: read_evaluation(folder / _EVALUATION / f"{name}.json") for name in names},
        model_rows=read_metrics(model / METRICS),
        model_metrics=read_result(metrics_file, ModelMetrics, "file of a world model's metrics", "train it again")
        if metrics_file.exists()
        else ModelMetrics(),
        keep=_keep_of(model),
        agent_rows=read_metrics(agent / METRICS),
        scorecard=read_scorecard(scorecard_file) if scorecard_file.exists() else None,
        summary=read_json_file(summary_file) if summary_file.exists() else {},
    )


def state_of_record(folder: Path) -> str:
    """A text that changes whenever one of the files does that :func:`read_record` reads; empty where there is none."""
    files = [folder / part / name for part in PARTS for name in _FILES_OF_A_PART]
    files += [*_evaluation_files(folder), folder / _JUDGE / SCORECARD_NAME, folder / _SUMMARY]
    states = []
    for file in files:
        with suppress(OSError):  # not there, or moved away a moment ago
            found = file.stat()
            states.append(f"{file.relative_to(folder)}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}")
    return hashlib.sha256("\n".join(states).encode("utf-8", "surrogateescape")).hexdigest() if states else ""


def _evaluation_files(folder: Path) -> list[Path]:
    return sorted((folder / _EVALUATION).glob("*.json"))


def _keep_of(model: Path) -> str:
    """``training.keep`` of a world model's run."""
    file = model / CONFIG
    training = read_yaml_file(file).get("training") if file.exists() else None
    return str(training.get("keep", "best")) if isinstance(training, Mapping) else "best"


def read_json_file(file: Path) -> dict[str, Any]:
    """A file of a run; raises :class:`~wm_gym.errors.BundleError` where it is damaged."""
    return read_json(file, error=BundleError, remedy="make it again, or remove it")


def read_yaml_file(file: Path) -> dict[str, Any]:
    """The same of one in YAML."""
    return read_yaml(file, error=BundleError, remedy="restore it from a copy")
