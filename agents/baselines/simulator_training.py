"""Training an agent in the simulator itself, from pixels and without a world model: the baseline of dream training.

A run is a folder: ``run_config.yaml`` (the resolved configuration), ``run.json`` (simulator, versions),
``metrics.jsonl`` (the record), ``tensorboard/``, ``checkpoints/``, and at the end the agent's own files, so that the
folder is what :meth:`Driver.load` reads. Running again on the same folder resumes after the last rollout that was
saved. The simulators' episodes do not survive a stop: a resumed run begins new ones, so that it continues the training,
but not to the last digit.

Every episode is on a track whose seed is below those held out for evaluation.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor, VecNormalize

from wm_gym.agents.bundles.folder import MANIFEST, is_finished_agent, save_pixel_agent
from wm_gym.agents.learning import RoundCallback, RoundTrainer, Snapshot, derived_seed
from wm_gym.agents.policies.network import pixel_policy
from wm_gym.agents.policies.observers import PixelObserver
from wm_gym.agents.policies.pixel_config import PixelAgentConfig, make_pixel_config, resolve_pixel_config
from wm_gym.data_collection.recording.driving import check_not_lost
from wm_gym.data_collection.recording.plan import HELD_OUT_FROM
from wm_gym.data_collection.recording.worker_pool import connection_of_each
from wm_gym.device import resolve_device
from wm_gym.envs.simulators import has_connection, make_simulator_from_spec, resolve_simulator
from wm_gym.errors import ConfigError, WMGymError
from wm_gym.frames import Frame
from wm_gym.precision import single_precision
from wm_gym.progress import progress_bar
from wm_gym.run_folder import RunFolder, restoring
from wm_gym.simulator import SimulatorSpec
from wm_gym.training.checkpoint import CheckpointClock, load_checkpoint, save_checkpoint
from wm_gym.training.log import MetricsLog
from wm_gym.training.trackers import check_tracker

_KIND = "wm_gym.simulator_training"
_RECENT_EPISODES = 20


@dataclass(frozen=True)
class SimulatorTrainingSummary:
    """What a training has come to.

    Attributes:
        path: The agent's folder.
        steps: Decisions in all.
        frames: Simulator frames that they took.
        mean_return: Mean return of the last 20 episodes, with exploration; ``None`` where none ended.
        was_finished: Whether the folder held the finished agent already.
        wall_s: Seconds that this call took.
    """

    path: Path
    steps: int
    frames: int
    mean_return: float | None
    was_finished: bool
    wall_s: float


@single_precision()
def train_in_simulator(
    simulator: str | SimulatorSpec,
    *,
    out: str | Path,
    steps: int | None = None,
    seed: int | None = None,
    config: PixelAgentConfig | None = None,
    workers: int = 1,
    simulator_kwargs: Mapping[str, Any] | None = None,
    connections: Sequence[Mapping[str, Any]] | None = None,
    device: str = "auto",
    progress: bool = True,
    track: str = "tensorboard",
) -> SimulatorTrainingSummary:
    """Train PPO from pixels in a simulator and write the agent as a folder.

    Args:
        simulator: Short name, Gymnasium id or record.
        out: The run's folder, which becomes the agent.
        steps: Overrides ``config.steps``: decisions in all.
        seed: Overrides ``config.seed``.
        config: All settings.
        workers: 1 steps the simulators in turn in this process; ``config.num_envs`` gives each a process of its own.
            The result is the same.
        simulator_kwargs: Arguments of the simulator, with ``frame_size`` and ``action_repeat``.
        connections: For each of the ``config.num_envs`` simulators, where it runs: one server each. They are not
            recorded: a run may go on elsewhere.
        device: Where the policy learns: ``"auto"``, ``"cpu"``, ``"cuda"``, ….
        progress: Show a progress bar.
        track: Where the numbers can be watched: one of :data:`wm_gym.training.TRACKERS` (docs/tracking.md).

    Returns:
        Where the agent is, how many frames it took and how its training went.

    Raises:
        ConfigError: A setting is unknown, out of range, or does not fit the simulator, or the tracker cannot be used.
        SimulatorError: The simulator cannot be made.
        SimulatorLostError: The simulator was lost; run again to go on.
        TrainingError: The folder holds something else, or training diverged; the last good checkpoint is kept.
        KeyboardInterrupt: The user stopped it; a checkpoint has been written.

    Side effects: writes ``out``; seeds the global generators of Python, NumPy and PyTorch; starts ``workers`` processes
    if more than one.
    """
    started = time.monotonic()
    check_tracker(track)
    overrides = {"steps": steps, "seed": seed}
    given = config or PixelAgentConfig()
    chosen = make_pixel_config(
        {**given.model_dump(), **{name: value for name, value in overrides.items() if value is not None}}
    )
    spec, places = resolve_simulator(simulator, simulator_kwargs or {}, connection_of_each(1, connections or None))
    resolved = resolve_pixel_config(chosen, spec)
    _check_workers(workers, resolved.num_envs, spec, places)
    computes_on = resolve_device(device)
    record = {"simulator": spec.model_dump(mode="json")}
    with RunFolder(out, _KIND, resolved, record, identity={"simulator": "with another simulator"}).held() as folder:
        was_finished = is_finished_agent(folder.path)
        if not was_finished:
            _train(folder, resolved, spec, places, workers=workers, device=computes_on, progress=progress, track=track)
        metrics = folder.read_metrics()
    return SimulatorTrainingSummary(
        path=folder.path,
        steps=int(metrics["steps"]),
        frames=int(metrics["frames"]),
        mean_return=metrics["mean_return"],
        was_finished=was_finished,
        wall_s=time.monotonic() - started,
    )


def _check_workers(workers: int, num_envs: int, spec: SimulatorSpec, connections: Sequence[Mapping[str, Any]]) -> None:
    if workers not in (1, num_envs):
        raise ConfigError(
            f"workers={workers} is neither 1, for all simulators in one process, nor num_envs={num_envs}, for one "
            "process each; give one of the two, or set num_envs as well."
        )
    servers = max(1, len(connections))
    if has_connection(spec.id) and num_envs != servers:
        raise ConfigError(
            f"{spec.id} runs on a server, which simulates for one environment only; set num_envs={servers}, the number "
            "of servers, to train there."
        )


def _train(
    folder: RunFolder,
    config: PixelAgentConfig,
    spec: SimulatorSpec,
    connections: Sequence[Mapping[str, Any]],
    *,
    workers: int,
    device: torch.device,
    progress: bool,
    track: str,
) -> None:
    """Train from the last checkpoint, or from the beginning, to the end, and save the agent."""
    last_file = folder.checkpoints / "last.pt"
    with PixelTrainer(
        spec, config, workers=workers, connections=connections, device=device, progress=progress
    ) as trainer:
        if last_file.exists():
            state = load_checkpoint(last_file, folder.contents)
            with restoring(last_file):
                trainer.restore(state)
        with MetricsLog(folder.path, trainer.steps + 1, config, step_key="steps", track=track) as log:
            _train_rounds(trainer, log, last_file, folder.contents)
        metrics = {
            "steps": trainer.steps,
            "frames": trainer.frames,
            "mean_return": trainer.mean_return,
            "episodes": trainer.episodes,
            "trained_s": round(trainer.trained_s, 1),
        }
        folder.install(lambda path: save_pixel_agent(path, trainer.policy, spec, config, metrics), MANIFEST)


def _train_rounds(trainer: PixelTrainer, log: MetricsLog, last_file: Path, run: Mapping[str, Any]) -> None:
    clock = CheckpointClock(trainer.config.checkpoint_overhead)
    good = trainer.snapshot()
    try:
        while trainer.steps < trainer.config.steps:
            report = trainer.train_round()
            log.write("train", trainer.steps, report)
            good = trainer.snapshot()
            if clock.is_due():
                began = time.monotonic()
                save_checkpoint(last_file, good, run)
                clock.record(began)
    except (KeyboardInterrupt, WMGymError):
        save_checkpoint(last_file, good, run)
        raise
    save_checkpoint(last_file, good, run)


class PixelTrainer(RoundTrainer):
    """Trains PPO from pixels, rollout by rollout, and counts the simulator's frames; leaves no files.

    The rollouts are nearly equal in length, about ``config.n_steps`` steps of each simulator, and together they have
    exactly ``config.steps`` decisions.

    Args:
        simulator: The record of the simulator.
        config: The settings; resolved here where they are not yet.
        workers: Processes for the simulators: 1 or ``config.num_envs``.
        connections: Where each of the simulators runs, where they need to be told.
        device: Where the policy learns.
        progress: Show a progress bar.

    Attributes:
        config: The resolved settings.
        frames: Simulator frames so far.
        episodes: Episodes that ended so far.

    Raises:
        ConfigError: The settings do not fit each other or the simulator.
        SimulatorError: The simulator cannot be made.

    Side effects: seeds the global generators of Python, NumPy and PyTorch.
    """

    _algorithm: PPO
    _env: VecNormalize

    def __init__(
        self,
        simulator: SimulatorSpec,
        config: PixelAgentConfig,
        *,
        workers: int = 1,
        connections: Sequence[Mapping[str, Any]] = (),
        device: str | torch.device = "cpu",
        progress: bool = False,
    ) -> None:
        self.config = config = resolve_pixel_config(config, simulator)
        _check_workers(workers, config.num_envs, simulator, connections)
        self.frames = 0
        self.episodes = 0
        self._round_began = 0
        self._slot_frames = np.zeros(config.num_envs, np.int64)  # of each simulator's episode so far
        self._returns: deque[float] = deque(maxlen=_RECENT_EPISODES)
        self._ends = _rollout_ends(config)
        self._env = VecNormalize(
            VecMonitor(_make_environments(simulator, config, workers, connections)),
            norm_obs=False,
            norm_reward=config.normalise_rewards,
            gamma=config.gamma,
        )
        policy, policy_arguments = pixel_policy(config, self._env.observation_space)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You have specified a mini-batch size", category=UserWarning)
            self._algorithm = PPO(
                policy,
                self._env,
                policy_kwargs=policy_arguments,
                learning_rate=self._learning_rate,
                n_steps=self._ends[0],
                batch_size=config.batch_size,
                n_epochs=config.n_epochs,
                gamma=config.gamma,
                gae_lambda=config.gae_lambda,
                clip_range=config.clip_range,
                ent_coef=config.ent_coef,
                vf_coef=config.vf_coef,
                max_grad_norm=config.max_grad_norm,
                target_kl=config.target_kl,
                use_sde=config.use_sde,
                sde_sample_freq=config.sde_sample_freq,
                device=device,
                seed=config.seed,
            )
        self._algorithm.set_logger(Logger(folder=None, output_formats=[]))
        self._env.seed(derived_seed(config.seed, 0))
        # Where a simulator does not count its frames, an action is taken to last all of its frames.
        self._frames_a_step = int(simulator.kwargs.get("action_repeat", 1))
        self._bar = progress_bar(config.steps, "step", "train-agent", enabled=progress, unit_scale=True)

    @property
    def policy(self) -> BasePolicy:
        """The policy as it is now."""
        return self._algorithm.policy

    @property
    def steps(self) -> int:
        """Decisions so far, summed over the simulators side by side."""
        return self._algorithm.num_timesteps

    @property
    def mean_return(self) -> float | None:
        """Mean return of the last 20 episodes; ``None`` where none ended."""
        return float(np.mean(self._returns)) if self._returns else None

    def train_round(self) -> dict[str, Any]:
        """Drive and learn for one rollout.

        Returns:
            ``ep_rew_mean`` and ``ep_len_mean`` of the episodes that ended (``None`` if none did), ``frames`` (of the
            simulator, so far), ``fps`` (decisions a second), ``wall_s`` (of all rounds), and what PPO reports: losses,
            ``approx_kl``, ``entropy_loss``, ``learning_rate``, ….

        Raises:
            TrainingError: Parameters are no longer finite; the trainer is then of no further use.
            SimulatorLostError: A simulator was lost.
        """
        algorithm, before = self._algorithm, self.steps
        self._round_began = before
        per_env = before // self.config.num_envs
        rollout = next(end for end in self._ends if end > per_env) - per_env
        algorithm.n_steps = algorithm.rollout_buffer.buffer_size = rollout
        watch = _RolloutCallback(self._bar, self._frames_a_step, self._slot_frames)
        values = self._learn(rollout * self.config.num_envs, watch, self.config.seed)
        self.frames += watch.frames
        self._slot_frames = watch.slot_frames
        self.episodes += len(watch.returns)
        self._returns.extend(watch.returns)
        if self.mean_return is not None:
            self._bar.set_postfix(mean_return=f"{self.mean_return:.1f}", refresh=False)
        return {**values, "frames": self.frames}

    def snapshot(self) -> Snapshot:
        """A copy of all that learning has changed."""
        statistics = self._env.ret_rms
        return {
            "steps": self.steps,
            "frames": self.frames,
            "episodes": self.episodes,
            "returns": list(self._returns),
            "wall_s": self.trained_s,
            "updates": self._algorithm._n_updates,
            "reward_statistics": [float(statistics.mean), float(statistics.var), float(statistics.count)],
            "parameters": copy.deepcopy(self._algorithm.get_parameters()),
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot, with new episodes.

        Raises:
            KeyError, RuntimeError, TypeError, ValueError: The snapshot is of another training.
        """
        algorithm, statistics = self._algorithm, self._env.ret_rms
        algorithm.set_parameters(snapshot["parameters"], exact_match=True, device=algorithm.device)
        algorithm.num_timesteps = int(snapshot["steps"])
        algorithm._n_updates = int(snapshot["updates"])
        mean, variance, statistics.count = snapshot["reward_statistics"]
        statistics.mean, statistics.var = np.float64(mean), np.float64(variance)
        self.frames, self.episodes = int(snapshot["frames"]), int(snapshot["episodes"])
        self.trained_s = float(snapshot["wall_s"])
        self._returns.extend(snapshot["returns"])
        self._env.seed(derived_seed(self.config.seed, self.steps))
        self._bar.update(self.steps - self._bar.n)

    def _learning_rate(self, _: float) -> float:
        # Stable-Baselines3's own progress counts from round to round, and each rollout before it is learned from.
        progress = self._round_began / self.config.steps
        return self.config.learning_rate * (1.0 - (1.0 - self.config.final_learning_rate) * progress)


class StackedFrames(gym.Wrapper[Any, Any, Frame, Any]):
    """Gives a simulator the observations that a pixel agent has when it drives, on tracks not held out.

    Args:
        env: A simulator.
        simulator: Its record.
        frame_stack: How many frames the policy sees.
    """

    def __init__(self, env: gym.Env[Frame, Any], simulator: SimulatorSpec, frame_stack: int) -> None:
        super().__init__(env)
        self._observer = PixelObserver(simulator, frame_stack)
        self.observation_space = self._observer.space
        self._tracks = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Start an episode on a track drawn by a generator that ``seed``, where it is given, starts anew."""
        if seed is not None:
            self._tracks = np.random.default_rng(seed)
        frame, info = self.env.reset(seed=int(self._tracks.integers(HELD_OUT_FROM)), options=options)
        return self._observer.observation(frame, None), info

    def step(self, action: Any) -> tuple[Frame, Any, bool, bool, dict[str, Any]]:
        """Step the simulator."""
        frame, reward, terminated, truncated, info = self.env.step(action)
        # One of Stable-Baselines3's two vectors of environments rounds rewards and the other does not.
        rounded = float(np.float32(reward))
        return self._observer.observation(frame, action), rounded, terminated, truncated, info


class _RolloutCallback(RoundCallback):
    """Counts the simulators' frames, too."""

    def __init__(self, bar: Any, frames_a_step: int, slot_frames: NDArray[np.int64]) -> None:
        super().__init__(bar)
        self._frames_a_step = frames_a_step
        self.slot_frames = slot_frames.copy()
        self.frames = 0

    def _on_step(self) -> bool:
        for slot, (done, info) in enumerate(zip(self.locals["dones"], self.locals["infos"], strict=True)):
            check_not_lost(info)
            counted = int(info.get("frames", self.slot_frames[slot] + self._frames_a_step))
            self.frames += counted - int(self.slot_frames[slot])
            self.slot_frames[slot] = 0 if done else counted
        return super()._on_step()


def _make_environments(
    simulator: SimulatorSpec, config: PixelAgentConfig, workers: int, connections: Sequence[Mapping[str, Any]]
) -> VecEnv:
    def make(connection: Mapping[str, Any]) -> gym.Env[Any, Any]:
        env = make_simulator_from_spec(simulator, action=config.action, connection=connection)
        return StackedFrames(env, simulator, config.frame_stack)

    places = connections if len(connections) == config.num_envs else [{}] * config.num_envs
    makers: list[Callable[[], gym.Env[Any, Any]]] = [partial(make, connection) for connection in places]
    return DummyVecEnv(makers) if workers == 1 else SubprocVecEnv(makers)


def _rollout_ends(config: PixelAgentConfig) -> list[int]:
    """The step of each simulator at which each rollout ends."""
    per_env = config.steps // config.num_envs
    rollouts = max(1, round(per_env / config.n_steps))
    return [per_env * (index + 1) // rollouts for index in range(rollouts)]
