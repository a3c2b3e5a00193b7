"""A collection worker: a process that records whole episodes, one after another."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import gymnasium as gym
import numpy as np

from wm_gym.data_collection.datasets.codec import FrameCodec
from wm_gym.data_collection.datasets.episode import intention_infos
from wm_gym.data_collection.datasets.episode_file import EpisodeHeader, EpisodeRecorder
from wm_gym.data_collection.datasets.metadata import CollectionSettings
from wm_gym.data_collection.recording.driving import LOST, Step, drive_episode
from wm_gym.data_collection.recording.plan import EpisodePlan
from wm_gym.errors import SimulatorLostError, WMGymError
from wm_gym.simulator import SimulatorSpec

if TYPE_CHECKING:
    from wm_gym.data_collection.recording.behaviours import Behaviour


MakeBehaviour = Callable[[str, SimulatorSpec], "Behaviour"]
"""Makes a behaviour from its name; a module-level function, because it is sent to other processes."""


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to know; sent to it once.

    Attributes:
        simulator: Short name or Gymnasium id, for :func:`wm_gym.envs.simulators.make_simulator`.
        simulator_kwargs: Its keyword arguments.
        make_behaviour: Makes the behaviours that drive.
        collection: Which they are, and when an episode is truncated.
        folder: Where the episode files go; ``None`` puts their bytes into the reports instead.
        codec: How to store frames.
        connection: Where this worker's simulator runs.
    """

    simulator: str
    simulator_kwargs: dict[str, Any]
    make_behaviour: MakeBehaviour
    collection: CollectionSettings
    folder: Path | None
    codec: FrameCodec
    connection: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """A message from a worker.

    Attributes:
        kind: ``"ready"``, ``"done"``, ``"lost"`` (the simulator was lost; the worker is ready again) or ``"failed"``.
        simulator: With ``"ready"``: the record of the simulator.
        header: With ``"done"``: the episode written.
        content: With ``"done"``, where there is no folder to write to: the bytes of the episode's file.
        error: With ``"failed"``: class name of the error.
        message: With ``"failed"`` or ``"lost"``: its message.
    """

    kind: Literal["ready", "done", "lost", "failed"]
    simulator: SimulatorSpec | None = None
    header: EpisodeHeader | None = None
    content: bytes | None = None
    error: str = ""
    message: str = ""


class _Stopped(Exception):  # noqa: N818 - no error, but the way out of an episode
    """The collection has ended, or its process is gone."""


def run_worker(settings: WorkerSettings, connection: Connection) -> None:
    """Make the simulator, then record every episode whose plan arrives, until the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the main one decides
    _use_one_thread()
    env: gym.Env[Any, Any] | None = None
    try:
        from wm_gym.envs.simulators import describe_simulator, make_simulator

        env = make_simulator(settings.simulator, connection=settings.connection, **settings.simulator_kwargs)
        simulator = describe_simulator(env)
        # All at once: an unknown name or a damaged agent shows before anything is recorded.
        behaviours = {name: settings.make_behaviour(name, simulator) for name in settings.collection.behaviours}
        _use_one_thread()
        connection.send(Report("ready", simulator=simulator))
        while True:
            plan = connection.recv()
            try:
                steps = drive_episode(
                    env,
                    behaviours[plan.behaviour],
                    seed=plan.seed,
                    behaviour_seed=plan.behaviour_seed,
                    action=simulator.action,
                    max_steps=settings.collection.max_episode_steps,
                    patience=settings.collection.patience,
                    check_open=lambda: _check_open(connection),
                )
                recorder = record_episode(steps, plan, settings.codec)
            except SimulatorLostError as error:
                connection.send(Report("lost", message=str(error)))
                continue
            if settings.folder is None:
                connection.send(Report("done", content=recorder.content()))
            else:
                connection.send(Report("done", header=recorder.write(settings.folder)))
    except (_Stopped, EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except Exception as error:
        if not isinstance(error, WMGymError):
            traceback.print_exc()  # a defect somewhere: the place matters
        connection.send(Report("failed", error=type(error).__name__, message=str(error)))
    finally:
        if env is not None:
            env.close()


def record_episode(steps: Iterator[Step], plan: EpisodePlan, codec: FrameCodec) -> EpisodeRecorder:
    """Record one episode as it is driven.

    Args:
        steps: What :func:`~wm_gym.data_collection.recording.driving.drive_episode` yields; what it raises is raised.
        plan: Index, seed and behaviour of the episode.
        codec: How to store frames.
    """
    recorder = EpisodeRecorder(codec, next(steps).observed, seed=plan.seed, behaviour=plan.behaviour, index=plan.index)
    for step in steps:
        recorder.add(
            step.action,
            step.observed,
            step.reward,
            terminated=step.terminated,
            truncated=step.truncated,
            infos={**scalar_infos(step.info), **intention_infos(step.intended)},
        )
    return recorder


def scalar_infos(info: Mapping[str, Any]) -> dict[str, float]:
    """The entries of a step's ``info`` that are single real numbers or truth values and describe the episode."""
    scalars = {}
    for name, value in info.items():
        if isinstance(value, Real | np.bool_) and isinstance(name, str) and name != LOST:
            with suppress(OverflowError):  # a whole number beyond any float
                scalars[name] = float(value)
    return scalars


def text_infos(info: Mapping[str, Any]) -> dict[str, str]:
    """The entries of a step's ``info`` that are text, such as how the episode ended."""
    return {name: value for name, value in info.items() if isinstance(value, str)}


def _check_open(connection: Connection) -> None:
    if connection.poll():  # nothing is sent during an episode: readable means closed
        raise _Stopped


def _use_one_thread() -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    cv2.setNumThreads(1)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
