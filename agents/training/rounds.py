"""The loop closed: drive with the policy, train the world model on what happened, train the policy in the new dream.

A dream is true where its recordings were. A policy that improves leaves them, and finds the places where the dream
pays and the simulator does not. Each round records the policy there, so that the next dream knows better (as Ross et
al. 2011 do for imitation, and Dreamer, arXiv 1912.01603, does throughout).

A run is a folder: ``rounds_config.yaml``, ``rounds.jsonl`` (one line a round), ``round-0/agent`` (trained in the world
model as given), ``round-1/{data,model,agent}``, …, and at the end the files of the last round's agent. Each of these
folders is a run of its own, so that a stopped run goes on where it was.

Only the last round chooses among checkpoints by episodes: they cost simulator steps that teach nothing, and the agents
before it are there to be seen failing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from wm_gym.agents.alarm import best_recorded_return
from wm_gym.agents.behaviours import make_behaviour
from wm_gym.agents.bundles.folder import MANIFEST, load_agent
from wm_gym.agents.policies.config import AgentConfig
from wm_gym.agents.training.dream_training import TrainingSummary, put_agent, train_agent
from wm_gym.agents.training.selection import selection_for
from wm_gym.bundle import read_manifest
from wm_gym.config import Config, parse_config
from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.training_data import open_training_data
from wm_gym.data_collection.recording.collector import collect
from wm_gym.data_collection.recording.worker_pool import connection_of_each
from wm_gym.envs.simulators import may_stand, scene_settings, split_connection
from wm_gym.errors import ConfigError, TrainingError
from wm_gym.files import write_text_atomically
from wm_gym.run_folder import RunFolder
from wm_gym.simulator import SimulatorSpec
from wm_gym.training.log import read_metrics
from wm_gym.training.trackers import check_tracker
from wm_gym.training.trainer import WorldModelTrainer
from wm_gym.world_model import WorldModel

_KIND_FILE = "rounds_config.yaml"
_RECORD = "rounds.jsonl"
_AGENT = "{agent}"
_PATIENCE = 40


class RoundsConfig(BaseModel):
    """How the rounds are made."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rounds: int = Field(default=3, ge=1, description="Rounds after the first agent.")
    steps: int = Field(default=13_500, ge=1, description="Simulator steps to record, over all rounds together.")
    behaviour: str = Field(
        default="sampled({agent}):0.5,{agent}:0.5",
        description="Who drives in a recording: a behaviour mix where {agent} is the agent of the round before.",
    )
    patience: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default="auto",
        description="A recording is cut after so many steps in a row without a reward above 0; auto is 40, and never "
        "where standing still can be right, as at a red light.",
    )
    model_updates: int = Field(
        default=700,
        ge=1,
        description="Updates of the world model in a round; with a frozen encoder, where it was trained so.",
    )
    model_learning_rate: float = Field(default=6e-4, gt=0, description="Learning rate that each of them begins with.")
    recorded_share: float = Field(
        default=0.4,
        gt=0,
        lt=1,
        description="Share of the clips, and so of the dreams' start states, that comes from the rounds' recordings; "
        "they are few beside the data given, and are where the dream is wrong.",
    )
    agent_steps: int | None = Field(
        default=None, ge=1, description="Dream steps of an agent in a round after the first; None is as the first."
    )
    unlimited_agents: int = Field(
        default=2,
        ge=0,
        description="So many agents, from the first on but never the last, train without the reward_limit of the "
        "agent's settings. They are recorded to show where the dream is wrong, and show most of it when nothing keeps "
        "them from haste; the later ones show the model what the last will do.",
    )
    continue_agent: bool = Field(
        default=False, description="Go on from the agent of the round before, rather than anew or from the initial one."
    )
    select_drives: int = Field(
        default=8, ge=0, description="Episodes on training tracks that choose among the last round's checkpoints."
    )
    workers: int = Field(default=1, ge=1, description="Processes that record.")
    seed: int = Field(default=0, ge=0, description="Of recordings; those of model and agent follow from theirs.")


def make_rounds_config(values: Mapping[str, Any] | None = None, changes: Iterable[str] = ()) -> RoundsConfig:
    """Make a configuration from a mapping and ``key=value`` changes.

    Raises:
        ConfigError: A key is unknown, or a value is of the wrong type or out of range.
    """
    return parse_config(RoundsConfig, dict(values or {}), changes, origin="the configuration of the rounds")


@dataclass(frozen=True)
class Round:
    """What one round has come to; a line of ``rounds.jsonl``.

    Attributes:
        number: 0 for the agent of the given world model.
        recorded_steps: Simulator steps recorded in it.
        selection_steps: Simulator steps of the episodes that chose among its checkpoints.
        data_return: Mean return of what it recorded; ``None`` in round 0.
        dream_return: Mean return of the last dreams in training.
        score: Mean return of the episodes that chose its checkpoint; ``None`` without them.
    """

    number: int
    recorded_steps: int
    selection_steps: int
    data_return: float | None
    dream_return: float | None
    score: float | None


_ROUND = TypeAdapter(Round)


@dataclass(frozen=True)
class RoundsSummary:
    """What all rounds have come to.

    Attributes:
        path: The folder, which is the last round's agent.
        rounds: Each round.
    """

    path: Path
    rounds: tuple[Round, ...]

    @property
    def simulator_steps(self) -> int:
        """Steps taken in the simulator, recorded or for selection."""
        return sum(entry.recorded_steps + entry.selection_steps for entry in self.rounds)


def train_agent_in_rounds(
    model: str | Path,
    data: Sequence[str | Path],
    *,
    out: str | Path,
    config: RoundsConfig,
    agent_config: AgentConfig,
    initial: str | Path | None = None,
    device: str = "auto",
    max_episode_steps: int | None = None,
    worker_connections: Sequence[Mapping[str, Any]] | None = None,
    progress: bool = True,
    track: str = "tensorboard",
) -> RoundsSummary:
    """Alternate recording with the current policy, training the world model further, and training in its dream.

    Args:
        model: Folder of the world model to begin with.
        data: The datasets that it was trained on; each round's recording joins them.
        out: The run's folder, which becomes the last round's agent.
        config: Settings of the rounds.
        agent_config: Settings of every agent.
        initial: Folder of an agent, such as a clone, whose policy each agent goes on from; with ``continue_agent`` the
            first one alone. ``None`` trains them anew.
        device: Device for training.
        max_episode_steps: Steps after which recorded and selecting episodes are cut; ``None``: the simulator's own.
        worker_connections: For each process that records, where its simulator runs, as for ``collect``; the first one's
            serves the selecting episodes as well. Not recorded: a run may go on elsewhere.
        progress: Show progress bars.
        track: Where the numbers can be watched: one of :data:`wm_gym.training.TRACKERS` (docs/tracking.md).

    Raises:
        ConfigError: A setting is out of range, there are not as many connections as workers, or the tracker cannot be
            used.
        DatasetError: A dataset is missing or damaged.
        BundleError: The world model cannot be used.
        TrainingError: ``out`` holds something else or other settings, or a training diverged.

    Side effects: writes ``out``, and all that its parts do.
    """
    check_tracker(track)
    return _Rounds(
        Path(out),
        model,
        list(data),
        config,
        agent_config,
        initial=None if initial is None else str(initial),
        device=device,
        limit=max_episode_steps,
        connections=connection_of_each(config.workers, worker_connections),
        progress=progress,
        track=track,
    ).run()


class _Settings(BaseModel):
    """All that the rounds in a folder follow from; the contents of its file."""

    rounds: RoundsConfig
    agent: AgentConfig
    initial: str | None = None
    model: str
    data: tuple[str, ...]
    max_episode_steps: int | None


@dataclass
class _Rounds:
    """One run in one folder."""

    out: Path
    given_model: str | Path
    given_data: list[str | Path]
    config: RoundsConfig
    agent_config: AgentConfig
    initial: str | None
    device: str
    limit: int | None
    connections: list[dict[str, Any]]
    progress: bool
    track: str

    def __post_init__(self) -> None:
        manifest = read_manifest(self.given_model)[1]
        self.simulator: SimulatorSpec = manifest.simulator
        if self.config.patience == "auto":
            patience = None if may_stand(self.simulator.id) else _PATIENCE
            self.config = self.config.model_copy(update={"patience": patience})
        for connection in self.connections:
            split_connection(self.simulator.id, {}, connection)  # refuses what it has not
        self.model_config = _config_of(manifest.provenance, self.config)
        # What is wrong with these is said early.
        open_training_data(self.given_data, self.model_config.training.validation_fraction, scenes=scene_settings)
        if self.initial is not None:
            load_agent(self.initial, "cpu")

    def run(self) -> RoundsSummary:
        settings = _Settings(
            rounds=self.config,
            agent=self.agent_config,
            initial=self.initial,
            model=str(self.given_model),
            data=tuple(str(folder) for folder in self.given_data),
            max_episode_steps=self.limit,
        )
        with RunFolder(self.out, None, settings, config_name=_KIND_FILE).held() as folder:
            finished = self._read_rounds()
            for number in range(len(finished), self.config.rounds + 1):
                finished.append(self._run_round(number, finished))
                lines = "".join(json.dumps(asdict(entry)) + "\n" for entry in finished)
                write_text_atomically(self.out / _RECORD, lines)
            if not (self.out / MANIFEST).exists():
                put_agent(load_agent(self._folder(self.config.rounds) / "agent", "cpu"), folder)
        return RoundsSummary(self.out, tuple(finished))

    def _run_round(self, number: int, finished: list[Round]) -> Round:
        model: str | Path = self.given_model
        recorded, data_return = 0, None
        if number > 0:
            recorded, data_return = self._record(number, finished)
            model = self._train_model(number)
        agent, driven = self._train_agent(number, model)
        return Round(number, recorded, driven, data_return, agent.dream_return, agent.score)

    def _record(self, number: int, finished: list[Round]) -> tuple[int, float]:
        patience = self.config.patience
        assert patience != "auto"
        left = self.config.steps - sum(entry.recorded_steps for entry in finished)
        share = max(1, left // (self.config.rounds + 1 - number))
        summary = collect(
            self._folder(number) / "data",
            self.simulator.id,
            make_behaviour=make_behaviour,
            frames=share,
            behaviour=self.config.behaviour.replace(_AGENT, str(self._folder(number - 1) / "agent")),
            worker_kwargs=self.connections,
            seed=self.config.seed + number,
            simulator_kwargs={"frame_size": self.simulator.frame_size, **self.simulator.kwargs},
            max_episode_steps=self.limit,
            patience=patience,
            progress=self.progress,
        )
        return summary.num_steps, summary.mean_return

    def _train_model(self, number: int) -> Path:
        previous = self.given_model if number == 1 else self._folder(number - 1) / "model"
        training = self.model_config.training
        config = self.model_config.model_copy(
            update={"training": training.model_copy(update={"seed": training.seed + number})}
        )
        data = open_training_data(
            self._datasets(number), training.validation_fraction, self._shares(number), scenes=scene_settings
        )
        out = self._folder(number) / "model"
        WorldModelTrainer(
            config,
            data.simulator,
            data.train,
            data.validation,
            out,
            data_info=data.info,
            data_metrics=data.metrics,
            device=self.device,
            initial=WorldModel.from_pretrained(previous),
            progress=self.progress,
            track=self.track,
        ).run()
        return out

    def _train_agent(self, number: int, model: str | Path) -> tuple[TrainingSummary, int]:
        config = self.agent_config
        if number > 0 and self.config.agent_steps is not None:
            config = config.model_copy(update={"steps": self.config.agent_steps})
        if number < min(self.config.unlimited_agents, self.config.rounds):
            config = config.model_copy(update={"reward_limit": None})
        initial = self._folder(number - 1) / "agent" if number > 0 and self.config.continue_agent else self.initial
        returns = [best_recorded_return(Dataset.open(folder), config.horizon) for folder in self._datasets(number)]
        drives = self.config.select_drives if number == self.config.rounds else 0
        with selection_for(
            model, drives, max_episode_steps=self.limit, worker_connections=self.connections
        ) as selection:
            summary = train_agent(
                model,
                out=self._folder(number) / "agent",
                config=config,
                device=self.device,
                initial=initial,
                progress=self.progress,
                on_checkpoint=selection,
                best_recorded=max((value for value in returns if value is not None), default=None),
                track=self.track,
            )
            return summary, 0 if selection is None else selection.frames

    def _datasets(self, number: int) -> list[str | Path]:
        """All that the world model of a round has learned from."""
        return [*self.given_data, *(self._folder(earlier) / "data" for earlier in range(1, number + 1))]

    def _shares(self, number: int) -> list[float]:
        """How much each dataset is drawn from: within the given and within the recorded ones, by their steps."""
        steps = [Dataset.open(folder).num_steps for folder in self._datasets(number)]
        given, recorded = steps[: len(self.given_data)], steps[len(self.given_data) :]
        share = self.config.recorded_share
        return [
            *((1 - share) * count / sum(given) for count in given),
            *(share * count / sum(recorded) for count in recorded),
        ]

    def _folder(self, number: int) -> Path:
        return self.out / f"round-{number}"

    def _read_rounds(self) -> list[Round]:
        record = self.out / _RECORD
        if not record.exists():
            return []
        try:
            return [_ROUND.validate_python(row) for row in read_metrics(record)]
        except ValidationError as error:
            raise TrainingError(
                f"{str(record)!r} is damaged: it does not tell of rounds; restore it from a copy, or choose another "
                "folder."
            ) from error


def _config_of(provenance: dict[str, Any], rounds: RoundsConfig) -> Config:
    """The configuration that a world model was trained with, for going on in rounds."""
    values = provenance.get("config")
    if values is None:
        raise ConfigError(
            "this world model does not say how it was trained, so it cannot be trained further; train one with "
            "`wm-gym train-model`."
        )
    origin = "the configuration that the world model was trained with"
    is_latent = parse_config(Config, values, origin=origin).training.latent.steps > 0
    phase = "training.latent" if is_latent else "training"
    changes = (
        *(("training.steps=0",) if is_latent else ()),
        f"{phase}.steps={rounds.model_updates}",
        f"{phase}.learning_rate={rounds.model_learning_rate}",
        f"{phase}.warmup_steps={max(1, rounds.model_updates // 20)}",
        f"training.validate_every={rounds.model_updates}",
    )
    return parse_config(Config, values, changes, origin=origin)
