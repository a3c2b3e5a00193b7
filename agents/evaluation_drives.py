"""The drives of an evaluation, one after another or in several processes."""

from __future__ import annotations

import math
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from wm_gym.agents.behaviours import make_behaviour
from wm_gym.agents.driver import Driver
from wm_gym.agents.video import VideoWriter
from wm_gym.data_collection.behaviours import Behaviour
from wm_gym.data_collection.worker import scalar_infos
from wm_gym.envs.simulators import make_simulator_from_spec
from wm_gym.errors import SimulatorError, WMGymError
from wm_gym.simulator import SimulatorSpec

_DEFAULT_FPS = 20.0
_STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class DriveSettings:
    """What every process of an evaluation needs to know.

    Attributes:
        driver: Name of a behaviour, folder of an agent, or ``"bundled"``.
        is_agent: Whether it is an agent.
        simulator: The simulator.
        device: Where an agent computes.
        max_episode_steps: Steps after which a drive is cut, or ``None``.
        video: Where to write the first drive, or ``None``.
    """

    driver: str
    is_agent: bool
    simulator: SimulatorSpec
    device: str
    max_episode_steps: int | None
    video: Path | None

    @property
    def name(self) -> str:
        """A short name of the driver."""
        return Path(self.driver).name if self.is_agent else self.driver


@dataclass(frozen=True)
class DriveResult:
    """One drive.

    Attributes:
        index: Number of the episode.
        return_: Sum of its rewards.
        length: Its steps.
        terminated: Whether the simulator ended it.
        info_means: Mean over its steps of every number in ``info``.
        info_last: Their values at the last step.
    """

    index: int
    return_: float
    length: int
    terminated: bool
    info_means: dict[str, float]
    info_last: dict[str, float]


@dataclass(frozen=True)
class _Failure:
    """What went wrong in a worker: an error of this package, or the text of any other one."""

    error: WMGymError | None
    text: str


def run_drives(settings: DriveSettings, seeds: list[int], workers: int) -> Iterator[DriveResult]:
    """Drive one episode for each seed; results come as they are ready.

    Args:
        settings: Driver and simulator.
        seeds: Seed of each episode.
        workers: Number of processes; 1 drives in this one.

    Raises:
        WMGymError: As raised by simulator or driver.
        SimulatorError: A process died.
    """
    if min(workers, len(seeds)) > 1:
        yield from _run_in_processes(settings, seeds, min(workers, len(seeds)))
        return
    with _one_thread(), _Cockpit(settings) as cockpit:
        for index, seed in enumerate(seeds):
            yield cockpit.drive(index, seed)


class _Stopped(Exception):  # noqa: N818 - no error, but the way out of a drive
    """The evaluation has ended, or its process is gone."""


class _Cockpit:
    """The simulator and the driver of one process, made once.

    Args:
        settings: Driver and simulator.
        check_open: Called before every step; may raise to give the drive up.
    """

    def __init__(self, settings: DriveSettings, check_open: Callable[[], None] = lambda: None) -> None:
        self.settings = settings
        self.check_open = check_open
        spec = settings.simulator
        self.behaviour: Behaviour = (
            Driver.load(settings.driver, settings.device)
            if settings.is_agent
            else make_behaviour(settings.driver, spec)
        )
        self.env: gym.Env[Any, Any] = make_simulator_from_spec(spec)

    def drive(self, index: int, seed: int) -> DriveResult:
        """One episode; the first one is filmed if a video is wanted."""
        if index > 0 or self.settings.video is None:
            return self._drive(self.env, index, seed, None)
        can_render = "rgb_array" in (self.env.metadata.get("render_modes") or ())
        filmed = make_simulator_from_spec(self.settings.simulator, render_mode="rgb_array") if can_render else self.env
        step_s = self.settings.simulator.step_s
        try:
            with VideoWriter(self.settings.video, 1.0 / step_s if step_s > 0 else _DEFAULT_FPS) as video:
                return self._drive(filmed, index, seed, video)
        finally:
            if filmed is not self.env:
                filmed.close()

    def _drive(self, env: gym.Env[Any, Any], index: int, seed: int, video: VideoWriter | None) -> DriveResult:
        frame, _ = env.reset(seed=seed)
        self.behaviour.reset(env, seed)
        _film(video, env, frame)
        total, length, terminated, truncated = 0.0, 0, False, False
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        last: dict[str, float] = {}
        while not (terminated or truncated):
            self.check_open()
            frame, reward, terminated, truncated, info = env.step(self.behaviour.act(frame))
            total += float(reward)
            length += 1
            truncated = truncated or length == self.settings.max_episode_steps
            for name, value in scalar_infos(info).items():
                if math.isfinite(value):
                    sums[name] = sums.get(name, 0.0) + value
                    counts[name] = counts.get(name, 0) + 1
                    last[name] = value
            _film(video, env, frame)
        means = {name: value / counts[name] for name, value in sums.items()}
        return DriveResult(index, total, length, bool(terminated), means, last)

    def __enter__(self) -> _Cockpit:
        return self

    def __exit__(self, *_: object) -> None:
        self.env.close()


def _film(video: VideoWriter | None, env: gym.Env[Any, Any], frame: Any) -> None:
    if video is None:
        return
    picture = env.render() if env.render_mode == "rgb_array" else None
    video.add(np.asarray(frame if picture is None else picture, np.uint8))


def _run_in_processes(settings: DriveSettings, seeds: list[int], workers: int) -> Iterator[DriveResult]:
    context = multiprocessing.get_context("spawn")
    waiting = iter(enumerate(seeds))
    running: dict[Connection, SpawnProcess] = {}
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(settings, theirs), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process closes the pipe
            running[ours] = process
            _send_next(ours, waiting)
        missing = len(seeds)
        while missing:
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                try:
                    report = connection.recv()
                except (EOFError, ConnectionResetError) as error:
                    running[connection].join(_STOP_TIMEOUT_S)
                    raise SimulatorError(
                        f"a process of the evaluation ended with exit code {running[connection].exitcode}; run it "
                        "again with fewer workers, as the memory may not suffice."
                    ) from error
                if isinstance(report, _Failure):
                    if report.error is not None:
                        raise report.error
                    raise RuntimeError(f"an evaluation process failed:\n{report.text}")
                missing -= 1
                _send_next(connection, waiting)
                yield report
    finally:
        for connection in running:
            connection.close()
        # A worker notices at its next step, and closes its simulator; what does not follow is ended by force.
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for process in running.values():
            process.join(max(0.0, deadline - time.monotonic()))
        for end in (SpawnProcess.terminate, SpawnProcess.kill):
            for process in running.values():
                if process.is_alive():
                    end(process)
                    process.join(1.0)


def _send_next(connection: Connection, waiting: Iterator[tuple[int, int]]) -> None:
    with suppress(BrokenPipeError):  # it died just now, which the next report says
        task = next(waiting, None)
        if task is not None:
            connection.send(task)


def _work(settings: DriveSettings, connection: Connection) -> None:
    """A worker: drives the episodes that arrive until the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the main one decides
    torch.set_num_threads(1)
    try:
        with _Cockpit(settings, lambda: _check_open(connection)) as cockpit:
            while True:
                index, seed = connection.recv()
                connection.send(cockpit.drive(index, seed))
    except (_Stopped, EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except Exception as error:
        text = traceback.format_exc()
        connection.send(_Failure(error if isinstance(error, WMGymError) else None, text))


def _check_open(connection: Connection) -> None:
    if connection.poll():  # nothing is sent during a drive: readable means closed
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
