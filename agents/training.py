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
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml
from torch import Tensor

from wm_gym.agents.agent_bundle import (
    MANIFEST,
    AgentManifest,
    LoadedAgent,
    load_agent,
    read_agent_manifest,
    save_agent,
)
from wm_gym.agents.alarm import DreamReturnAlarm
from wm_gym.agents.algorithms import resolve
from wm_gym.agents.config import AgentConfig, make_agent_config
from wm_gym.agents.device import resolve_device
from wm_gym.agents.driver import Driver
from wm_gym.agents.imagination import ImaginationTrainer, Snapshot
from wm_gym.agents.run_folder import first_difference, install_agent, read_metrics_of, read_record, restore
from wm_gym.envs.dream_model import resolve_model, start_states_of
from wm_gym.envs.simulators import return_ceiling
from wm_gym.errors import BundleError, TrainingError, WMGymError
from wm_gym.files import write_json_atomically, write_text_atomically
from wm_gym.provenance import provenance
from wm_gym.state import LatentState
from wm_gym.training.checkpoint import CheckpointClock, load_checkpoint, save_checkpoint
from wm_gym.training.log import MetricsLog, read_metrics
from wm_gym.world_model import WorldModel

_KIND = "wm_gym.agent_run"
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
        score: Best score of the validation drives, or ``None`` without them.
        was_finished: Whether the folder held the finished agent already.
        wall_s: Seconds that this call took.
    """

    path: Path
    dream_steps: int
    dream_return: float | None
    score: float | None
    was_finished: bool
    wall_s: float


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
    on_checkpoint: Validation | None = None,
    best_recorded: float | None = None,
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
        on_checkpoint: Called every ``config.validate_every`` dream steps (a tenth of the training by default) and at
            the end. With scores, the agent that is saved is the one with the best score, else the last one.
        best_recorded: The most that a recorded drive got in ``horizon`` steps
            (:func:`~wm_gym.agents.alarm.best_recorded_return`). Dreams that pay more on average raise a warning, as do
            those that pay more than the task can give, where the simulator knows its ceiling.

    Returns:
        Where the agent is and how its training went.

    Raises:
        ConfigError: A setting is unknown, out of range, or not one of the algorithm.
        BundleError: The world model or ``initial`` cannot be used.
        TrainingError: The folder holds something else, or training diverged; the last good checkpoint is kept.
        KeyboardInterrupt: The user stopped it; a checkpoint has been written.

    Side effects: writes ``out``; seeds the global generators of Python, NumPy and PyTorch.
    """
    started = time.monotonic()
    overrides = {"algo": algo, "steps": steps, "seed": seed}
    given = config or AgentConfig()
    chosen = make_agent_config(
        {**given.model_dump(), **{name: value for name, value in overrides.items() if value is not None}}
    )
    if isinstance(model, (str, Path)):
        loaded = resolve_model(model, resolve_device(device))
    else:
        loaded = resolve_model(model, None if device == "auto" else resolve_device(device))
    if not isinstance(loaded, WorldModel):
        raise BundleError(
            f"an agent is saved with its WorldModel, which a {type(loaded).__name__} is not; "
            "wm_gym.agents.ImaginationTrainer trains in any model, without a run folder."
        )
    resolved = resolve(chosen, loaded.simulator.action)
    bank = start_states_of(loaded, start_states)
    predecessor = None if initial is None else load_agent(initial, loaded.device)
    alarm = DreamReturnAlarm(return_ceiling(loaded.simulator, resolved.horizon), best_recorded, resolved.horizon)
    run = _Run(
        Path(out),
        resolved,
        loaded,
        bank,
        predecessor=predecessor,
        alarm=alarm,
        progress=progress,
        validation=on_checkpoint,
    )
    was_finished = run.prepare(resume)
    if not was_finished:
        run.train()
    metrics = read_metrics_of(run.out)
    return TrainingSummary(
        path=run.out,
        dream_steps=int(metrics["dream_steps"]),
        dream_return=metrics["dream_return"],
        score=metrics["score"],
        was_finished=was_finished,
        wall_s=time.monotonic() - started,
    )


class _Run:
    """One training in one folder."""

    def __init__(
        self,
        out: Path,
        config: AgentConfig,
        model: WorldModel,
        bank: LatentState,
        *,
        predecessor: LoadedAgent | None,
        alarm: DreamReturnAlarm,
        progress: bool,
        validation: Validation | None,
    ) -> None:
        self.out = out
        self.config = config
        self.model = model
        self.bank = bank
        self.predecessor = predecessor
        self.alarm = alarm
        self.progress = progress
        self.validation = validation
        self.last_file = out / "checkpoints" / "last.pt"
        self.best_file = out / "checkpoints" / "best.pt"
        self.validate_every = config.validate_every or math.ceil(config.steps / _VALIDATIONS)
        self.best_score: float | None = None
        self.last_validation = 0

    def prepare(self, resume: bool) -> bool:
        """Create the folder, or check that it holds this very run; returns whether it is finished."""
        config_text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        record = {
            "kind": _KIND,
            "model_fingerprint": self.model.fingerprint,
            "start_states": _digest(self.bank),
            "initial": None if self.predecessor is None else _digest(self.predecessor.policy.state_dict().values()),
        }
        record_file, config_file = self.out / "run.json", self.out / "run_config.yaml"
        if not record_file.exists():
            if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
                raise TrainingError(f"{str(self.out)!r} is not empty and holds no training run; choose another folder.")
            (self.out / "checkpoints").mkdir(parents=True, exist_ok=True)
            # run.json comes last: a folder without it is not taken for a run.
            write_text_atomically(config_file, config_text)
            write_json_atomically(record_file, {**record, "provenance": provenance()})
            return False
        previous = read_record(record_file, _KIND)
        if not resume:
            raise TrainingError(f"{str(self.out)!r} holds a training run already; resume it or choose another folder.")
        if not config_file.exists() or config_file.read_text(encoding="utf-8") != config_text:
            raise TrainingError(
                f"{str(self.out)!r} holds a run with other settings{first_difference(self.config, config_file)}; "
                "repeat those of its run_config.yaml to resume it, or choose another folder."
            )
        for key, what in (
            ("model_fingerprint", "in another world model"),
            ("start_states", "from other start states"),
            ("initial", "that began from another policy"),
        ):
            if previous.get(key) != record[key]:
                raise TrainingError(
                    f"{str(self.out)!r} holds a run {what}; give the same one to resume it, or choose another folder."
                )
        if (self.out / MANIFEST).exists():
            read_agent_manifest(self.out)
            return True
        return False

    def train(self) -> None:
        """Train from the last checkpoint, or from the beginning, to the end, and save the agent."""
        initial, scale = None, None
        if self.predecessor is not None:
            initial, scale = self.predecessor.policy, self.predecessor.metrics.get("reward_scale")
        with ImaginationTrainer(
            self.model,
            self.config,
            start_states=self.bank,
            initial=initial,
            reward_scale=scale,
            progress=self.progress,
        ) as trainer:
            if self.last_file.exists():
                state = load_checkpoint(self.last_file)
                self.best_score, self.last_validation = state["best_score"], state["last_validation"]
                restore(trainer, state["snapshot"], self.last_file)
            with MetricsLog(self.out, keep_before=trainer.dream_steps + 1, step_key="dream_steps") as log:
                self._train_rounds(trainer, log)
            self._finish(trainer)

    def _train_rounds(self, trainer: ImaginationTrainer, log: MetricsLog) -> None:
        clock = CheckpointClock(self.config.checkpoint_overhead)
        good = trainer.snapshot()
        try:
            while trainer.dream_steps < self.config.steps:
                report = trainer.train_round()
                log.write("train", trainer.dream_steps, report)
                self.alarm.check(report["ep_rew_mean"])
                good = trainer.snapshot()
                self._validate(trainer, log)
                if clock.is_due():
                    began = time.monotonic()
                    self._save(trainer, good)
                    clock.record(began)
        except (KeyboardInterrupt, WMGymError):
            self._save(trainer, good)
            raise
        self._save(trainer, good)

    def _validate(self, trainer: ImaginationTrainer, log: MetricsLog) -> None:
        """Let the caller score the agent when it is time; keep the best policy."""
        steps = trainer.dream_steps
        is_due = steps - self.last_validation >= self.validate_every or steps >= self.config.steps
        if self.validation is None or not is_due:
            return
        trainer.policy.set_training_mode(False)
        score = self.validation(Driver(self.model, trainer.policy, self.config.action))
        self.last_validation = steps
        if score is None:
            return
        log.write("validation", steps, {"score": float(score)})
        if math.isfinite(score) and (self.best_score is None or score > self.best_score):
            self.best_score = float(score)
            state = {
                "dream_steps": steps,
                "score": self.best_score,
                "policy": copy.deepcopy(trainer.policy.state_dict()),
            }
            save_checkpoint(self.best_file, state)

    def _save(self, trainer: ImaginationTrainer, snapshot: Snapshot) -> None:
        state = {"snapshot": snapshot, "best_score": self.best_score, "last_validation": self.last_validation}
        replay = trainer.replay()
        if replay is not None:
            state["snapshot"] = {**snapshot, "replay": replay}
        save_checkpoint(self.last_file, state)

    def _finish(self, trainer: ImaginationTrainer) -> None:
        """Put the agent's files beside the run's record."""
        chosen_at = trainer.dream_steps
        if self.best_score is not None and self.best_file.exists():
            best = load_checkpoint(self.best_file)
            trainer.policy.load_state_dict(best["policy"])
            chosen_at = best["dream_steps"]
        rows = [row for row in read_metrics(self.out / "metrics.jsonl") if row.get("ep_rew_mean") is not None]
        metrics = {
            "dream_steps": trainer.dream_steps,
            "dream_return": rows[-1]["ep_rew_mean"] if rows else None,
            "dream_length": rows[-1]["ep_len_mean"] if rows else None,
            "score": self.best_score,
            "saved_at_dream_steps": chosen_at,
            "reward_scale": trainer.reward_scale,
        }
        install_agent(self.out, lambda path: save_agent(path, trainer.policy, self.model, self.config, metrics))


def put_agent(agent: LoadedAgent, folder: Path) -> None:
    """Put a dream-trained agent's files beside the record of the run that it came from; ``agent.yaml`` comes last."""
    assert isinstance(agent.manifest, AgentManifest)
    policy, model, config, metrics = agent.policy, agent.model, agent.manifest.config, agent.metrics
    install_agent(folder, lambda path: save_agent(path, policy, model, config, metrics))


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
