"""Behaviour cloning: a policy over a world model's features that copies the actions of recorded episodes.

The baseline that has seen the same data and sees through the same model, but never dreams. The policy's mean is the
action that is likeliest to have been recorded, by least squares; the deviation is that of the residuals, so that the
two together are the Gaussian of maximum likelihood.

A run is a folder as that of :mod:`wm_gym.agents.training`, without checkpoints: it takes minutes and repeats exactly,
so that an unfinished one is begun again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from pydantic import BaseModel, ConfigDict, Field
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor
from torch.nn.functional import mse_loss

from wm_gym.actions import ActionName
from wm_gym.agents.bundles.folder import MANIFEST, is_finished_agent, save_agent
from wm_gym.agents.policies.config import AgentConfig
from wm_gym.agents.policies.network import rebuild_policy, set_normalisation, statistics_of
from wm_gym.config import parse_config
from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.episode import Episode
from wm_gym.data_collection.datasets.joined import JoinedDataset
from wm_gym.data_collection.datasets.training_data import open_training_data
from wm_gym.device import resolve_device
from wm_gym.envs.dream_model import DreamModel, resolve_model
from wm_gym.envs.simulators import scene_settings
from wm_gym.errors import BundleError, DatasetError, did_you_mean
from wm_gym.model_check import warn_of_faults
from wm_gym.observation import Observation
from wm_gym.precision import single_precision
from wm_gym.progress import progress_bar
from wm_gym.rollouts import LatentFilter
from wm_gym.run_folder import RunFolder
from wm_gym.training.log import MetricsLog
from wm_gym.training.trackers import check_tracker
from wm_gym.world_model import WorldModel

_KIND = "wm_gym.behaviour_cloning"
_EPISODES_AT_ONCE = 32
_SMALLEST_DEVIATION = 1e-3


class CloningConfig(BaseModel):
    """How a policy is cloned; its network is that of an agent trained in the dream by PPO."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int = Field(default=5_000, ge=1, description="Updates.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="All randomness of the training follows from it.")
    action: ActionName | None = Field(
        default=None, description="Kind of action: None is steer_accel for driving simulators, else native."
    )
    top_fraction: float = Field(
        default=1.0, gt=0, le=1, description="Share of the episodes that are copied: those with the best returns."
    )
    behaviours: tuple[str, ...] = Field(
        default=(),
        description="Copy only what these drivers did, named as the dataset names them, or by shell patterns such as "
        "corrected(*); none: all of them.",
    )
    validation_fraction: float = Field(default=0.1, gt=0, lt=1, description="Share of the episodes held out.")
    validate_every: int = Field(default=100, ge=1, description="Updates between validations.")

    net_arch: tuple[int, ...] = Field(default=(256, 256), description="Hidden layers of the network.")
    activation: Literal["tanh", "relu", "silu"] = Field(default="tanh", description="Between hidden layers.")
    learning_rate: float = Field(default=1e-3, gt=0)
    final_learning_rate: float = Field(
        default=0.0, ge=0, le=1, description="Learning rate at the end, as a share of learning_rate (cosine decay)."
    )
    weight_decay: float = Field(default=1e-4, ge=0)
    batch_size: int = Field(default=256, ge=1)


class Demonstrations(NamedTuple):
    """Recorded steps as a policy takes them.

    Attributes:
        features: ``(N, F)`` float32: the features of the state in which an action was taken.
        actions: ``(N, A)`` float32: that action; of a disturbed episode, the one that its driver would have taken.
    """

    features: Tensor
    actions: Tensor


@dataclass(frozen=True)
class CloningSummary:
    """What a cloning has come to.

    Attributes:
        path: The agent's folder.
        steps: Updates in all.
        episodes: Episodes whose actions were copied.
        validation_loss: Mean square error of the actions on held-out episodes, of the policy that is kept.
        was_finished: Whether the folder held the finished agent already.
        wall_s: Seconds that this call took.
    """

    path: Path
    steps: int
    episodes: int
    validation_loss: float
    was_finished: bool
    wall_s: float


def make_cloning_config(values: Mapping[str, Any] | None = None, changes: Iterable[str] = ()) -> CloningConfig:
    """Make a configuration from a mapping and ``key=value`` changes.

    Raises:
        ConfigError: A key is unknown, or a value is of the wrong type or out of range.
    """
    return parse_config(CloningConfig, dict(values or {}), changes, origin="the cloning's configuration")


@single_precision()
def clone_behaviour(
    data: str | Path | Sequence[str | Path],
    model: str | Path | WorldModel,
    *,
    out: str | Path,
    steps: int | None = None,
    seed: int | None = None,
    top_fraction: float | None = None,
    config: CloningConfig | None = None,
    device: str = "auto",
    progress: bool = True,
    track: str = "tensorboard",
) -> CloningSummary:
    """Clone the policy that drove in a dataset and write it as an agent's folder.

    Args:
        data: The folder or URL of a dataset, or of several that differ in their scenes alone.
        model: A world model's folder, ``"bundled"``, or a model itself, of the dataset's simulator; it does not change.
        out: The run's folder, which becomes the agent.
        steps: Overrides ``config.steps``: updates.
        seed: Overrides ``config.seed``.
        top_fraction: Overrides ``config.top_fraction``: share of the episodes that are copied, the best by return.
        config: All settings.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, …; for a model itself ``"auto"`` is wherever it is.
        progress: Show a progress bar.
        track: Where the numbers can be watched: one of :data:`wm_gym.training.TRACKERS` (docs/tracking.md).

    Returns:
        Where the agent is and how well it copies.

    Raises:
        ConfigError: A setting is unknown or out of range, or the tracker cannot be used.
        DatasetError: The dataset is missing, damaged, too small to split, or of frames or actions that are not those of
            the model.
        BundleError: The world model cannot be used.
        TrainingError: The folder holds something else.

    Side effects: writes ``out``; seeds the global generator of PyTorch.
    """
    started = time.monotonic()
    check_tracker(track)
    overrides = {"steps": steps, "seed": seed, "top_fraction": top_fraction}
    given = config or CloningConfig()
    chosen = make_cloning_config(
        {**given.model_dump(), **{name: value for name, value in overrides.items() if value is not None}}
    )
    recorded = open_training_data(data, chosen.validation_fraction, scenes=scene_settings)
    assert recorded.validation is not None  # the fraction is above 0
    resolve_device(device)  # refuses one that is not there
    loaded = resolve_model(model, device)
    if not isinstance(loaded, WorldModel):
        raise BundleError(f"an agent is saved with its WorldModel, which a {type(loaded).__name__} is not; give one.")
    misfit = loaded.simulator.misfit(recorded.simulator)
    if misfit is not None:
        raise DatasetError(f"{recorded.info['path']}: {misfit}; give the data that it was trained on.")
    _check_drivers(recorded.train, recorded.validation, chosen.behaviours, recorded.info["path"])
    action_format = loaded.simulator.action
    action = action_format.resolve(chosen.action or ("steer_accel" if action_format.kind == "driving" else "native"))
    resolved = chosen.model_copy(update={"action": action})
    record = {"model_fingerprint": loaded.fingerprint, "dataset": recorded.info["fingerprint"]}
    identity = {"model_fingerprint": "in another world model", "dataset": "on other data"}
    with RunFolder(out, _KIND, resolved, record, identity=identity).held() as folder:
        was_finished = is_finished_agent(folder.path)
        if not was_finished:
            warn_of_faults(loaded.metrics)
            _clone_into(folder, recorded.train, recorded.validation, loaded, resolved, progress=progress, track=track)
        metrics = folder.read_metrics()
    return CloningSummary(
        path=folder.path,
        steps=resolved.steps,
        episodes=int(metrics["episodes"]),
        validation_loss=float(metrics["validation_loss"]),
        was_finished=was_finished,
        wall_s=time.monotonic() - started,
    )


def _clone_into(
    folder: RunFolder,
    train: JoinedDataset,
    validation: JoinedDataset,
    model: WorldModel,
    config: CloningConfig,
    *,
    progress: bool,
    track: str,
) -> None:
    assert config.action is not None  # it is resolved
    copied, held_out = (best_episodes(part, config.top_fraction, config.behaviours) for part in (train, validation))
    with progress_bar(len(copied) + len(held_out), "episode", "watch the recorded episodes", enabled=progress) as bar:
        demonstrations = watch(model, train, copied, config.action, bar)
        check = watch(model, validation, held_out, config.action, bar)
    policy, figures = clone(
        demonstrations,
        check,
        config,
        model.simulator.action.space(config.action),
        log_folder=folder.path,
        progress=progress,
        track=track,
    )
    metrics = {
        **figures,
        "episodes": len(copied),
        "actions": len(demonstrations.actions),
        "mean_return": float(np.mean([train.episodes[position].return_ for position in copied])),
        "top_fraction": config.top_fraction,
        "behaviours": list(config.behaviours),
        "validation_episodes": len(held_out),
    }
    recipe = _agent_config(config)
    folder.install(lambda path: save_agent(path, policy, model, recipe, metrics, trained_in="data"), MANIFEST)


def best_episodes(dataset: Dataset | JoinedDataset, fraction: float, behaviours: Collection[str] = ()) -> list[int]:
    """Positions of the share of the episodes with the best returns, at least one, in the order of the dataset.

    Args:
        dataset: The dataset.
        fraction: The share.
        behaviours: Names, or shell patterns, of the drivers whose episodes count; none: those of all.

    Raises:
        DatasetError: There is no such episode.
    """
    drivers = [header.behaviour for header in dataset.episodes]
    chosen = [
        position
        for position, driver in enumerate(drivers)
        if not behaviours or any(_is_named(driver, name) for name in behaviours)
    ]
    if not chosen:
        raise DatasetError(
            f"of the episodes to copy, or of those held out, none was driven by {' or '.join(behaviours)}; change "
            "validation_fraction, or name more behaviours."
        )
    count = math.ceil(len(chosen) * fraction - 1e-9)
    by_return = sorted(chosen, key=lambda position: -dataset.episodes[position].return_)
    return sorted(by_return[: max(1, count)])


@torch.no_grad()
def watch(
    model: DreamModel,
    dataset: Dataset | JoinedDataset,
    positions: Sequence[int],
    action: ActionName,
    bar: Any = None,
) -> Demonstrations:
    """Let a world model watch recorded episodes, with the frames and actions that were recorded.

    Args:
        model: The world model; its states are those that a driver's would be.
        dataset: The dataset.
        positions: Which of its episodes.
        action: The kind of action that the policy is to give.
        bar: A progress bar that counts episodes, or ``None``.

    Returns:
        Every step of these episodes, on the CPU, episode after episode in the order of ``positions``.

    Raises:
        DatasetError: An episode's file is damaged.
    """
    parts: dict[int, Demonstrations] = {}
    # Episodes of like length side by side, so that few of them wait for a longer one.
    by_length = sorted(positions, key=lambda position: -dataset.episodes[position].length)
    for first in range(0, len(by_length), _EPISODES_AT_ONCE):
        chosen = by_length[first : first + _EPISODES_AT_ONCE]
        episodes = [dataset.read_episode(position) for position in chosen]
        for position, episode, features in zip(chosen, episodes, _features_along(model, episodes), strict=True):
            actions = model.simulator.action.from_stored(episode.intended_actions, action)
            parts[position] = Demonstrations(features, torch.from_numpy(np.ascontiguousarray(actions)))
        if bar is not None:
            bar.update(len(chosen))
    ordered = [parts[position] for position in positions]
    return Demonstrations(*(torch.cat(tensors) for tensors in zip(*ordered, strict=True)))


def _features_along(model: DreamModel, episodes: Sequence[Episode]) -> list[Tensor]:
    """For each episode, the longest one first, the features ``(T, F)`` of the states before its actions."""
    features: list[list[Tensor]] = [[] for _ in episodes]
    latent = LatentFilter(model)
    for step in range(len(episodes[0])):
        running = [episode for episode in episodes if len(episode) > step]
        latent.keep(len(running))
        frames, vectors = (
            np.stack([getattr(episode, name)[step] for episode in running]) for name in ("frames", "vectors")
        )
        last_actions = np.stack([episode.actions[step - 1] for episode in running]) if step else None
        state = latent.observe(Observation(frames, vectors), last_actions)
        for row, vector in enumerate(model.features(state).float().cpu()):
            features[row].append(vector)
    return [torch.stack(vectors) for vectors in features]


def clone(
    demonstrations: Demonstrations,
    validation: Demonstrations,
    config: CloningConfig,
    action_space: spaces.Box,
    *,
    log_folder: Path,
    progress: bool = False,
    track: str = "tensorboard",
) -> tuple[ActorCriticPolicy, dict[str, Any]]:
    """Fit a policy to demonstrations.

    The policy is that of the last update, when the learning rate has come down. An earlier one may copy held-out
    actions as well and drive worse by far: docs/experiments.md.

    Args:
        demonstrations: What to copy.
        validation: Held-out steps, by which it is measured how well the policy copies.
        config: The settings.
        action_space: Of the policy.
        log_folder: Where to write ``metrics.jsonl``.
        progress: Show a progress bar.
        track: Where the numbers can be watched: one of :data:`wm_gym.training.TRACKERS` (docs/tracking.md).

    Returns:
        The policy, on the CPU, and ``train_loss`` and ``validation_loss`` (mean square errors of the actions), and
        ``mean_action_loss`` (the validation loss of always taking the mean action).

    Side effects: seeds the global generator of PyTorch.
    """
    torch.manual_seed(config.seed)
    size = demonstrations.features.shape[1]
    space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
    policy = rebuild_policy(_agent_config(config), space, action_space)
    assert isinstance(policy, ActorCriticPolicy)
    set_normalisation(policy, *statistics_of(demonstrations.features))
    learned = [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters()]
    optimiser = torch.optim.AdamW(learned, lr=config.learning_rate, weight_decay=config.weight_decay)
    draws = torch.Generator().manual_seed(config.seed)
    baseline = demonstrations.actions.mean(dim=0).expand_as(validation.actions)
    figures: dict[str, Any] = {"mean_action_loss": float(mse_loss(baseline, validation.actions))}
    running: list[float] = []
    bar = progress_bar(config.steps, "update", "clone", enabled=progress)
    with MetricsLog(log_folder, 0, config, step_key="updates", track=track) as log, bar:
        for update in range(1, config.steps + 1):
            cosine = 0.5 * (1.0 + math.cos(math.pi * (update - 1) / config.steps))
            rate = config.final_learning_rate + (1.0 - config.final_learning_rate) * cosine
            optimiser.param_groups[0]["lr"] = config.learning_rate * rate
            rows = torch.randint(len(demonstrations.actions), (config.batch_size,), generator=draws)
            loss = mse_loss(_mean_actions(policy, demonstrations.features[rows]), demonstrations.actions[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            running.append(float(loss.detach()))
            bar.update()
            if update % config.validate_every and update < config.steps:
                continue
            losses = {"train_loss": float(np.mean(running)), "validation_loss": _loss(policy, validation)}
            running.clear()
            log.write("train", update, losses)
            figures.update(losses)
    _set_deviation(policy, validation)
    policy.set_training_mode(False)
    return policy, figures


def _mean_actions(policy: ActorCriticPolicy, features: Tensor) -> Tensor:
    extracted = policy.extract_features(features, policy.pi_features_extractor)
    assert isinstance(extracted, Tensor)
    means: Tensor = policy.action_net(policy.mlp_extractor.forward_actor(extracted))
    return means


@torch.no_grad()
def _loss(policy: ActorCriticPolicy, steps: Demonstrations) -> float:
    return float(mse_loss(_mean_actions(policy, steps.features), steps.actions))


@torch.no_grad()
def _set_deviation(policy: ActorCriticPolicy, steps: Demonstrations) -> None:
    """Set the deviation of each action to that of the held-out actions from the policy's mean."""
    error = (_mean_actions(policy, steps.features) - steps.actions).square().mean(dim=0).sqrt()
    assert isinstance(policy.log_std, Tensor)
    policy.log_std.copy_(error.clamp_min(_SMALLEST_DEVIATION).log())


def _agent_config(config: CloningConfig) -> AgentConfig:
    """The settings from which the bundle rebuilds the policy; the dream's settings keep their defaults."""
    of_cloning = {"top_fraction", "behaviours", "validation_fraction", "validate_every", "weight_decay"}
    return AgentConfig(algo="ppo", **config.model_dump(exclude=of_cloning))


def _is_named(driver: str, name: str) -> bool:
    return driver == name or fnmatchcase(driver, name)


def _check_drivers(train: JoinedDataset, validation: JoinedDataset, behaviours: Iterable[str], where: str) -> None:
    drivers = sorted({header.behaviour for part in (train, validation) for header in part.episodes})
    for name in behaviours:
        if not any(_is_named(driver, name) for driver in drivers):
            raise DatasetError(
                f"no episode of {where!r} was driven by {name!r}{did_you_mean(name, drivers)}; its drivers are "
                f"{', '.join(drivers)}."
            )
