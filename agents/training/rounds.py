"""The loop closed: drive with the policy, train the world model on what happened, train the policy in the new dream.

A dream is true where its recordings were. A policy that improves leaves them, and finds the places where the dream
pays and the simulator does not. Each round records the policy there, so that the next dream knows better (as Ross et
al. 2011 do for imitation, and Dreamer, arXiv 1912.01603, does throughout).

A run is a folder: ``rounds_config.yaml``, ``rounds.jsonl`` (one line a round), ``round-0/agent`` (trained in the world
model as given), ``round-1/{data,model,agent}``, …, and at the end the files of the last round's agent. Each of these
folders is a run of its own, so that a stopped run goes on where it was.

A run may begin with nothing: then round 0 records random driving and trains a first world model on it
(``round-0/{data,model,agent}``), and no other driver is ever needed. Early dreams of such a run are poor and its
recordings soon better, so that every world model is trained anew on all of them. A policy sees through its model, and
cannot go on in another one: what carries over are drives, of which a new policy first copies the best (``clone/``).

Only the last round chooses among checkpoints by episodes: they cost simulator steps that teach nothing, and the agents
before it are there to be seen failing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from wm_gym.agents.alarm import best_recorded_return
from wm_gym.agents.baselines.behaviour_cloning import clone_behaviour, make_cloning_config
from wm_gym.agents.behaviours import make_behaviour
from wm_gym.agents.bundles.folder import MANIFEST, load_agent
from wm_gym.agents.policies.config import AgentConfig
from wm_gym.agents.training.dream_training import TrainingSummary, put_agent, train_agent
from wm_gym.agents.training.selection import selection_for
from wm_gym.bundle import read_manifest
from wm_gym.config import Config, load_config, parse_config
from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.training_data import open_training_data
from wm_gym.data_collection.recording.collector import collect
from wm_gym.data_collection.recording.worker_pool import connection_of_each
from wm_gym.envs.simulators import describe_simulator, make_simulator, may_stand, scene_settings, split_connection
from wm_gym.errors import ConfigError, TrainingError
from wm_gym.files import write_text_atomically
from wm_gym.run_folder import RunFolder
from wm_gym.training.log import read_metrics
from wm_gym.training.trackers import check_tracker
from wm_gym.training.trainer import WorldModelTrainer
from wm_gym.world_model import WorldModel

_KIND_FILE = "rounds_config.yaml"
_RECORD = "rounds.jsonl"
_AGENT = "{agent}"
_PATIENCE = 40
_CLONE_UPDATES = 2_000


class RoundsConfig(BaseModel):
    """How the rounds are made."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rounds: int = Field(default=3, ge=1, description="Rounds after the first agent.")
    steps: int = Field(
        default=13_500,
        ge=1,
        description="Simulator steps to record, over all rounds together, those of first_behaviour among them.",
    )
    first_behaviour: str = Field(
        default="random", description="Who drives first in a run that begins with nothing: a behaviour mix."
    )
    first_steps: int = Field(default=2_500, ge=1, description="Simulator steps that are recorded of it.")
    world_model: str = Field(
        default="tiny", description="Preset, or YAML file, of the world models of a run that begins with nothing."
    )
    model_changes: tuple[str, ...] = Field(
        default=("training.steps=500", "training.latent.steps=500"), description="key=value changes to it."
    )
    behaviour: str = Field(
        default="sampled({agent}):0.5,{agent}:0.5",
        description="Who drives in a recording: a behaviour mix where {agent} is the agent of the round before.",
    )
    patience: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default="auto",
        description="A recording is cut after so many steps in a row without a reward above 0; auto is 40, and never "
        "where standing still can be right, as at a red light.",
    )
    anew: bool | None = Field(
        default=None,
        description="Train the world model of a round anew, on all recordings alike, rather than further. None does so "
        "in a run that begins with nothing.",
    )
    clone_fraction: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="From round 1 on, a policy begins as a clone of this share of the rounds' recordings, the best by "
        "return; 0: it does not.",
    )
    model_updates: int = Field(
        default=700,
        ge=1,
        description="Updates of a world model that is trained further; with a frozen encoder, where it was trained so.",
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
        default=False,
        description="Go on from the agent of the round before, rather than from the initial one or from nothing; not "
        "with anew.",
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
        number: 0 for the agent of the first world model.
        recorded_steps: Simulator steps recorded in it.
        selection_steps: Simulator steps of the episodes that chose among its checkpoints.
        data_return: Mean return of what it recorded; ``None`` where it did not.
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
    model: str | Path | None,
    data: Sequence[str | Path],
    *,
    out: str | Path,
    config: RoundsConfig,
    agent_config: AgentConfig,
    simulator: str | None = None,
    simulator_kwargs: Mapping[str, Any] | None = None,
    initial: str | Path | None = None,
    device: str = "auto",
    max_episode_steps: int | None = None,
    worker_connections: Sequence[Mapping[str, Any]] | None = None,
    progress: bool = True,
    track: str = "tensorboard",
) -> RoundsSummary:
    """Alternate recording with the current policy, training the world model further, and training in its dream.

    Args:
        model: Folder of the world model to begin with; ``None`` begins with nothing.
        data: The datasets that it was trained on, none without a model; each round's recording joins them.
        out: The run's folder, which becomes the last round's agent.
        config: Settings of the rounds.
        agent_config: Settings of every agent.
        simulator: Without a model: short name or Gymnasium id of the simulator.
        simulator_kwargs: Without a model: further arguments of the simulator (frame size, action repeat, ...).
        initial: Folder of an agent, such as a clone, whose policy each agent goes on from; with ``continue_agent`` the
            first one alone. ``None`` trains them anew. Not where world models are trained anew.
        device: Device for training.
        max_episode_steps: Steps after which recorded and selecting episodes are cut; ``None``: the simulator's own.
        worker_connections: For each process that records, where its simulator runs, as for ``collect``; the first one's
            serves the selecting episodes as well. Not recorded: a run may go on elsewhere.
        progress: Show progress bars.
        track: Where the numbers can be watched: one of :data:`wm_gym.training.TRACKERS` (docs/tracking.md).

    Raises:
        ConfigError: A setting is out of range or does not go with the others, there are not as many connections as
            workers, or the tracker cannot be used.
        DatasetError: A dataset is missing or damaged.
        SimulatorError: There is no such simulator.
        BundleError: The world model cannot be used.
        TrainingError: ``out`` holds something else or other settings, or a training diverged.

    Side effects: writes ``out``, and all that its parts do.
    """
    check_tracker(track)
    if (model is None) is not (simulator is not None) or (model is None) is not (len(data) == 0):
        raise ConfigError(
            "rounds begin with a world model and its data, or with a simulator; give the one or the other."
        )
    return _Rounds(
        Path(out),
        model,
        list(data),
        config,
        agent_config,
        simulator=simulator,
        simulator_kwargs=dict(simulator_kwargs or {}),
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
    model: str | None
    data: tuple[str, ...]
    max_episode_steps: int | None
    simulator: str | None = None
    simulator_kwargs: dict[str, Any] = Field(default_factory=dict)


@dataclass
class _Rounds:
    """One run in one folder."""

    out: Path
    given_model: str | Path | None
    given_data: list[str | Path]
    config: RoundsConfig
    agent_config: AgentConfig
    simulator: str | None
    simulator_kwargs: dict[str, Any]
    initial: str | None
    device: str
    limit: int | None
    connections: list[dict[str, Any]]
    progress: bool
    track: str

    def __post_init__(self) -> None:
        config = self.config
        if self.given_model is None:
            assert self.simulator is not None
            self.simulator_id = self.simulator
            self.whole_config = load_config(config.world_model, (*config.model_changes, f"training.seed={config.seed}"))
            if config.first_steps >= config.steps:
                raise ConfigError(
                    f"the first recording takes all of the {config.steps} steps (first_steps={config.first_steps}); "
                    "give more steps, or fewer for the first."
                )
            size = self.whole_config.model.frame_size
            self.recorded_kwargs = {"frame_size": size, **self.simulator_kwargs}
            with closing(make_simulator(self.simulator_id, **{**self.recorded_kwargs, **self.connections[0]})) as env:
                shown = describe_simulator(env).frame_size
            if shown != size:
                raise ConfigError(
                    f"the simulator's frames are {shown[0]}x{shown[1]}, but the world model {config.world_model!r} has "
                    f"{size[0]}x{size[1]}; choose another world_model, or leave out the frame size."
                )
        else:
            manifest = read_manifest(self.given_model)[1]
            spec = manifest.simulator
            self.simulator_id = spec.id
            self.recorded_kwargs = {"frame_size": spec.frame_size, **spec.kwargs}
            self.whole_config = _config_of(manifest.provenance)
        self.anew = self.given_model is None if config.anew is None else config.anew
        patience = config.patience
        if patience == "auto":
            patience = None if may_stand(self.simulator_id) else _PATIENCE
        self.config = config.model_copy(update={"patience": patience})
        for connection in self.connections:
            split_connection(self.simulator_id, {}, connection)  # refuses what it has not
        self.model_config = self.whole_config if self.anew else _further(self.whole_config, self.config)
        # What is wrong with these is said early.
        self._check_beginnings()
        if self.given_data:
            open_training_data(self.given_data, self.model_config.training.validation_fraction, scenes=scene_settings)
        if self.initial is not None:
            load_agent(self.initial, "cpu")

    def _check_beginnings(self) -> None:
        """Refuse what an agent cannot begin from."""
        config = self.config
        if config.clone_fraction > 0 and self.agent_config.algo != "ppo":
            raise ConfigError(
                f"only a ppo policy can begin as a clone, not one of {self.agent_config.algo}; leave out "
                "clone_fraction, or choose ppo."
            )
        if self.anew and (config.continue_agent or self.initial is not None):
            raise ConfigError(
                "a policy sees through its world model and cannot go on in one that is trained anew; leave out the "
                "initial agent and continue_agent, or set anew=false."
            )
        if config.clone_fraction > 0 and config.continue_agent:
            raise ConfigError(
                "an agent begins either as a clone or as the agent of the round before; leave out clone_fraction or "
                "continue_agent."
            )

    def run(self) -> RoundsSummary:
        settings = _Settings(
            rounds=self.config,
            agent=self.agent_config,
            initial=self.initial,
            model=None if self.given_model is None else str(self.given_model),
            data=tuple(str(folder) for folder in self.given_data),
            max_episode_steps=self.limit,
            simulator=self.simulator,
            simulator_kwargs=self.simulator_kwargs,
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
        recorded, data_return = 0, None
        if number > 0 or self.given_model is None:
            recorded, data_return = self._record(number, finished)
            self._train_model(number)
        agent, driven = self._train_agent(number, self._model(number))
        return Round(number, recorded, driven, data_return, agent.dream_return, agent.score)

    def _record(self, number: int, finished: list[Round]) -> tuple[int, float]:
        patience = self.config.patience
        assert patience != "auto"
        if number == 0:
            share, behaviour = self.config.first_steps, self.config.first_behaviour
        else:
            left = self.config.steps - sum(entry.recorded_steps for entry in finished)
            share = max(1, left // (self.config.rounds + 1 - number))
            behaviour = self.config.behaviour.replace(_AGENT, str(self._folder(number - 1) / "agent"))
        summary = collect(
            self._folder(number) / "data",
            self.simulator_id,
            make_behaviour=make_behaviour,
            frames=share,
            behaviour=behaviour,
            worker_kwargs=self.connections,
            seed=self.config.seed + number,
            simulator_kwargs=self.recorded_kwargs,
            max_episode_steps=self.limit,
            patience=patience,
            progress=self.progress,
        )
        return summary.num_steps, summary.mean_return

    def _train_model(self, number: int) -> None:
        # Without a model to go on from, that of round 0 is trained as a whole.
        previous = None if self.anew or number == 0 else self._model(number - 1)
        config = self.whole_config if previous is None else self.model_config
        training = config.training
        config = config.model_copy(update={"training": training.model_copy(update={"seed": training.seed + number})})
        shares = None if previous is None else self._shares(number)
        data = open_training_data(self._datasets(number), training.validation_fraction, shares, scenes=scene_settings)
        WorldModelTrainer(
            config,
            data.simulator,
            data.train,
            data.validation,
            self._model(number),
            data_info=data.info,
            data_metrics=data.metrics,
            device=self.device,
            initial=None if previous is None else WorldModel.from_pretrained(previous),
            progress=self.progress,
            track=self.track,
        ).run()

    def _train_agent(self, number: int, model: str | Path) -> tuple[TrainingSummary, int]:
        config = self.agent_config
        if number > 0 and self.config.agent_steps is not None:
            config = config.model_copy(update={"steps": self.config.agent_steps})
        if number < min(self.config.unlimited_agents, self.config.rounds):
            config = config.model_copy(update={"reward_limit": None})
        initial = self._initial_agent(number, model)
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

    def _initial_agent(self, number: int, model: str | Path) -> str | Path | None:
        """Whose policy the agent of a round goes on from."""
        if number > 0 and self.config.clone_fraction > 0:
            clone, settings = self._folder(number) / "clone", self.agent_config
            own = {"net_arch": settings.net_arch, "action": settings.action, "activation": settings.activation}
            clone_behaviour(
                self._recordings(number),
                model,
                out=clone,
                steps=_CLONE_UPDATES,
                seed=settings.seed,
                top_fraction=self.config.clone_fraction,
                config=make_cloning_config({name: value for name, value in own.items() if value is not None}),
                device=self.device,
                progress=self.progress,
                track=self.track,
            )
            return clone
        return self._folder(number - 1) / "agent" if number > 0 and self.config.continue_agent else self.initial

    def _model(self, number: int) -> str | Path:
        """The world model of a round."""
        if number == 0 and self.given_model is not None:
            return self.given_model
        return self._folder(number) / "model"

    def _recordings(self, number: int) -> list[Path]:
        """What the agents have driven until a round."""
        return [self._folder(earlier) / "data" for earlier in range(1, number + 1)]

    def _datasets(self, number: int) -> list[str | Path]:
        """All that the world model of a round has learned from."""
        first = self.given_data if self.given_model is not None else [self._folder(0) / "data"]
        return [*first, *self._recordings(number)]

    def _shares(self, number: int) -> list[float]:
        """How much each dataset is drawn from: within the given and within the recorded ones, by their steps."""
        steps = [Dataset.open(folder).num_steps for folder in self._datasets(number)]
        first = len(steps) - number
        given, recorded = steps[:first], steps[first:]
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


def _config_of(provenance: dict[str, Any]) -> Config:
    """The configuration that a world model was trained with."""
    values = provenance.get("config")
    if values is None:
        raise ConfigError(
            "this world model does not say how it was trained, so it cannot be trained further; train one with "
            "`wm-gym train-model`."
        )
    return parse_config(Config, values, origin="the configuration that the world model was trained with")


def _further(config: Config, rounds: RoundsConfig) -> Config:
    """The configuration for training a model further in a round, from the one that it was trained with."""
    is_latent = config.training.latent.steps > 0
    phase = "training.latent" if is_latent else "training"
    changes = (
        *(("training.steps=0",) if is_latent else ()),
        f"{phase}.steps={rounds.model_updates}",
        f"{phase}.learning_rate={rounds.model_learning_rate}",
        f"{phase}.warmup_steps={max(1, rounds.model_updates // 20)}",
        f"training.validate_every={rounds.model_updates}",
    )
    return parse_config(Config, config.model_dump(mode="json"), changes, origin="the world model's configuration")
