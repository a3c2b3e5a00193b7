"""The far end of a collection on Ray: what runs on a host, as an actor.

The actor keeps a worker process of its own, the same one as without Ray, and passes on what it reports. A simulator
that crashes therefore never takes the actor along, and an actor that is killed closes the pipe to its process, which
then closes the simulator and ends. This module does not import Ray.
"""

from __future__ import annotations

import os
import pickle
import socket
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection

from wm_gym._version import __version__
from wm_gym.data_collection.recording.plan import EpisodePlan
from wm_gym.data_collection.recording.worker import Report, WorkerSettings, run_worker
from wm_gym.data_collection.recording.worker_pool import ProcessPool

_POLL_S = 0.2


@dataclass(frozen=True)
class Host:
    """Where an actor runs.

    Attributes:
        name: Name of the host.
        pid: Process of the actor.
        version: Version of this package there.
    """

    name: str
    pid: int
    version: str


class RayCollector:
    """An actor with one worker process; needs two threads, so that it can be stopped while it waits.

    Args:
        settings: Pickled :class:`WorkerSettings`. They are unpickled in the worker process only, where what cannot be
            imported on this host becomes a report.
    """

    def __init__(self, settings: bytes) -> None:
        self._pool = ProcessPool(_run_pickled, [settings])
        self._lock = threading.Lock()
        self._is_stopped = threading.Event()

    def host(self) -> Host:
        """Where this actor runs."""
        return Host(socket.gethostname(), os.getpid(), __version__)

    def start(self) -> Report | str:
        """Make the simulator; returns the report that it is ready or why not, or how its process died."""
        with self._lock:
            if not self._is_stopped.is_set():
                self._pool.start_one()
        return self._wait()

    def record(self, plan: EpisodePlan) -> Report | str:
        """Record an episode; returns the report with its bytes, or how its process died."""
        for worker in self._pool.running:
            worker.give(plan.index, plan)
        return self._wait()

    def stop(self) -> None:
        """Close the simulator and end the worker process, at once or before its next step."""
        self._is_stopped.set()
        with self._lock:
            self._pool.stop()

    def _wait(self) -> Report | str:
        """What the worker process says next, or how it died, such as ``"exit code -9"``."""
        while True:
            with self._lock:
                if self._is_stopped.is_set():
                    return "stopped"
                for worker, report in self._pool.reports(timeout_s=_POLL_S):
                    return worker.ended if report is None else report


def _run_pickled(settings: bytes, connection: Connection) -> None:
    try:
        loaded: WorkerSettings = pickle.loads(settings)
    except Exception as error:
        connection.send(Report("failed", error=type(error).__name__, message=str(error)))
        return
    run_worker(loaded, connection)
