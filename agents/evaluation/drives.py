"""The episodes of an evaluation, one after another or in several processes.

An episode whose simulator was lost is no result: it is driven again.
"""

from __future__ import annotations

import math
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from wm_gym.actions import FloatArray
from wm_gym.agents.behaviours import make_behaviour
from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.evaluation.reality_gap import DriveGap, DriveSteps, measure_drive
from wm_gym.agents.evaluation.video import VideoWriter
from wm_gym.agents.policies.observers import LatentObserver
from wm_gym.data_collection.recording.behaviours import Behaviour
from wm_gym.data_collection.recording.driving import Step, drive_episode
from wm_gym.data_collection.recording.worker import scalar_infos, text_infos
from wm_gym.data_collection.recording.worker_pool import Losses, ProcessPool
from wm_gym.envs.dream_model import DreamModel
from wm_gym.envs.simulators import has_connection, make_simulator_from_spec
from wm_gym.errors import OutputError, SimulatorError, SimulatorLostError, WMGymError
from wm_gym.simulator import SimulatorSpec
from wm_gym.state import LatentState

_DEFAULT_FPS = 20.0
_INTERRUPT_EVERY_S = 0.5


@dataclass(frozen=True)
class DriveSettings:
    """What every process of an evaluation needs to know.

    Attributes:
        driver: Name of a behaviour, folder of an agent, or ``"bundled"``; ``None`` where each episode tells.
        is_agent: Whether it is an agent.
        simulator: The simulator.
        device: Where an agent computes.
        max_episode_steps: Steps after which an episode is cut, or ``None``.
        video: Where to write the first episode, or ``None``.
        gap_horizon: Steps over which an agent's dreams are compared with its episodes, or ``None`` for no comparison.
        horizons: Numbers of steps over whose beginning of each episode rewards are summed, too.
        connection: Where this process's simulator runs.
        reset_options: Options of the simulator's reset for each episode, by its number, or none.
    """

    driver: str | None
    is_agent: bool
    simulator: SimulatorSpec
    device: str
    max_episode_steps: int | None
    video: Path | None
    gap_horizon: int | None = None
    horizons: Sequence[int] = ()
    connection: Mapping[str, Any] = field(default_factory=dict)
    reset_options: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class DriveResult:
    """One episode.

    Attributes:
        index: Number of the episode.
        return_: Sum of its rewards.
        length: Its steps.
        horizon_returns: Sum of the rewards of its first steps, for each of the settings' horizons.
        terminated: Whether the simulator ended it.
        info_means: Mean over its steps of every number in ``info``.
        info_last: Their values at the last step.
        texts: Every text in ``info`` at the last step, such as how the episode ended.
        gap: Dream against simulator, or ``None`` where it was not asked for.
        video_problem: Why its video could not be written, in one sentence.
        wall_s: Seconds that it took.
    """

    index: int
    return_: float
    length: int
    horizon_returns: list[float]
    terminated: bool
    info_means: dict[str, float]
    info_last: dict[str, float]
    texts: dict[str, str]
    gap: DriveGap | None = None
    video_problem: str | None = None
    wall_s: float = 0.0


class _StateRecorder(LatentObserver):
    """Keeps the latent states of an episode, one for each frame."""

    def __init__(self, model: DreamModel) -> None:
        super().__init__(model)
        self.states: list[LatentState] = []

    def observation(self, observed: Any, last_action: FloatArray | None) -> FloatArray:
        """The features, as the base class gives them; the first frame of an episode forgets the episode before."""
        features = super().observation(observed, last_action)
        assert self.state is not None
        if last_action is None:
            self.states = []
        self.states.append(self.state)
        return features


def run_drives(
    settings: DriveSettings, seeds: Mapping[int, int], connections: Sequence[Mapping[str, Any]]
) -> Iterator[DriveResult]:
    """Drive episodes; results come as they are ready.

    Args:
        settings: Driver and simulator.
        seeds: Seed of each episode, by its number.
        connections: Where the simulator of each process runs; one alone drives in this process.

    Raises:
        WMGymError: As raised by simulator or driver.
        SimulatorError: A process died.
        SimulatorLostError: No simulator can be reached any more.
    """
    if len(connections) > 1 and len(seeds) > 1:
        with DrivePool(settings, connections[: len(seeds)]) as pool:
            yield from pool.run(seeds)
    else:
        yield from _run_here(replace(settings, connection=connections[0]), seeds)


def _run_here(settings: DriveSettings, seeds: Mapping[int, int]) -> Iterator[DriveResult]:
    losses = Losses(1)
    with _one_thread(), closing(_Cockpit(settings)) as cockpit:
        for index, seed in seeds.items():
            result: DriveResult | None = None
            while result is None:
                try:
                    result = cockpit.drive(index, seed)
                except SimulatorLostError as error:
                    losses.add(0, index, str(error), _describe(index, seed))
            losses.finished(0)
            yield result
    _warn_of(losses)


def _warn_of(losses: Losses) -> None:
    for sentence in losses.given_up:
        warnings.warn(sentence, stacklevel=3)


def _describe(index: int, seed: int) -> str:
    return f"episode {index} (seed {seed})"


class _Stopped(Exception):  # noqa: N818 - no error, but the way out of an episode
    """The evaluation has ended, or its process is gone."""


class _Cockpit:
    """The simulator and the driver of one process, made once.

    Args:
        settings: Driver and simulator.
        check_open: Called before every step; may raise to give the episode up.
    """

    def __init__(self, settings: DriveSettings, check_open: Callable[[], None] = lambda: None) -> None:
        self.settings = settings
        self.check_open = check_open
        self.driver: str | None = None
        if settings.driver is not None:
            self._take_driver(settings.driver)
        self.env: gym.Env[Any, Any] = make_simulator_from_spec(settings.simulator, connection=settings.connection)

    def _take_driver(self, driver: str) -> None:
        settings = self.settings
        self.driver = driver
        self.behaviour: Behaviour = (
            Driver.load(driver, settings.device) if settings.is_agent else make_behaviour(driver, settings.simulator)
        )
        self.recorder: _StateRecorder | None = None
        if settings.gap_horizon is not None and isinstance(self.behaviour, Driver):
            self.recorder = self.behaviour.observer = _StateRecorder(self.behaviour.model)

    def drive(self, index: int, seed: int, driver: str | None = None) -> DriveResult:
        """One episode, by another driver of the same kind if one is given; the first is filmed if a video is wanted."""
        if driver is not None and driver != self.driver:
            self._take_driver(driver)
        if index > 0 or self.settings.video is None:
            return self._drive(self.env, index, seed, None)
        # A server simulates for one environment only; there, the frames make the film.
        is_alone = has_connection(self.settings.simulator.id)
        can_render = not is_alone and "rgb_array" in (self.env.metadata.get("render_modes") or ())
        filmed = make_simulator_from_spec(self.settings.simulator, render_mode="rgb_array") if can_render else self.env
        step_s = self.settings.simulator.step_s
        try:
            result: DriveResult | None = None
            try:
                with VideoWriter(self.settings.video, 1.0 / step_s if step_s > 0 else _DEFAULT_FPS) as video:
                    result = self._drive(filmed, index, seed, video)
            except OutputError as error:
                if result is None:
                    raise
                result = replace(result, video_problem=str(error))  # the episode counts without its film
            return result
        finally:
            if filmed is not self.env:
                filmed.close()

    def _drive(self, env: gym.Env[Any, Any], index: int, seed: int, video: VideoWriter | None) -> DriveResult:
        started = time.monotonic()
        options = self.settings.reset_options
        steps = drive_episode(
            env,
            self.behaviour,
            seed=seed,
            behaviour_seed=seed,
            max_steps=self.settings.max_episode_steps,
            options=options[index] if options else None,
            check_open=self.check_open,
        )
        _film(video, env, next(steps))
        actions: list[FloatArray] = []
        rewards: list[float] = []
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        last: dict[str, float] = {}
        for step in steps:
            actions.append(step.action)
            rewards.append(step.reward)
            for name, value in scalar_infos(step.info).items():
                if math.isfinite(value):
                    sums[name] = sums.get(name, 0.0) + value
                    counts[name] = counts.get(name, 0) + 1
                    last[name] = value
            _film(video, env, step)
        wall_s = time.monotonic() - started
        return DriveResult(
            index=index,
            return_=sum(rewards),
            length=len(rewards),
            horizon_returns=[sum(rewards[:horizon]) for horizon in self.settings.horizons],
            terminated=step.terminated,
            info_means={name: value / counts[name] for name, value in sums.items()},
            info_last=last,
            texts=text_infos(step.info),
            gap=self._measure_gap(actions, rewards, seed, terminated=step.terminated),
            wall_s=wall_s,
        )

    def _measure_gap(
        self, actions: list[FloatArray], rewards: list[float], seed: int, *, terminated: bool
    ) -> DriveGap | None:
        """Compare the episode that has just ended with dreams that begin in it, if that is wanted."""
        horizon = self.settings.gap_horizon
        if self.recorder is None or horizon is None:
            return None
        assert isinstance(self.behaviour, Driver)
        states = LatentState.cat(self.recorder.states)
        steps = DriveSteps(states, np.stack(actions), np.asarray(rewards, np.float32), terminated)
        return measure_drive(self.behaviour, steps, horizon, seed)

    def close(self) -> None:
        """Close the simulator."""
        self.env.close()


def _film(video: VideoWriter | None, env: gym.Env[Any, Any], step: Step) -> None:
    if video is None:
        return
    picture = env.render() if env.render_mode == "rgb_array" else None
    video.add(np.asarray(step.observed.image if picture is None else picture, np.uint8))


class DrivePool:
    """Processes that drive, kept from one set of episodes to the next.

    Args:
        settings: Driver and simulator.
        connections: Where the simulator of each process runs.
    """

    def __init__(self, settings: DriveSettings, connections: Sequence[Mapping[str, Any]]) -> None:
        self._losses = Losses(len(connections))
        self._pool = ProcessPool(_work, [replace(settings, connection=connection) for connection in connections])
        self._done = 0
        self._is_interrupted = threading.Event()

    def interrupt(self) -> None:
        """Make a :meth:`run` in another thread stop its processes and end with an exception."""
        self._is_interrupted.set()

    def run(self, seeds: Mapping[int, int], driver: str | None = None) -> Iterator[DriveResult]:
        """Drive episodes; see :func:`run_drives`.

        Args:
            seeds: Of the episodes, by their numbers.
            driver: Another one than the settings', of the same kind.
        """
        while self._pool.free_places:
            self._pool.start_one().is_ready = True  # what it is given waits in the pipe
        try:
            yield from self._run(seeds, driver)
            self._done += len(seeds)
        except BaseException:
            self._pool.stop()  # others may be on their way still, and would report to the next call
            raise

    def _run(self, seeds: Mapping[int, int], driver: str | None) -> Iterator[DriveResult]:
        pool, losses = self._pool, self._losses
        waiting = list(seeds)
        missing = len(seeds)
        while missing:
            # What one process has lost goes to another one, if that has nothing else to do.
            for worker in sorted(pool.running, key=lambda worker: losses.in_a_row(worker.place)):
                if worker.task is None and waiting:
                    following = waiting.pop(0)
                    worker.give(following, (following, seeds[following], driver))
            if self._is_interrupted.is_set():
                raise _Stopped
            for worker, report in list(pool.reports(_INTERRUPT_EVERY_S)):
                if report is None:
                    raise SimulatorError(
                        f"a process of the evaluation ended with {worker.ended}; run it again "
                        "with fewer workers, as the memory may not suffice."
                    )
                if isinstance(report, Exception) and not isinstance(report, SimulatorLostError):
                    raise report
                index, worker.task = worker.task, None
                assert index is not None
                if isinstance(report, SimulatorLostError):
                    waiting.insert(0, index)
                    name = _describe(index, seeds[index])
                    if losses.add(worker.place, self._done + index, str(report), name):
                        pool.remove(worker, close_place=True)
                    continue
                losses.finished(worker.place)
                missing -= 1
                yield report

    def close(self) -> None:
        """End the processes, before their next step."""
        self._pool.stop()

    def __enter__(self) -> DrivePool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if kind is None:
            _warn_of(self._losses)


def _work(settings: DriveSettings, connection: Connection) -> None:
    """A worker: drives the episodes that arrive until the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the main one decides
    torch.set_num_threads(1)
    try:
        with closing(_Cockpit(settings, lambda: _check_open(connection))) as cockpit:
            while True:
                index, seed, driver = connection.recv()
                try:
                    connection.send(cockpit.drive(index, seed, driver))
                except SimulatorLostError as error:
                    connection.send(error)
    except (_Stopped, EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except WMGymError as error:
        connection.send(error)
    except Exception:
        connection.send(RuntimeError(f"an evaluation process failed:\n{traceback.format_exc()}"))


def _check_open(connection: Connection) -> None:
    if connection.poll():  # nothing is sent during an episode: readable means closed
        raise _Stopped


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for torch, as in the worker processes: sums over more of them may differ in the last digit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
