"""The whole loop on one simulator, step after step; each step resumes where it was stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from wm_gym.agents.baselines.behaviour_cloning import clone_behaviour, make_cloning_config
from wm_gym.agents.behaviours import make_behaviour
from wm_gym.agents.bundles.folder import MANIFEST
from wm_gym.agents.evaluation.bootstrap import bootstrap_interval
from wm_gym.agents.evaluation.evaluation import evaluate
from wm_gym.agents.policies.config import make_agent_config
from wm_gym.agents.reports.report import PAGE_NAME, write_report
from wm_gym.agents.training.dream_training import TrainingSummary, train_agent
from wm_gym.agents.training.selection import selection_for
from wm_gym.checksums import canonical, file_sha256
from wm_gym.config import load_config
from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.training_data import open_training_data
from wm_gym.data_collection.recording.collector import CollectionSummary, collect
from wm_gym.data_collection.recording.plan import HELD_OUT_FROM
from wm_gym.envs.carla.observed_vector import DEFAULT_NAMES
from wm_gym.envs.simulators import SIMULATORS
from wm_gym.errors import WMGymError
from wm_gym.files import write_json_atomically
from wm_gym.plain_files import read_json
from wm_gym.provenance import provenance
from wm_gym.training.trackers import check_tracker
from wm_gym.training.trainer import WorldModelTrainer

Result = TypeVar("Result")

_SCORES = {"success": "success", "route_completion": "completion %", "driving_score": "driving score"}
"""What the table shows beside the returns, where a simulator tells it."""

_DRIVERS = {
    "agent": "PPO trained in the dream",
    "clone": "the clone that it began from",
    "random": "random",
    "autopilot": "autopilot (reads the simulator)",
}


CORRECTIONS_SEED = 500_000
"""Added to the seed of the first recordings: the clone drives other tracks."""


class DemoSettings(BaseModel):
    """How much of each step the demo does.

    Attributes:
        simulator: Short name of the simulator.
        simulator_kwargs: Its arguments.
        held_out_kwargs: Those that differ where the drivers are evaluated.
        episodes: Episodes to collect.
        behaviour: Behaviour mix of the collection.
        patience: Recorded episodes are cut after so many steps in a row without a reward above 0.
        config: Preset of the world model.
        model_changes: ``key=value`` changes to it.
        clone_changes: ``key=value`` changes to the cloning of the recorded drivers, from which the agent goes on;
            ``None`` trains it anew.
        corrected_episodes: Episodes that the clone then drives, while ``teacher`` says what it would have done; the
            clone is made anew of all recordings. 0 leaves that out.
        teacher: Behaviour that corrects the clone.
        agent_changes: ``key=value`` changes to the agent's configuration.
        select_drives: Drives on training tracks by which the agent is chosen among its checkpoints; 0 takes the last.
        evaluation_episodes: Held-out tracks for each driver.
        max_episode_steps: Steps after which recorded and evaluated episodes are cut.
        workers: Processes for collection and evaluation.
        seed: Seed of collection, model and agent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    simulator: str = "car-racing"
    simulator_kwargs: dict[str, Any] = Field(default_factory=dict)
    held_out_kwargs: dict[str, Any] = Field(default_factory=dict)
    episodes: int = Field(default=144, ge=2)
    behaviour: str = "swerving:0.55,noisy:0.3,autopilot:0.1,random:0.05"
    patience: int | None = Field(default=40, ge=1)
    config: str = "tiny"
    model_changes: tuple[str, ...] = ("training.steps=500", "training.latent.steps=500")
    # Who begins as a clone depends little on how good the model is: docs/experiments.md.
    clone_changes: tuple[str, ...] | None = ("steps=1500", "behaviours=[noisy, autopilot, swerving]")
    corrected_episodes: int = Field(default=48, ge=0)
    teacher: str = "autopilot"
    agent_changes: tuple[str, ...] = (
        "steps=120000",
        "critic_steps=30000",
        "anchor=0.3",
        "learning_rate=0.0001",
        "final_learning_rate=0.1",
        "ent_coef=0",
        "validate_every=60000",
    )
    select_drives: int = Field(default=6, ge=0)
    evaluation_episodes: int = Field(default=20, ge=1)
    max_episode_steps: int | None = Field(default=None, ge=1)
    workers: int = Field(default=2, ge=1)
    seed: int = Field(default=0, ge=0)


CARLA: Mapping[str, Any] = {
    "simulator": "carla",
    "simulator_kwargs": {
        "frame_size": 64,
        "action_repeat": 4,
        "view": "birdview",
        "town": "Town01",
        "reward": "route_completion",
        "route": {"min_length": 300.0, "max_length": 400.0},
        "vector": [*DEFAULT_NAMES, "light_state", "light_distance"],
    },
    "held_out_kwargs": {"town": "Town02"},
    "episodes": 200,
    "behaviour": "noisy:0.38,swerving:0.12,autopilot:0.1,reckless:0.25,noisy(reckless):0.1,random:0.05",
    "patience": None,
    "config": "town",
    "model_changes": ("training.steps=1000", "training.latent.steps=1500"),
    # The reckless are recorded for the world model alone.
    "clone_changes": ("steps=1500", "behaviours=[noisy, autopilot, swerving]"),
    "corrected_episodes": 0,
    # Horizons in which a car can brake, a critic that knows what the clone's stops are worth before they are unlearnt,
    # and nothing to gain from haste: docs/experiments.md has what each of them brings.
    "agent_changes": (
        "steps=800000",
        "num_envs=128",
        "critic_steps=150000",
        "horizon=30",
        "gae_lambda=0.98",
        "gamma=0.995",
        "learning_rate=0.00005",
        "final_learning_rate=0.1",
        "ent_coef=0",
        "reward_scale=0.05",
        "reward_limit=0.3",
    ),
    "select_drives": 0,
}
"""The loop in CARLA, from the bird's-eye view: trained in one town, driven in another."""


def quick(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with sizes that show in about a minute that every step works; the agent cannot drive.

    Args:
        values: Fields of :class:`DemoSettings`.
    """
    small: dict[str, Any] = {
        "model_changes": (),
        "episodes": 8,
        "config": "debug",
        "agent_changes": ("steps=20000", "num_envs=32", "horizon=10", "validate_every=10000"),
        "select_drives": 1,
        "corrected_episodes": min(values.get("corrected_episodes", 2), 2),
        "evaluation_episodes": 2,
        "max_episode_steps": 50,
    }
    if values.get("clone_changes", ()) is not None:
        small["clone_changes"] = ("steps=20",)
    return {**values, **small}


def run_demo(
    out: str | Path,
    settings: DemoSettings,
    *,
    worker_connections: Sequence[Mapping[str, Any]] | None = None,
    device: str = "auto",
    progress: bool = True,
    say: Callable[[str], None] = print,
    track: str = "tensorboard",
) -> dict[str, Any]:
    """Collect, train a world model, train PPO in its dreams, evaluate in the simulator, write a report.

    Args:
        out: Folder for ``data/``, ``model/``, ``clone/`` where there is one (with ``first-clone/`` and
            ``corrections/`` where it was corrected), ``agent/``, ``evaluation/``, ``report/`` and ``summary.json``.
        settings: The simulator, and the sizes of the steps.
        worker_connections: For each worker, where its simulator runs, as for ``collect``; they set the number of
            workers.
        device: Device for training.
        progress: Show progress bars.
        say: Where to print.
        track: Where the numbers can be watched: one of :data:`wm_gym.training.TRACKERS` (docs/tracking.md).

    Returns:
        The contents of ``summary.json``: returns of each driver, of the data and of the dream, and times.
    """
    check_tracker(track)
    folder = Path(out)
    workers = settings.workers if worker_connections is None else len(worker_connections)
    connection = None if worker_connections is None else worker_connections[0]
    training: dict[str, Any] = {"device": device, "progress": progress, "track": track}
    is_cloned = settings.clone_changes is not None
    is_corrected = is_cloned and settings.corrected_episodes > 0
    stages = _Stages(folder, 5 + is_cloned + 2 * is_corrected, say)

    def record(name: str, episodes: int, behaviour: str, seed: int) -> CollectionSummary:
        return collect(
            folder / name,
            settings.simulator,
            make_behaviour=make_behaviour,
            episodes=episodes,
            behaviour=behaviour,
            workers=workers,
            seed=seed,
            simulator_kwargs=settings.simulator_kwargs,
            worker_kwargs=worker_connections,
            max_episode_steps=settings.max_episode_steps,
            patience=settings.patience,
            progress=progress,
        )

    def clone(name: str, recordings: Sequence[str], behaviours: Sequence[str] = ()) -> None:
        config = make_cloning_config({"seed": settings.seed}, settings.clone_changes or ())
        if config.behaviours:
            config = config.model_copy(update={"behaviours": (*config.behaviours, *behaviours)})
        data = [folder / recording for recording in recordings]
        clone_behaviour(data, folder / "model", out=folder / name, config=config, **training)

    collected = stages.run(
        f"collect {settings.episodes} episodes on {SIMULATORS.get(settings.simulator, settings.simulator)}",
        lambda: record("data", settings.episodes, settings.behaviour, settings.seed),
    )
    stages.run(
        f"train a world model ({settings.config}) on {collected.num_steps} steps",
        lambda: _train_model(folder, settings, **training),
    )
    if is_cloned:
        stages.run("clone the recorded drivers", lambda: clone("first-clone" if is_corrected else "clone", ["data"]))
    if is_corrected:
        learner = f"corrected({folder / 'first-clone'} by {settings.teacher})"
        stages.run(
            f"drive {settings.corrected_episodes} episodes with the clone, corrected by {settings.teacher}",
            lambda: record("corrections", settings.corrected_episodes, learner, settings.seed + CORRECTIONS_SEED),
        )
        stages.run("clone the corrections, too", lambda: clone("clone", ["data", "corrections"], ["corrected(*)"]))
    trained = stages.run(
        "train PPO in its dreams", lambda: _train_agent(folder, settings, worker_connections, **training)
    )
    made_of = {"settings": settings.model_dump(mode="json"), "agent": file_sha256(folder / "agent" / MANIFEST)}

    def drive(name: str, driver: str) -> Path:
        file = folder / "evaluation" / f"{name}.json"
        is_trained = driver != name
        origin = (name, made_of["settings"], file_sha256(Path(driver) / MANIFEST) if is_trained else None)
        return stages.once(
            file,
            origin,
            lambda: evaluate(
                driver,
                None if is_trained else settings.simulator,
                episodes=settings.evaluation_episodes,
                seed=HELD_OUT_FROM,
                workers=workers,
                worker_connections=worker_connections,
                simulator_kwargs={
                    **({} if is_trained else settings.simulator_kwargs),
                    **settings.held_out_kwargs,
                },
                max_episode_steps=settings.max_episode_steps,
                json_path=file,
                progress=progress,
            ),
        )

    drivers = {"agent": str(folder / "agent")}
    if is_cloned:
        drivers["clone"] = str(folder / "clone")
    drivers |= {"random": "random", "autopilot": "autopilot"}
    results = stages.run(
        f"drive {settings.evaluation_episodes} held-out {_places(settings)} with each driver",
        lambda: {name: drive(name, driver) for name, driver in drivers.items()},
    )
    evaluations = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in results.items()}
    data_returns = [header.return_ for header in Dataset.open(folder / "data").episodes]
    summary = {
        "data": {
            "episodes": collected.num_episodes,
            "steps": collected.num_steps,
            "mean_return": sum(data_returns) / len(data_returns),
            "ci95": bootstrap_interval(data_returns),
        },
        "drivers": {
            name: {
                "mean_return": result["mean_return"],
                "ci95": result["ci95"],
                "episodes": result["episodes"],
                **{key: result["driving"][key] for key in _SCORES if key in result["driving"]},
            }
            for name, result in evaluations.items()
        },
        "dream_return": trained.dream_return,
        "saved_at_dream_steps": trained.saved_at_dream_steps,
        "settings": made_of["settings"],
        "provenance": provenance(),
    }
    write_json_atomically(folder / "summary.json", {**summary, "stages": stages.seconds})
    report = folder / "report" / PAGE_NAME
    stages.run(
        "write the report",
        lambda: stages.once(
            report,
            (summary, made_of),
            lambda: write_report(folder, connection=connection),
        ),
    )
    summary["stages"] = stages.seconds
    write_json_atomically(folder / "summary.json", summary)
    say(render_table(summary))
    say(f"report: {report}")
    return summary


class _Stages:
    """The stages of a run in their order: how long each took, over all calls, and which files need no second making.

    ``stages.json`` in the run's folder holds both.
    """

    def __init__(self, folder: Path, count: int, say: Callable[[str], None]) -> None:
        self._folder, self._count, self._say = folder, count, say
        self._file = folder / "stages.json"
        record = (
            read_json(self._file, error=WMGymError, remedy="remove it; nothing but times is lost")
            if self._file.exists()
            else {}
        )
        self._seconds: dict[str, float] = record.get("seconds", {})
        self._made: dict[str, list[str]] = record.get("made", {})
        self._titles: list[str] = []
        self._provenance = provenance()

    @property
    def seconds(self) -> list[dict[str, Any]]:
        """Name and seconds of each stage of this call, with those of earlier calls."""
        return [{"name": title, "seconds": round(self._seconds[title], 1)} for title in self._titles]

    def run(self, title: str, work: Callable[[], Result]) -> Result:
        """Do the next stage."""
        self._titles.append(title)
        self._say(f"[{len(self._titles)}/{self._count}] {title}")
        started = time.monotonic()
        try:
            return work()
        finally:
            self._seconds[title] = self._seconds.get(title, 0.0) + time.monotonic() - started
            if self._folder.exists():
                self._write()

    def once(self, file: Path, made_of: Any, make: Callable[[], object]) -> Path:
        """Make a file, unless it lies there, unchanged, and was made of the same by the same versions."""
        name = str(file.relative_to(self._folder))
        origin = hashlib.sha256(canonical({"made_of": made_of, "provenance": self._provenance})).hexdigest()
        if not file.is_file() or self._made.get(name) != [origin, file_sha256(file)]:
            make()
            self._made[name] = [origin, file_sha256(file)]
            self._write()
        return file

    def _write(self) -> None:
        write_json_atomically(self._file, {"seconds": self._seconds, "made": self._made})


def render_table(summary: dict[str, Any]) -> str:
    """The returns as a text table."""
    places = _places(DemoSettings.model_validate(summary["settings"]))
    driven = summary["drivers"]
    held_out = f"{driven['agent']['episodes']} held-out {places}"
    rows = [
        *(
            (title, summary["drivers"][name], held_out)
            for name, title in _DRIVERS.items()
            if name in summary["drivers"]
        ),
        ("the collected data", summary["data"], f"{summary['data']['episodes']} training {places}"),
    ]
    scores = {key: title for key, title in _SCORES.items() if key in rows[0][1]}
    titles = "".join(f"{title:>16}" for title in scores.values())
    lines = [f"{'driver':<34}{'mean return':>12}   {'95 % interval':<18}{'over':<24}{titles}".rstrip()]
    for name, row, over in rows:
        interval = "-" if row["ci95"] is None else f"{row['ci95'][0]:.1f} to {row['ci95'][1]:.1f}"
        told = "".join(f"{row[key]:>16.2f}" if key in row else f"{'-':>16}" for key in scores)
        lines.append(f"{name:<34}{row['mean_return']:>12.1f}   {interval:<18}{over:<24}{told}".rstrip())
    lines.append("")
    if "clone" in summary["drivers"] and summary["saved_at_dream_steps"] == 0:
        lines.append("The agent is the clone itself: no checkpoint of PPO drove better on the training tracks.")
    total = sum(stage["seconds"] for stage in summary["stages"])
    lines.append(f"time: {total / 60:.1f} min (" + ", ".join(f"{s['seconds']:.0f} s" for s in summary["stages"]) + ")")
    return "\n".join(lines)


def _places(settings: DemoSettings) -> str:
    return "routes" if settings.simulator == "carla" else "tracks"


def _train_model(folder: Path, settings: DemoSettings, **training: Any) -> None:
    config = load_config(settings.config, (f"training.seed={settings.seed}", *settings.model_changes))
    data = open_training_data(folder / "data", config.training.validation_fraction)
    WorldModelTrainer(
        config,
        data.simulator,
        data.train,
        data.validation,
        folder / "model",
        data_info=data.info,
        data_metrics=data.metrics,
        **training,
    ).run()


def _train_agent(
    folder: Path, settings: DemoSettings, connections: Sequence[Mapping[str, Any]] | None, **training: Any
) -> TrainingSummary:
    model = folder / "model"
    drivers = max(1, (settings.workers if connections is None else len(connections)) - 1)  # PPO is at work beside them
    with selection_for(
        model,
        settings.select_drives,
        max_episode_steps=settings.max_episode_steps,
        workers=drivers,
        worker_connections=None if connections is None else connections[:drivers],
    ) as selection:
        return train_agent(
            model,
            out=folder / "agent",
            config=make_agent_config({"seed": settings.seed}, settings.agent_changes),
            initial=None if settings.clone_changes is None else folder / "clone",
            on_checkpoint=selection,
            **training,
        )
