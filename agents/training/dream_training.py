"""Training an agent in imagination: every transition comes from a world model, none from the simulator.

A run is a folder: ``run_config.yaml`` (the resolved configuration), ``run.json`` (world model, versions),
``metrics.jsonl`` (the record), ``tensorboard/``, ``checkpoints/``, and at the end the agent's own files, so that the
folder is what :meth:`Driver.load` reads. ``agent.yaml`` comes last: a run that has it is finished. Running again on the
same folder resumes.

Training goes in rounds. All random numbers of a round follow from the seed and the dream steps before it, and the
rounds of on-policy algorithms begin new dreams, so that a resumed run equals an uninterrupted one. (With ``n_steps`` no
multiple of ``horizon``, and for off-policy algorithms, dreams go on from round to round, and a resumed run begins new
ones: it continues the training, but not to the last digit.)
"""

from __future__ import annotations

import copy
import hashlib
import math
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from wm_gym.agents.alarm import DreamReturnAlarm
from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.bundles.folder import (
    MANIFEST,
    AgentManifest,
    LoadedAgent,
    is_finished_agent,
    load_agent,
    save_agent,
)
from wm_gym.agents.dream_check import check_dream
from wm_gym.agents.learning import Snapshot
from wm_gym.agents.policies.config import AgentConfig, make_agent_config
from wm_gym.agents.policies.from_config import resolve
from wm_gym.agents.training.imagination import ImaginationTrainer
from wm_gym.agents.training.selection import DriveSelection
from wm_gym.device import resolve_device
from wm_gym.envs.dream_model import resolve_model, start_states_of
from wm_gym.envs.simulators import return_ceiling
from wm_gym.errors import BundleError, TrainingError, WMGymError
from wm_gym.model_check import warn_of_faults
from wm_gym.precision import single_precision
from wm_gym.run_folder import RunFolder, restoring
from wm_gym.state import LatentState
from wm_gym.tensor_files import load_parameters
from wm_gym.training.checkpoint import CheckpointClock, load_checkpoint, save_checkpoint
from wm_gym.training.log import MetricsLog, read_metrics
from wm_gym.training.trackers import check_tracker
from wm_gym.world_model import WorldModel

_KIND = "wm_gym.agent_run"
_IDENTITY = {
    "model_fingerprint": "in another world model",
    "start_states": "from other start states",
    "initial": "that began from another policy",
}
_VALIDATIONS = 10

Validation = Callable[[Driver], float | None]
"""Scores the agent as it is, higher is better; ``None`` gives no opinion. Drive on training seeds only."""


@dataclass(frozen=True)
class TrainingSummary:
    """What a training has come to.

    Attributes:
        path: The agent's folder.
        dream_steps: Dream steps in all.
        dream_return: Mean unscaled return of the last dreams, or ``None`` where none ended.
        score: Best score of the validation episodes, or ``None`` without them.
        saved_at_dream_steps: Dream steps of the policy that is saved; ``None`` where an old run does not tell.
        was_finished: Whether the folder held the finished agent already.
        wall_s: Seconds that this call took.
    """

    path: Path
    dream_steps: int
    dream_return: float | None
    score: float | None
    saved_at_dream_steps: int | None
    was_finished: bool
    wall_s: float


@single_precision()
def train_agent(
    model: str | Path | WorldModel,
    *,
    out: str | Path,
    algo: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    config: AgentConfig | None = None,
    device: str = "auto",
    start_states: LatentState | None = None,
    initial: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    on_checkpoint: Validation | DriveSelection | None = None,
    on_score: Callable[[int, float], object] | None = None,
    best_recorded: float | None = None,
    track: str = "tensorboard",
) -> TrainingSummary:
    """Train an agent in the dreams of a world model and write it as a folder.

    Args:
        model: A model's folder, ``"bundled"``, or a model itself.
        out: The run's folder, which becomes the agent.
        algo: Overrides ``config.algo``; ``"ppo"`` if neither is given.
        steps: Overrides ``config.steps``: dream steps in all.
        seed: Overrides ``config.seed``.
        config: All settings.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, …; for a model itself ``"auto"`` is wherever it is.
        start_states: States to dream from; ``None`` for the model's own.
        initial: Folder of an agent whose policy training goes on from; ``None`` begins anew.
        resume: Whether to go on with an unfinished run; otherwise a folder that holds one is refused.
        progress: Show a progress bar.
        on_checkpoint: Scores the agent every ``config.validate_every`` dream steps (a tenth of the training by default)
            and at the end, and at the beginning where there is an ``initial`` one. With scores, the agent that is saved
            is the one with the best score, else the last one. A function is waited for; the episodes of a
            :class:`~wm_gym.agents.training.selection.DriveSelection` go on beside the training.
        on_score: Told of each score, with the dream steps of the agent that has it; what it raises ends the training.
        best_recorded: The most that a recorded episode got in ``horizon`` steps
            (:func:`~wm_gym.agents.alarm.best_recorded_return`). Dreams that pay more on average raise a warning, as do
            those that pay more than the task can give, where the simulator knows its ceiling.
        track: Where the numbers can be watched: one of :data:`wm_gym.training.TRACKERS` (docs/tracking.md).

    Returns:
        Where the agent is and how its training went.

    Raises:
        ConfigError: A setting is unknown, out of range, or not one of the algorithm, or the tracker cannot be used.
        BundleError: The world model or ``initial`` cannot be used.
        TrainingError: The folder holds something else, or training diverged; the last good checkpoint is kept.
        KeyboardInterrupt: The user stopped it; a checkpoint has been written.

    Side effects: writes ``out``; seeds the global generators of Python, NumPy and PyTorch.
    """
    started = time.monotonic()
    check_tracker(track)
    overrides = {"algo": algo, "steps": steps, "seed": seed}
    given = config or AgentConfig()
    chosen = make_agent_config(
        {**given.model_dump(), **{name: value for name, value in overrides.items() if value is not None}}
    )
    resolve_device(device)  # refuses one that is not there
    loaded = resolve_model(model, device)
    if not isinstance(loaded, WorldModel):
        raise BundleError(
            f"an agent is saved with its WorldModel, which a {type(loaded).__name__} is not; "
            "wm_gym.agents.ImaginationTrainer trains in any model, without a run folder."
        )
    resolved = resolve(chosen, loaded.simulator.action)
    bank = start_states_of(loaded, start_states)
    predecessor = None if initial is None else load_agent(initial, loaded.device)
    alarm = DreamReturnAlarm(return_ceiling(loaded.simulator, resolved.horizon), best_recorded, resolved.horizon)
    record = {
        "model_fingerprint": loaded.fingerprint,
        "start_states": _digest(bank),
        "initial": None if predecessor is None else _digest(predecessor.policy.state_dict().values()),
    }
    with RunFolder(out, _KIND, resolved, record, identity=_IDENTITY).held(resume=resume) as folder:
        was_finished = is_finished_agent(folder.path)
        if not was_finished:
            warn_of_faults(loaded.metrics)
            check_dream(loaded, bank, loaded.metrics, resolved.horizon)
            _Run(
                folder,
                resolved,
                loaded,
                bank,
                predecessor=predecessor,
                alarm=alarm,
                progress=progress,
                validation=on_checkpoint,
                on_score=on_score,
                track=track,
            ).train()
        metrics = folder.read_metrics()
    return TrainingSummary(
        path=folder.path,
        dream_steps=int(metrics["dream_steps"]),
        dream_return=metrics["dream_return"],
        score=metrics["score"],
        saved_at_dream_steps=metrics.get("saved_at_dream_steps"),
        was_finished=was_finished,
        wall_s=time.monotonic() - started,
    )


@dataclass(frozen=True)
class _Pending:
    """A policy whose score is on its way.

    Attributes:
        dream_steps: Of its training.
        policy: Its parameters.
        score: Waits for the score.
    """

    dream_steps: int
    policy: dict[str, Any]
    score: Callable[[], float | None]


@dataclass
class _Run:
    """One training in one folder."""

    folder: RunFolder
    config: AgentConfig
    model: WorldModel
    bank: LatentState
    predecessor: LoadedAgent | None
    alarm: DreamReturnAlarm
    progress: bool
    validation: Validation | DriveSelection | None
    on_score: Callable[[int, float], object] | None
    track: str
    best_score: float | None = None
    last_validation: int | None = None
    pending: _Pending | None = None

    def __post_init__(self) -> None:
        self.last_file = self.folder.checkpoints / "last.pt"
        self.best_file = self.folder.checkpoints / "best.pt"
        self.validate_every = self.config.validate_every or math.ceil(self.config.steps / _VALIDATIONS)

    def train(self) -> None:
        """Train from the last checkpoint, or from the beginning, to the end, and save the agent."""
        initial, scale = None, None
        if self.predecessor is not None:
            initial, scale = self.predecessor.policy, self.predecessor.metrics.get("reward_scale")
        with ExitStack() as held:
            trainer = held.enter_context(
                ImaginationTrainer(
                    self.model,
                    self.config,
                    start_states=self.bank,
                    initial=initial,
                    reward_scale=scale,
                    progress=self.progress,
                )
            )
            self.scratch = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="wm_gym_agent_")))
            if self.last_file.exists():
                keys = ("snapshot", "best_score", "last_validation")
                state = load_checkpoint(self.last_file, self.folder.contents, keys=keys)
                self.best_score, self.last_validation = state["best_score"], state["last_validation"]
                with restoring(self.last_file):
                    if "pending" in state:
                        trainer.policy.load_state_dict(state["pending"]["policy"])
                        self._begin_validation(trainer, state["pending"]["dream_steps"])
                    trainer.restore(state["snapshot"])
            log = held.enter_context(
                MetricsLog(
                    self.folder.path, trainer.dream_steps + 1, self.config, step_key="dream_steps", track=self.track
                )
            )
            self._train_rounds(trainer, log)
            self._finish(trainer)

    def _train_rounds(self, trainer: ImaginationTrainer, log: MetricsLog) -> None:
        clock = CheckpointClock(self.config.checkpoint_overhead)
        good = trainer.snapshot()
        try:
            if self.predecessor is not None and self.last_validation is None:
                self._validate(trainer, log)  # a training that spoils its policy keeps the one that it began from
            while trainer.dream_steps < self.config.steps:
                report = trainer.train_round()
                log.write("train", trainer.dream_steps, report)
                self.alarm.check(report["ep_rew_mean"])
                good = trainer.snapshot()
                is_last = trainer.dream_steps >= self.config.steps
                if is_last or trainer.dream_steps - (self.last_validation or 0) >= self.validate_every:
                    self._validate(trainer, log)
                if clock.is_due():
                    began = time.monotonic()
                    self._save(trainer, good)
                    clock.record(began)
        except (KeyboardInterrupt, WMGymError):
            self._save(trainer, good)
            raise
        self._settle(log)
        self._save(trainer, good)

    def _validate(self, trainer: ImaginationTrainer, log: MetricsLog) -> None:
        """Have the agent scored as it is."""
        self._settle(log)
        self._begin_validation(trainer, trainer.dream_steps)
        if not isinstance(self.validation, DriveSelection):
            self._settle(log)

    def _begin_validation(self, trainer: ImaginationTrainer, dream_steps: int) -> None:
        """Have the policy scored, beside the training where that can be."""
        if self.validation is None:
            return
        policy = trainer.policy
        policy.set_training_mode(False)
        if isinstance(self.validation, DriveSelection):
            folder = save_agent(self.scratch / f"{dream_steps}", policy, self.model, self.config)
            wait = self.validation.start(folder)
        else:
            score = self.validation(Driver(self.model, policy, self.config.action))
            wait = lambda: score  # noqa: E731
        self.pending = _Pending(dream_steps, copy.deepcopy(policy.state_dict()), wait)
        self.last_validation = dream_steps

    def _settle(self, log: MetricsLog) -> None:
        """Wait for the score that is on its way; keep the best policy."""
        pending = self.pending
        if pending is None:
            return
        score = pending.score()
        self.pending = None
        if score is None:
            return
        log.write("validation", pending.dream_steps, {"score": float(score)})
        if math.isfinite(score) and (self.best_score is None or score > self.best_score):
            self.best_score = float(score)
            state = {"dream_steps": pending.dream_steps, "score": self.best_score, "policy": pending.policy}
            save_checkpoint(self.best_file, state, self.folder.contents)
        if self.on_score is not None:
            self.on_score(pending.dream_steps, float(score))

    def _save(self, trainer: ImaginationTrainer, snapshot: Snapshot) -> None:
        replay = trainer.replay()
        state: dict[str, Any] = {
            "snapshot": snapshot if replay is None else {**snapshot, "replay": replay},
            "best_score": self.best_score,
            "last_validation": self.last_validation,
        }
        if self.pending is not None:
            state["pending"] = {"dream_steps": self.pending.dream_steps, "policy": self.pending.policy}
        save_checkpoint(self.last_file, state, self.folder.contents)

    def _finish(self, trainer: ImaginationTrainer) -> None:
        """Put the agent's files beside the run's record."""
        chosen_at = trainer.dream_steps
        if self.best_score is not None and self.best_file.exists():
            best = load_checkpoint(self.best_file, self.folder.contents, keys=("policy", "dream_steps"))
            load_parameters(
                trainer.policy,
                best["policy"],
                error=TrainingError,
                file=self.best_file,
                owner="its run's configuration",
            )
            chosen_at = best["dream_steps"]
        rows = [row for row in read_metrics(self.folder.path / "metrics.jsonl") if row.get("ep_rew_mean") is not None]
        metrics = {
            "dream_steps": trainer.dream_steps,
            "dream_return": rows[-1]["ep_rew_mean"] if rows else None,
            "dream_length": rows[-1]["ep_len_mean"] if rows else None,
            "score": self.best_score,
            "saved_at_dream_steps": chosen_at,
            "reward_scale": trainer.reward_scale,
        }
        self.folder.install(lambda path: save_agent(path, trainer.policy, self.model, self.config, metrics), MANIFEST)


def put_agent(agent: LoadedAgent, folder: RunFolder) -> None:
    """Put a dream-trained agent's files beside the record of the run that it came from; ``agent.yaml`` comes last."""
    assert isinstance(agent.manifest, AgentManifest)
    policy, model, config, metrics = agent.policy, agent.model, agent.manifest.config, agent.metrics
    folder.install(lambda path: save_agent(path, policy, model, config, metrics), MANIFEST)


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
