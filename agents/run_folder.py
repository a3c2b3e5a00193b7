"""The folder of a training that becomes an agent: its record, the check that it is this very run, the last move."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml
from pydantic import BaseModel

from wm_gym.agents.agent_bundle import MANIFEST, read_agent_manifest
from wm_gym.errors import TrainingError
from wm_gym.files import write_json_atomically, write_text_atomically
from wm_gym.provenance import provenance

_RECORD = "run.json"
_CONFIG = "run_config.yaml"
_STAGED = ".agent"


class RunFolder:
    """One training in one folder: ``run.json``, ``run_config.yaml``, and at the end the agent's own files.

    Args:
        path: The folder.
        kind: What kind of run it is, kept in ``run.json``.
        config: The resolved settings.
        record: What else must be the same for a run to go on, by names that read well in a sentence such as
            ``"simulator"``; JSON values.
    """

    def __init__(self, path: Path, kind: str, config: BaseModel, record: Mapping[str, Any]) -> None:
        self.path = path
        self.kind = kind
        self.config = config
        self.record = json.loads(json.dumps(record))

    def prepare(self) -> bool:
        """Create the folder, or check that it holds this very run.

        Returns:
            Whether the run is finished.

        Raises:
            TrainingError: The folder holds something else; nothing is changed.
            BundleError: The finished agent in it is damaged.
        """
        record_file, config_file = self.path / _RECORD, self.path / _CONFIG
        config_text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        if not record_file.exists():
            self._check_free(config_file)
            self.path.mkdir(parents=True, exist_ok=True)
            # run.json comes last: a folder without it is not taken for a run.
            write_text_atomically(config_file, config_text)
            write_json_atomically(record_file, {"kind": self.kind, **self.record, "provenance": provenance()})
            return False
        previous = read_record(record_file, self.kind)
        if not config_file.exists() or config_file.read_text(encoding="utf-8") != config_text:
            raise TrainingError(
                f"{str(self.path)!r} holds a run with other settings{first_difference(self.config, config_file)}; "
                f"repeat those of its {_CONFIG}, or choose another folder."
            )
        for name, value in self.record.items():
            if previous.get(name) != value:
                raise TrainingError(
                    f"{str(self.path)!r} holds a run with another {name.replace('_', ' ')}; give the same one to go "
                    "on with it, or choose another folder."
                )
        if (self.path / MANIFEST).exists():
            read_agent_manifest(self.path)
            return True
        return False

    def install(self, save: Callable[[Path], object]) -> None:
        """As :func:`install_agent`, into this folder."""
        install_agent(self.path, save)

    def read_metrics(self) -> dict[str, Any]:
        """As :func:`read_metrics_of`, of this folder."""
        return read_metrics_of(self.path)

    def _check_free(self, config_file: Path) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise TrainingError(f"{str(self.path)!r} is a file; choose another folder.")
        # A kill may have left the settings without the record.
        if self.path.exists() and any(entry != config_file for entry in self.path.iterdir()):
            raise TrainingError(f"{str(self.path)!r} is not empty and holds no training run; choose another folder.")


class Restorable(Protocol):
    """A trainer that goes on from a checkpoint."""

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Take over the state; what does not fit raises one of Python's own errors."""
        ...


def restore(trainer: Restorable, snapshot: dict[str, Any], file: Path) -> None:
    """Let a trainer go on from the checkpoint that was read from ``file``.

    Raises:
        TrainingError: It is of another training.
    """
    try:
        trainer.restore(snapshot)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise TrainingError(
            f"the checkpoint {str(file)!r} does not fit its run; remove the run's folder to start afresh."
        ) from error


def install_agent(folder: Path, save: Callable[[Path], object]) -> None:
    """Let ``save`` write the agent beside its run, and move its files in; the manifest comes last."""
    staged = folder / _STAGED
    shutil.rmtree(staged, ignore_errors=True)
    save(staged)
    for entry in sorted(staged.iterdir(), key=lambda entry: entry.name == MANIFEST):
        target = folder / entry.name
        if entry.is_dir():  # a kill between these moves may have left one, and folders replace only empty ones
            shutil.rmtree(target, ignore_errors=True)
        entry.replace(target)
    staged.rmdir()


def read_metrics_of(folder: Path) -> dict[str, Any]:
    """The figures that were saved with the agent."""
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def read_record(file: Path, kind: str) -> dict[str, Any]:
    """The contents of a run's ``run.json``.

    Raises:
        TrainingError: It is damaged, or of another kind of run.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{str(file)!r} is damaged: it is no readable JSON; choose another folder.") from error
    if not isinstance(record, dict) or record.get("kind") != kind:
        raise TrainingError(f"{str(file.parent)!r} holds another kind of run; choose another folder.")
    return record


def first_difference(config: BaseModel, config_file: Path) -> str:
    """The first setting that differs from a run's file, as a part of a sentence; empty where none is found."""
    try:
        previous = yaml.safe_load(config_file.read_text(encoding="utf-8"))
        current = config.model_dump(mode="json")
        name = next(key for key, value in current.items() if previous.get(key) != value)
    except (OSError, yaml.YAMLError, AttributeError, StopIteration):
        return ""
    return f" ({name} was {previous.get(name)!r} and is now {current[name]!r})"
