"""A training that can be stopped and resumed, as a folder: its settings, its record, and at the end what it has made.

While one process trains in it, no other one may; running again on the same folder with the same settings resumes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from wm_gym.errors import TrainingError
from wm_gym.files import is_free, remove_temporary_files, write_json_atomically, write_text_atomically
from wm_gym.lock import locked_folder
from wm_gym.plain_files import leaves, read_json, read_yaml
from wm_gym.provenance import provenance

RECORD = "run.json"
CONFIG = "run_config.yaml"
CHECKPOINTS = "checkpoints"


class RunFolder:
    """One training in one folder.

    Args:
        path: The folder.
        kind: What kind of run it is, kept in ``run.json``; ``None`` writes no such file, and the settings alone say it.
        config: The resolved settings; those of its class that a folder's file lacks count as their defaults.
        record: What else ``run.json`` keeps; JSON values.
        identity: Which entries of the record must be the same for a run to go on, by names such as
            ``"data.fingerprint"``; each with what the other run is otherwise, as in ``"on other data"``.
        config_name: Name of the file with the settings.
    """

    def __init__(
        self,
        path: str | Path,
        kind: str | None,
        config: BaseModel,
        record: Mapping[str, Any] | None = None,
        *,
        identity: Mapping[str, str] | None = None,
        config_name: str = CONFIG,
    ) -> None:
        self.path = Path(path)
        self.kind = kind
        self.config = config
        self.record = json.loads(json.dumps(record or {}))
        self.identity = dict(identity or {})
        self.checkpoints = self.path / CHECKPOINTS
        self._config_file = self.path / config_name
        self._record_file = self._config_file if kind is None else self.path / RECORD

    @cached_property
    def contents(self) -> dict[str, Any]:
        """What the run is, for its checkpoints (:func:`wm_gym.training.checkpoint.save_checkpoint`).

        It is what the files of the folder say, which keep their contents when a later version has further settings.

        Raises:
            TrainingError: The files are damaged.
        """
        record = {name: value for name, value in self._read_record().items() if name != "provenance"}
        return {**record, "config": self._read(self._config_file)}

    @contextmanager
    def held(self, *, resume: bool = True) -> Iterator[RunFolder]:
        """Keep other processes out; create the folder, or check that it holds this very run.

        Args:
            resume: Whether to go on with a run that is there; otherwise it is refused.

        Raises:
            TrainingError: The folder holds something else, another process trains in it, or it cannot be written;
                nothing is changed.
        """
        with locked_folder(self.path, lambda: self._check(resume), raises=TrainingError):
            for folder in (self.path, self.checkpoints):
                remove_temporary_files(folder)
            if not self._record_file.exists():
                text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
                write_text_atomically(self._config_file, text)
                if self.kind is not None:
                    # It comes last: a folder without it is not taken for a run.
                    write_json_atomically(
                        self._record_file, {"kind": self.kind, **self.record, "provenance": provenance()}
                    )
            yield self

    def install(self, save: Callable[[Path], object], manifest: str) -> None:
        """Let ``save`` write a folder, and move its files in; ``manifest`` comes last: with it, all are there."""
        staged = self.path / ".staged.partial"
        shutil.rmtree(staged, ignore_errors=True)
        save(staged)
        for entry in sorted(staged.iterdir(), key=lambda entry: entry.name == manifest):
            target = self.path / entry.name
            if entry.is_dir():  # a kill between these moves may have left one, and folders replace only empty ones
                shutil.rmtree(target, ignore_errors=True)
            entry.replace(target)
        staged.rmdir()

    def read_metrics(self) -> dict[str, Any]:
        """The figures that were saved with what the training has made."""
        return self._read(self.path / "metrics.json")

    def _check(self, resume: bool) -> None:
        """Refuse a folder that holds something else."""
        free = is_free(self.path, own=(self._config_file.name, CHECKPOINTS))
        if not self._record_file.exists():
            if self.path.exists() and not self.path.is_dir():
                raise TrainingError(f"{str(self.path)!r} is a file; choose another folder.")
            if not free:
                raise TrainingError(
                    f"{str(self.path)!r} is not empty and holds no training run; choose another folder."
                )
            return
        previous = self._read_record()
        if not resume:
            raise TrainingError(f"{str(self.path)!r} holds a training run already; resume it or choose another folder.")
        difference = self._first_difference()
        if difference is not None:
            raise TrainingError(
                f"{str(self.path)!r} holds a run with other settings{difference}; repeat those of its "
                f"{self._config_file.name} to resume it, or choose another folder."
            )
        for name, what in self.identity.items():
            if _look_up(previous, name) != _look_up(self.record, name):
                raise TrainingError(
                    f"{str(self.path)!r} holds a run {what}; give the same one to resume it, or choose another folder."
                )

    def _read_record(self) -> dict[str, Any]:
        if self.kind is None:
            return {}
        record = self._read(self._record_file)
        if record.get("kind") != self.kind:
            raise TrainingError(f"{str(self.path)!r} holds another kind of run; choose another folder.")
        return record

    def _read(self, file: Path) -> dict[str, Any]:
        read = read_yaml if file == self._config_file else read_json
        return read(file, error=TrainingError, remedy="restore it from a copy, or choose another folder")

    def _first_difference(self) -> str | None:
        """The first setting that differs from the file's, as a part of a sentence; ``None`` where all are the same."""
        previous, current = self._read(self._config_file), self.config.model_dump(mode="json")
        with suppress(ValidationError):  # of another version, perhaps; it is compared as it is
            previous = type(self.config).model_validate(previous).model_dump(mode="json")
        if previous == current:
            return None
        for name, new in leaves(current, "."):
            old = _look_up(previous, name)
            if old != new:
                return f" ({name} was {old!r} and is now {new!r})"
        return ""


@contextmanager
def restoring(file: Path) -> Iterator[None]:
    """Let a training take over what was read from the checkpoint ``file``.

    Raises:
        TrainingError: It is of another training.
    """
    try:
        yield
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise TrainingError(
            f"the checkpoint {str(file)!r} does not fit its run; remove the run's folder to start afresh."
        ) from error


def _look_up(values: Any, name: str) -> Any:
    found = values
    for key in name.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
