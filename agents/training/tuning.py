"""Searching for the settings of an agent by Optuna: many trainings in dreams, judged by episodes in the simulator.

A dream's return says how well a policy does in the dream, and settings that find its mistakes have the best. So every
score that Optuna sees is that of episodes on training seeds (:mod:`wm_gym.agents.training.selection`): those of each
checkpoint decide whether a trial is worth going on with, the best of them is what the trial has come to.

A search is a folder: ``tuning_config.yaml`` (what is searched), ``study.db`` (Optuna's record), ``trial_000``, … (a run
of :mod:`wm_gym.agents.training.dream_training` each), and ``best.yaml`` (the settings of the best trial so far, as far
as they are no defaults). Running again on the same folder goes on with the trial that was stopped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from wm_gym.agents.bundles.folder import load_agent
from wm_gym.agents.policies.config import AgentConfig, make_agent_config
from wm_gym.agents.policies.from_config import resolve
from wm_gym.agents.training.dream_training import Validation, train_agent
from wm_gym.agents.training.selection import DriveSelection
from wm_gym.bundle import read_manifest
from wm_gym.device import resolve_device
from wm_gym.errors import ConfigError, DivergedError, TrainingError, did_you_mean
from wm_gym.files import write_text_atomically
from wm_gym.run_folder import RunFolder
from wm_gym.training.log import METRICS, read_metrics
from wm_gym.training.trackers import check_tracker

BEST = "best.yaml"
_STUDY = "study.db"
_KIND_FILE = "tuning_config.yaml"
_KINDS = ("log", "float", "int", "choice")
_COMMA = re.compile(r",(?![^\[]*\])")  # those within brackets belong to a value


@dataclass(frozen=True)
class Search:
    """The values of one setting that are tried.

    Attributes:
        setting: Its name, as for ``--set``.
        kind: ``"log"``, ``"float"``, ``"int"`` or ``"choice"``.
        low: The least value; none of a choice.
        high: The greatest one, which is tried too.
        choices: The texts of all values of a choice.
    """

    setting: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()

    @property
    def examples(self) -> tuple[str, ...]:
        """Texts of the values at the ends, or of all of a choice."""
        return self.choices or (self.text(self.low), self.text(self.high))

    def suggest(self, trial: Any) -> Any:
        """The value that one of Optuna's trials has for the setting."""
        if self.kind == "choice":
            return trial.suggest_categorical(self.setting, self.choices)
        if self.kind == "int":
            return trial.suggest_int(self.setting, int(self.low), int(self.high))
        return trial.suggest_float(self.setting, self.low, self.high, log=self.kind == "log")

    def text(self, value: Any) -> str:
        """A value as ``--set`` takes it."""
        return str(int(value)) if self.kind == "int" else str(value)


def parse_search(text: str) -> Search:
    """Read ``KEY=log:LOW:HIGH``, ``KEY=float:LOW:HIGH``, ``KEY=int:LOW:HIGH`` or ``KEY=choice:A,B,...``.

    Raises:
        ConfigError: It is none of them, or the values make no sense; whether there is such a setting is not looked at.
    """
    setting, separator, values = text.partition("=")
    kind, colon, rest = values.partition(":")
    setting = setting.strip()
    if not (setting and separator and colon):
        raise ConfigError(
            f"--search {text!r} is not of the form KEY=KIND:VALUES, as in --search learning_rate=log:1e-5:1e-3."
        )
    if kind not in _KINDS:
        raise ConfigError(
            f"--search {text!r}: there is no kind {kind!r}{did_you_mean(kind, _KINDS)}; use {', '.join(_KINDS)}."
        )
    if kind == "choice":
        choices = tuple(choice.strip() for choice in _COMMA.split(rest))
        if len(choices) < 2 or not all(choices) or len(set(choices)) < len(choices):
            raise ConfigError(f"--search {text!r} needs at least two different values, as in choice:0,0.001,0.01.")
        return Search(setting, kind, choices=choices)
    numbers = rest.split(":")
    try:
        low, high = (float(int(number)) if kind == "int" else float(number) for number in numbers)
    except (OverflowError, ValueError):
        what = "whole numbers" if kind == "int" else "numbers"
        raise ConfigError(f"--search {text!r} needs two {what}, as in {kind}:LOW:HIGH.") from None
    if not (math.isfinite(low) and math.isfinite(high)) or low >= high:
        raise ConfigError(f"--search {text!r}: the first number must be smaller than the second one.")
    if kind == "log" and low <= 0:
        raise ConfigError(f"--search {text!r}: a logarithmic scale needs numbers above 0; use float, or a LOW above 0.")
    return Search(setting, kind, low, high)


def check_search(model: str | Path, texts: Sequence[str], config: AgentConfig) -> tuple[Search, ...]:
    """Read what is to be searched, and see that every setting is one of the agent's, with values that it may have.

    Args:
        model: The world model of the agent.
        texts: As for :func:`parse_search`.
        config: The settings that are not searched.

    Raises:
        ConfigError: One is not, none is given, or Optuna is not installed.
        BundleError: There is no such world model.
    """
    _import_optuna()
    searches = tuple(parse_search(text) for text in texts)
    names = [search.setting for search in searches]
    if not names:
        raise ConfigError("there is nothing to search; give --search, as in --search learning_rate=log:1e-5:1e-3.")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--search names {name!r} twice; give it once.")
        if name in {"seed", "validate_every"}:
            raise ConfigError(f"--search {name}: trials with different values cannot be compared; use --set for it.")
    action = read_manifest(model)[1].simulator.action
    for search in searches:
        for value in search.examples:
            resolve(_changed(config, [f"{search.setting}={value}"]), action)
    return searches


def _changed(config: AgentConfig, changes: Iterable[str]) -> AgentConfig:
    return make_agent_config(config.model_dump(), changes)


@dataclass(frozen=True)
class Trial:
    """One training of a search.

    Attributes:
        number: From 0 on.
        path: Its folder.
        settings: ``KEY=VALUE`` of what was searched.
        outcome: ``"complete"``, ``"pruned"`` (its scores were below the median of the others') or ``"failed"`` (the
            settings do not fit each other, or the training diverged).
        score: Best score of its checkpoints; ``None`` where there is none.
        why: What a failed one said.
    """

    number: int
    path: Path
    settings: tuple[str, ...]
    outcome: str
    score: float | None
    why: str


@dataclass(frozen=True)
class TuningSummary:
    """What a search has come to.

    Attributes:
        path: Its folder.
        trials: Those that have ended.
        best: The complete one with the best score.
    """

    path: Path
    trials: tuple[Trial, ...]
    best: Trial


class _Settings(BaseModel):
    """All that the trials in a folder follow from; the contents of its file."""

    model: str
    searches: tuple[str, ...]
    agent: AgentConfig
    drives: int | None
    initial: str | None


def tune(
    model: str | Path,
    *,
    out: str | Path,
    trials: int,
    searches: Sequence[str],
    validation: Validation | DriveSelection,
    config: AgentConfig | None = None,
    initial: str | Path | None = None,
    spared: int = 5,
    device: str = "auto",
    progress: bool = True,
    say: Callable[[str], None] = print,
    track: str = "tensorboard",
) -> TuningSummary:
    """Train agents with settings that Optuna chooses, until so many trials have ended.

    Args:
        model: A world model's folder, or ``"bundled"``.
        out: Folder of the search.
        trials: How many are to end in all, those of earlier calls included.
        searches: As for :func:`parse_search`.
        validation: Scores each checkpoint, as for :func:`~wm_gym.agents.training.dream_training.train_agent`.
        config: The settings that are not searched; all trials have the same seed.
        initial: Folder of an agent whose policy every trial goes on from; ``None`` begins anew.
        spared: So many trials end before one is stopped early.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ….
        progress: Show progress bars.
        say: Where to print a line on each trial.
        track: Where the numbers of each trial can be watched: one of :data:`wm_gym.training.TRACKERS`.

    Raises:
        ConfigError: Optuna is not installed, the tracker cannot be used, or a setting or its values are wrong.
        BundleError: The world model or ``initial`` cannot be used.
        TrainingError: The folder holds something else or another search, its record is damaged, or no trial has come to
            a score.
        KeyboardInterrupt: The user stopped it; the trial is gone on with by the next call.

    Side effects: writes ``out``, and all that :func:`~wm_gym.agents.training.dream_training.train_agent` does.
    """
    check_tracker(track)
    if trials < 1:
        raise ConfigError(f"{trials} trials find nothing; give at least 1.")
    base = config or AgentConfig()
    parsed = check_search(model, searches, base)
    resolve_device(device)
    if initial is not None:
        load_agent(initial, "cpu")  # what is wrong with it is said early
    settings = _Settings(
        model=read_manifest(model)[1].fingerprint,
        searches=tuple(searches),
        agent=base,
        drives=validation.episodes if isinstance(validation, DriveSelection) else None,
        initial=None if initial is None else str(initial),
    )
    with RunFolder(out, None, settings, config_name=_KIND_FILE).held() as folder:
        study = _Study(folder.path, base, parsed, spared)
        while len(study.trials) < trials:
            trial, path, changes = study.next_trial()
            say(f"trial {trial.number}, of {trials}: {' '.join(changes)}")
            try:
                chosen = _changed(base, changes)
                summary = train_agent(
                    model,
                    out=path,
                    config=chosen,
                    device=device,
                    initial=initial,
                    progress=progress,
                    on_checkpoint=validation,
                    on_score=study.reporter(trial, path, chosen.steps),
                    track=track,
                )
                study.end(trial, summary.score)
            except _Pruned:
                study.end(trial, None, was_pruned=True)
            except (ConfigError, DivergedError) as error:  # of these settings; others would end the next trial, too
                study.end(trial, None, why=str(error))
            say(study.describe(trial.number))
        best = study.best
        if best is None:
            raise TrainingError(
                f"none of the {trials} trials in {str(folder.path)!r} came to a score; the last one said: "
                f"{study.trials[-1].why}"
            )
        return TuningSummary(folder.path, study.trials, best)


class _Pruned(Exception):  # noqa: N818
    """A trial is not worth going on with."""


class _Study:
    """Optuna's record of a search."""

    def __init__(self, folder: Path, base: AgentConfig, searches: tuple[Search, ...], spared: int) -> None:
        self._optuna = optuna = _import_optuna()
        self._folder, self._base, self._searches = folder, base, searches
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        from sqlalchemy.exc import SQLAlchemyError  # Optuna's own way to a database

        file = folder / _STUDY
        try:
            self._study = optuna.create_study(
                storage=f"sqlite:///{file.absolute()}",
                study_name="wm_gym",
                direction="maximize",
                pruner=optuna.pruners.MedianPruner(n_startup_trials=spared),
                load_if_exists=True,
            )
            _ = self.trials
        except (SQLAlchemyError, optuna.exceptions.OptunaError, KeyError, ValueError) as error:
            raise TrainingError(
                f"{str(file)!r} cannot be read ({str(error).partition(chr(10))[0]}); restore it from a copy, or choose "
                "another folder."
            ) from error

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Those that have ended."""
        return tuple(
            Trial(
                trial.number,
                self._path(trial.number),
                tuple(f"{search.setting}={search.text(trial.params[search.setting])}" for search in self._searches),
                {"COMPLETE": "complete", "PRUNED": "pruned"}.get(trial.state.name, "failed"),
                max(trial.intermediate_values.values(), default=None) if trial.value is None else trial.value,
                trial.user_attrs.get("why", ""),
            )
            for trial in self._study.trials
            if trial.state.is_finished()
        )

    @property
    def best(self) -> Trial | None:
        """The complete one with the best score; ``None`` where none is complete."""
        complete = [trial for trial in self.trials if trial.outcome == "complete"]
        return max(complete, key=lambda trial: trial.score or 0.0, default=None)

    def next_trial(self) -> tuple[Any, Path, tuple[str, ...]]:
        """The trial that was stopped, or a new one; its folder and settings.

        What is tried does not depend on how often the search was stopped.
        """
        optuna, study = self._optuna, self._study
        stopped = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        number = stopped[0].number if stopped else len(study.trials)
        study.sampler = optuna.samplers.TPESampler(seed=(self._base.seed + number) % 2**32)
        trial = optuna.trial.Trial(study, stopped[0]._trial_id) if stopped else study.ask()
        changes = tuple(f"{search.setting}={search.text(search.suggest(trial))}" for search in self._searches)
        return trial, self._path(number), changes

    def reporter(self, trial: Any, path: Path, steps: int) -> Callable[[int, float], None]:
        """What tells Optuna the score of each checkpoint, and ends a trial that is worse than the others' median."""

        def report(dream_steps: int, score: float) -> None:
            rows = read_metrics(path / METRICS)
            # Trials are compared checkpoint by checkpoint: settings of the rollouts move the steps at which they come.
            number = len({row["dream_steps"] for row in rows if row.get("kind") == "validation"})
            if number not in self._study.trials[trial.number].intermediate_values:  # a resumed training repeats some
                trial.report(score, number)
            if dream_steps < steps and trial.should_prune():
                raise _Pruned

        return report

    def end(self, trial: Any, score: float | None, *, was_pruned: bool = False, why: str = "it has no score.") -> None:
        """Record what a trial has come to, and the best settings so far."""
        states = self._optuna.trial.TrialState
        if was_pruned:
            self._study.tell(trial, state=states.PRUNED)
        elif score is None or not math.isfinite(score):
            trial.set_user_attr("why", why)
            self._study.tell(trial, state=states.FAIL)
        else:
            self._study.tell(trial, score)
        best = self.best
        if best is not None:
            values = _changed(self._base, best.settings).model_dump(mode="json", exclude_defaults=True)
            write_text_atomically(self._folder / BEST, yaml.safe_dump(values, sort_keys=False))

    def describe(self, number: int) -> str:
        """A line on a trial that has ended."""
        trial = next(trial for trial in self.trials if trial.number == number)
        best = self.best
        so_far = "" if best is None else f"; the best is trial {best.number} with {best.score:.1f}"
        if trial.outcome == "failed":
            return f"  failed: {trial.why.rstrip('.')}{so_far}"
        return f"  {trial.outcome}, best mean return of its episodes {trial.score:.1f}{so_far}"

    def _path(self, number: int) -> Path:
        return self._folder / f"trial_{number:03d}"


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("a search needs Optuna; install it with `pip install 'wm_gym[tune]'`.") from error
    return optuna
