"""Where a run's numbers can be watched, beside ``metrics.jsonl``: TensorBoard, Weights & Biases or MLflow.

The last two know a run by an id, which ``tracker.json`` in the run's folder keeps, so that a resumed run goes on in the
same tracked run.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import secrets
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from wm_gym.errors import ConfigError, TrainingError, did_you_mean
from wm_gym.files import write_json_atomically
from wm_gym.plain_files import leaves, read_json
from wm_gym.training import TRACKERS

_STATE = "tracker.json"
_PROJECT = "wm_gym"


class Tracked(BaseModel):
    """What the folder of a run knows of its tracked run.

    Attributes:
        id: By which the tracker knows it.
        logged: For each kind of row, the last step that the tracked run has; a resumed run that repeats steps skips
            these.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    logged: dict[str, int]


_TRACKED = TypeAdapter(dict[str, Tracked])


class Tracker(ABC):
    """One run as a tracker shows it."""

    id: str | None = None
    """By which the tracker knows the run; ``None`` where it needs none."""

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float | int]) -> None:
        """Show numbers at a step; those of another kind may have come with a later one before."""

    @abstractmethod
    def close(self, *, failed: bool) -> None:
        """End the run, for now where it ``failed`` or was stopped."""


def check_tracker(name: str) -> None:
    """See that a tracker can be used, before anything is written.

    Raises:
        ConfigError: There is no such tracker, or its package is not installed.
    """
    if name not in TRACKERS:
        raise ConfigError(f"there is no tracker {name!r}{did_you_mean(name, TRACKERS)}; use {', '.join(TRACKERS)}.")
    try:
        package = importlib.import_module(name)
        if getattr(package, "__file__", None) is None:  # a mere folder of this name, as wandb leaves one
            raise ImportError(name)
    except ImportError as error:
        raise ConfigError(
            f"the tracker {name} needs the package {name}; install it with `pip install 'wm_gym[{name}]'`."
        ) from error


class TrackedRun:
    """A run's numbers on their way to a tracker; each step of a kind gets there once.

    Args:
        name: One of :data:`wm_gym.training.TRACKERS`.
        folder: The run's folder.
        rows: What its record held when the run was stopped.
        keep_before: Rows of this step and later ones are repeated.
        step_key: Name of the counter in each row.
        config: The run's settings.

    Raises:
        ConfigError: There is no such tracker, or its package is not installed.
        TrainingError: The tracker refuses, or what the folder knows of it is damaged.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        rows: list[dict[str, Any]],
        *,
        keep_before: int,
        step_key: str,
        config: Mapping[str, Any],
    ) -> None:
        check_tracker(name)
        self._logged: dict[str, int] = {}
        if name == "tensorboard":
            self._tracker: Tracker = _TensorBoard(folder, keep_before)
            return
        file = folder / _STATE
        known = _read_state(file)
        before = known.get(name)
        if before is not None:
            self._logged = dict(before.logged)
            for row in rows:
                kind, step = str(row.get("kind")), row.get(step_key)
                if isinstance(step, int):
                    self._logged[kind] = max(step, self._logged.get(kind, step))
        self._tracker = _WITH_PACKAGES[name](folder, None if before is None else before.id, step_key, config)
        assert self._tracker.id is not None
        known[name] = Tracked(id=self._tracker.id, logged=self._logged)
        write_json_atomically(file, {key: value.model_dump() for key, value in known.items()})

    def log(self, kind: str, step: int, values: Mapping[str, float | int]) -> None:
        """Show the numbers of a row, unless the tracked run has them from before."""
        if step > self._logged.get(kind, -1):
            self._tracker.log(step, {f"{kind}/{name}": value for name, value in values.items()})

    def close(self, *, failed: bool) -> None:
        """End the tracked run, for now where it ``failed`` or was stopped."""
        self._tracker.close(failed=failed)


def _read_state(file: Path) -> dict[str, Tracked]:
    if not file.exists():
        return {}
    remedy = "remove it, and the run is tracked as a new one"
    try:
        return _TRACKED.validate_python(read_json(file, error=TrainingError, remedy=remedy))
    except ValidationError as error:
        raise TrainingError(f"{str(file)!r} is damaged: it does not tell of tracked runs; {remedy}.") from error


class _TensorBoard(Tracker):
    """Files for TensorBoard in ``tensorboard/``; they purge what a resumed run repeats."""

    def __init__(self, folder: Path, keep_before: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=keep_before)

    def log(self, step: int, values: Mapping[str, float | int]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class _WeightsAndBiases(Tracker):
    """A run of Weights & Biases, in the project that ``WANDB_PROJECT`` names, or ``wm_gym``."""

    def __init__(self, folder: Path, id: str | None, step_key: str, config: Mapping[str, Any]) -> None:
        import wandb

        self.id = id or secrets.token_hex(4)
        self._step_key = step_key
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT),
                name=str(folder),
                id=self.id,
                resume="allow",
                dir=str(folder),
                config=dict(config),
                allow_val_change=True,
                settings=wandb.Settings(console="off"),  # progress bars are no log
            )
        except wandb.errors.Error as error:
            raise TrainingError(
                f"Weights & Biases does not take the run ({_sentence(error)}); log in, or set WANDB_MODE=offline."
            ) from error
        # Its own steps must rise, but scores of episodes come when the training beside them has gone on.
        self._run.define_metric(step_key, hidden=True)
        self._run.define_metric("*", step_metric=step_key)

    def log(self, step: int, values: Mapping[str, float | int]) -> None:
        self._run.log({**values, self._step_key: step})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Trackio(Tracker):
    """A run of Trackio in the project ``wm_gym``, on this machine or where its own environment variables say."""

    def __init__(self, folder: Path, id: str | None, step_key: str, config: Mapping[str, Any]) -> None:
        import trackio

        self.id = id or f"{folder.name}-{secrets.token_hex(4)}"
        try:
            with redirect_stdout(io.StringIO()):  # it prints at each start how to look at the run
                self._run = trackio.init(
                    project=_PROJECT, name=self.id, resume="allow", embed=False, config=dict(config)
                )
        except Exception as error:  # of the Hub's client, of the database or its own: it names no class for them
            raise TrainingError(
                f"Trackio does not take the run ({_sentence(error)}); check TRACKIO_DIR, TRACKIO_SPACE_ID and "
                "TRACKIO_SERVER_URL, or track it elsewhere."
            ) from error

    def log(self, step: int, values: Mapping[str, float | int]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        with redirect_stdout(io.StringIO()):
            self._run.finish()


class _MLflow(Tracker):
    """A run on the server that ``MLFLOW_TRACKING_URI`` names, or in ``mlflow.db`` in the run's folder."""

    _EVERY_S = 1.0  # a row by itself would make an update wait for the server
    _MOST = 1000  # metrics that a server takes at once
    _LONGEST = 6000  # characters of a setting

    def __init__(self, folder: Path, id: str | None, step_key: str, config: Mapping[str, Any]) -> None:
        import mlflow
        from mlflow.entities import Param

        self._error: type[Exception] = mlflow.exceptions.MlflowException
        self._waiting: list[Any] = []
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'mlflow.db').absolute()}"
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        self._is_failing = False
        try:
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            if id is None:
                found = self._client.get_experiment_by_name(experiment)
                number = self._client.create_experiment(experiment) if found is None else found.experiment_id
                id = str(self._client.create_run(number, run_name=str(folder)).info.run_id)
                settings = [Param(name, text[: self._LONGEST]) for name, text in _settings(config).items()]
                self._client.log_batch(id, params=settings)
            else:
                self._client.update_run(id, status="RUNNING")
        except self._error as error:
            raise TrainingError(
                f"MLflow does not take the run ({_sentence(error)}); check MLFLOW_TRACKING_URI, which says {uri}."
            ) from error
        self.id = id
        self._sent = time.monotonic()

    def log(self, step: int, values: Mapping[str, float | int]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(name, float(value), now, step) for name, value in values.items()]
        if time.monotonic() - self._sent > self._EVERY_S or len(self._waiting) > self._MOST // 2:
            self._send()

    def close(self, *, failed: bool) -> None:
        self._send()
        self._attempt(lambda: self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED"))

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for first in range(0, len(waiting), self._MOST):
            part = waiting[first : first + self._MOST]
            self._attempt(partial(self._client.log_batch, self.id, metrics=part))
        self._sent = time.monotonic()

    def _attempt(self, call: Callable[[], object]) -> None:
        """Ask something of the server; a training does not end because a server does."""
        if self._is_failing:
            return
        try:
            call()
        except self._error as error:
            self._is_failing = True
            warnings.warn(f"MLflow takes no more of the run, metrics.jsonl goes on: {error}", stacklevel=2)


_WITH_PACKAGES: dict[str, Callable[[Path, str | None, str, Mapping[str, Any]], Tracker]] = {
    "wandb": _WeightsAndBiases,
    "trackio": _Trackio,
    "mlflow": _MLflow,
}


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _settings(values: Mapping[str, Any]) -> dict[str, str]:
    """All settings as ``{"a.b": text}``."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in leaves(values, ".")}
