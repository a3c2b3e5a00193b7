"""Collection workers on many hosts: Ray actors, one simulator each, on any host of a cluster.

An actor drives whole episodes and sends the bytes of each finished episode's file to the process that collects, which
alone writes into the dataset: the hosts need no shared file system, and the files are the same as those of local
processes.

One episode's file is the smallest shard there is. Workers do not fill folders of their own to be merged later, as then
neither could a collection be resumed by looking at which numbers are missing, nor would one list of checksums say what
the dataset holds, and the number of workers would show in it.

A host or an actor that dies is a worker that died: another one takes its place on any host, and its episode is driven
again. Every wait for Ray has a limit, but one: a simulator may take its time, and Ray itself tells when the host that
it runs on is gone. Where the head of the cluster is gone, Ray ends this process after a minute; the dataset is whole.
"""

from __future__ import annotations

import importlib
import math
import os
import pickle
import re
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from wm_gym._version import __version__
from wm_gym.data_collection.datasets.episode_file import write_episode_file
from wm_gym.data_collection.recording.ray_worker import Host, RayCollector
from wm_gym.data_collection.recording.worker import Report, WorkerSettings
from wm_gym.data_collection.recording.worker_pool import MAX_RETRIES, STOP_TIMEOUT_S, Worker, WorkerPool
from wm_gym.errors import ConfigError, SimulatorError
from wm_gym.simulator import SimulatorSpec

PLACE_TIMEOUT_S = 300.0
"""How long to wait for a host with a free CPU while there is no worker at all; a cluster may have to start one."""

CONNECT_TIMEOUT_S = 30.0
"""Within this time a Ray cluster has to answer."""

_REACH_TIMEOUT_S = 5.0
_FETCH_TIMEOUT_S = 120.0
_POLL_S = 1.0
_LOOPBACK = "127.0.0.1"
_ONE_MACHINE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_OBJECT_STORE_BYTES = 256 * 2**20
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):(\d{1,5})")

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_RAISED = re.compile(r"[\w.]*(Error|Exception): ")
_REASON = "reason: "
_TRY_TO_CONNECT = f"""
import sys
import ray
try:
    ray.init(address=sys.argv[1], logging_level="critical", log_to_driver=False)
except Exception as error:
    sys.exit({_REASON!r} + " ".join(str(error).split()).split(". ")[0].rstrip("."))
ray.shutdown()
"""


@dataclass(eq=False)
class RayWorker(Worker):
    """An actor.

    Attributes:
        actor: Its handle.
        pending: Reference to what it will say next, or ``None`` while it has nothing to do.
        host: Where it runs; ``None`` until Ray has found a host for it.
        death: How it died.
    """

    start_advice: ClassVar[str] = (
        "every host needs wm_gym, in the same version, with what the simulator needs, and memory for every worker."
    )

    actor: Any
    pending: Any
    host: Host | None = field(default=None, init=False)
    death: str = field(default="", init=False)

    def give(self, task: int, message: Any) -> None:
        """Hand it a task; that it died just now is what its next report says."""
        self.task = task
        self.pending = self.actor.record.remote(message)

    @property
    def ended(self) -> str:
        """How it died, and where."""
        return f"{self.death} on host {self.host.name}" if self.host is not None else self.death


class RayPool(WorkerPool[RayWorker]):
    """Workers that are Ray actors, spread over the hosts of a cluster; each takes one CPU of it.

    Ray is started or joined when the ``with`` block is entered, and left at its end; one that the caller had joined
    before stays as it is.

    Args:
        settings: Of each place; the episodes are written to their folder, by this process.
        address: ``"auto"`` for a cluster that this host belongs to, or ``"HOST:PORT"``; ``None`` takes the environment
            variable ``RAY_ADDRESS``, or else starts a Ray of our own on this machine.

    Raises:
        ConfigError: The address is none.
    """

    start_tries: ClassVar[int] = MAX_RETRIES + 1

    def __init__(self, settings: Sequence[WorkerSettings], address: str | None) -> None:
        super().__init__(len(settings))
        self._settings = list(settings)
        self._address = address or os.environ.get("RAY_ADDRESS") or None
        if self._address == "local":  # as Ray itself understands it
            self._address = None
        if self._address not in (None, "auto") and not _ADDRESS.fullmatch(self._address or ""):
            raise ConfigError(f"the Ray address {self._address!r} is neither auto nor of the form HOST:PORT.")
        self._is_ours = False
        self._simulator: SimulatorSpec | None = None
        self._placed_at = time.monotonic()

    def __enter__(self) -> RayPool:
        """Join or start Ray.

        Raises:
            SimulatorError: Ray is not installed, cannot be started, or does not answer.
        """
        self._ray = import_ray()
        if not self._ray.is_initialized():
            if self._address is None:
                _start_ray(self._ray, len(self._settings))
            else:
                _join_ray(self._ray, self._address)
            self._is_ours = True
        cpus = self._ray.cluster_resources().get("CPU", 0.0)
        if cpus < len(self._settings):
            warnings.warn(
                f"the Ray cluster has {cpus:g} CPUs now, so no more than {int(cpus)} of the {len(self._settings)} "
                "workers run at a time.",
                stacklevel=3,
            )
        options = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}
        self._actor_class = self._ray.remote(max_concurrency=2, **options)(RayCollector)
        self._placed_at = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            if self._is_ours:
                self._ray.shutdown()

    def reports(self, timeout_s: float | None) -> Iterator[tuple[RayWorker, Report | None]]:
        """The workers that have something to say and what it is, with ``None`` from one that died.

        The file of a finished episode is written before its report is given.

        Raises:
            DatasetError: An episode cannot be written.
            SimulatorError: For a long time no host had a CPU free for any worker, or no host is left.
        """
        end = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while True:
            said = False
            for worker in self._that_answered(min(_POLL_S, max(0.0, end - time.monotonic()))):
                is_report, report = self._hear(worker)
                if is_report:
                    said = True
                    yield worker, report
            self._check_placed()
            if said or time.monotonic() >= end:
                return

    def _that_answered(self, timeout_s: float) -> list[RayWorker]:
        by_reference = {worker.pending: worker for worker in self.running if worker.pending is not None}
        if not by_reference:
            time.sleep(timeout_s)
            return []
        references = list(by_reference)
        if not self._ray.wait(references, num_returns=1, timeout=timeout_s)[0]:
            return []
        answered = self._ray.wait(references, num_returns=len(references), timeout=0)[0]
        return [by_reference[reference] for reference in answered]

    def _hear(self, worker: RayWorker) -> tuple[bool, Report | None]:
        """Whether a worker's answer is a report, and which."""
        try:
            answer: Host | Report | str = self._ray.get(worker.pending, timeout=_FETCH_TIMEOUT_S)
        except self._ray.exceptions.RayError as error:
            worker.pending, worker.death = None, _in_short(error)
            return True, None
        if isinstance(answer, Host):
            worker.host = answer
            worker.pending = worker.actor.start.remote()
            if answer.version != __version__:
                message = f"host {answer.name} has wm_gym {answer.version}, but this one has {__version__}; install one"
                return True, Report("failed", error="SimulatorError", message=f"{message} version everywhere.")
            return False, None
        if isinstance(answer, Report) and answer.content is not None:
            folder, index = self._settings[worker.place].folder, worker.task
            assert folder is not None
            assert index is not None
            answer = replace(answer, content=None, header=write_episode_file(folder, index, answer.content))
        worker.pending = None
        if isinstance(answer, Report):
            return True, self._checked(worker, answer)
        worker.death = answer
        return True, None

    def _checked(self, worker: RayWorker, report: Report) -> Report:
        """A report, or the one that its host simulates something else than the first one."""
        if report.simulator is None or self._simulator in (None, report.simulator):
            self._simulator = self._simulator or report.simulator
            return report
        name = worker.host.name if worker.host is not None else ""
        message = f"host {name} makes another simulator than the first host; install the same versions everywhere."
        return Report("failed", error="SimulatorError", message=message)

    def _check_placed(self) -> None:
        now = time.monotonic()
        if not self.running or any(worker.host is not None for worker in self.running):
            self._placed_at = now
            return
        if not any(node["Alive"] for node in self._ray.nodes()):
            raise SimulatorError(
                "every host of the Ray cluster is gone; what is finished is kept, so run the same command to go on "
                "when the cluster runs again."
            )
        if now - self._placed_at > PLACE_TIMEOUT_S:
            raise SimulatorError(
                f"no host of the Ray cluster had a free CPU for a worker within {PLACE_TIMEOUT_S:g} s; wait until "
                "others have finished, or add hosts."
            )

    def _start(self, place: int) -> RayWorker:
        settings = replace(self._settings[place], folder=None)
        # A function of the user's script has no module on other hosts; Ray's pickle takes it along.
        actor = self._actor_class.remote(self._ray.cloudpickle.dumps(settings, protocol=pickle.HIGHEST_PROTOCOL))
        return RayWorker(place, actor, actor.host.remote())

    def _stop(self, workers: list[RayWorker]) -> None:
        # One that was not placed has nothing to close, and would not answer.
        stopped = [worker.actor.stop.remote() for worker in workers if worker.host is not None]
        try:
            if stopped:
                self._ray.wait(stopped, num_returns=len(stopped), timeout=STOP_TIMEOUT_S * 2)
        finally:
            for worker in workers:
                self._ray.kill(worker.actor)


def import_ray() -> Any:
    """Ray's package, prepared so that it does not send the working directory to its workers.

    Raises:
        SimulatorError: It is not installed.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # with it, `uv run` uploads the working directory
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise SimulatorError("Ray is not installed; install it with `pip install 'wm_gym[ray]'`.") from error


def _start_ray(ray: Any, workers: int) -> None:
    """A small Ray on this machine, which no other can reach and which ends with this process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with _on_loopback():
            ray.init(
                address="local",
                num_cpus=workers,
                num_gpus=0,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                logging_level="error",
                _node_ip_address=_LOOPBACK,
            )
    except BaseException as error:
        ray.shutdown()
        if not isinstance(error, Exception):
            raise
        raise SimulatorError(f"Ray cannot be started on this machine: {_in_short(error)}.") from error


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let Ray listen where only this machine can reach it: whoever reaches it can run code.

    Ray does so where it supports no clusters, on Windows and macOS; elsewhere it turns a loopback address into the
    machine's own, unless it is told that it is to be as there: by a variable for its processes, and, as that was read
    when Ray was imported, by a constant for this one.
    """
    constants = importlib.import_module("ray._private.ray_constants")
    before = os.environ.get(_ONE_MACHINE), constants.ENABLE_RAY_CLUSTER
    os.environ[_ONE_MACHINE], constants.ENABLE_RAY_CLUSTER = "0", False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before[1]  # type: ignore[attr-defined]
        if before[0] is None:
            del os.environ[_ONE_MACHINE]
        else:
            os.environ[_ONE_MACHINE] = before[0]


def _join_ray(ray: Any, address: str) -> None:
    """Join a running cluster. Ray waits for minutes where none answers, so that is tried first, with limits."""
    where = "on this host (Ray address auto)" if address == "auto" else f"at {address}"
    advice = "start one with `ray start --head`, or give the HOST:PORT that it shows."
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _REACH_TIMEOUT_S).close()
        except (OSError, OverflowError) as error:
            raise SimulatorError(f"no Ray cluster can be reached {where} ({_in_short(error)}); {advice}") from error
    try:
        tried = subprocess.run(
            [sys.executable, "-c", _TRY_TO_CONNECT, address],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CONNECT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SimulatorError(f"no Ray cluster answers {where} within {CONNECT_TIMEOUT_S:g} s; {advice}") from error
    if tried.returncode != 0:
        reasons = [line.removeprefix(_REASON) for line in tried.stderr.splitlines() if line.startswith(_REASON)]
        reason = reasons[-1] if reasons else f"exit code {tried.returncode}"
        raise SimulatorError(f"the Ray cluster {where} cannot be joined: {reason}; {advice}")
    try:
        ray.init(address=address, logging_level="error")
    except BaseException as error:
        ray.shutdown()
        if not isinstance(error, Exception):
            raise
        raise SimulatorError(f"the Ray cluster {where} cannot be joined: {_in_short(error)}; {advice}") from error


def _in_short(error: Exception) -> str:
    """The line that says most in one of Ray's long messages: the end of a traceback, or else the first line."""
    text = _COLOUR.sub("", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    raised = [line for line in lines if _RAISED.match(line)]
    return (raised or lines)[-1 if raised else 0].rstrip(".:")
