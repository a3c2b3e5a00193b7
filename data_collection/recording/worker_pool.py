"""Workers that do one task after another, and what happens when they or their simulators die.

:class:`WorkerPool` is what a supervisor sees of them, wherever they run; :class:`ProcessPool` has them as processes of
this machine.
"""

from __future__ import annotations

import multiprocessing
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, ClassVar, Generic, TypeVar

from wm_gym.errors import ConfigError, SimulatorLostError

MAX_RETRIES = 2
"""How often a task is tried again in a row after its worker or its simulator died."""

STOP_TIMEOUT_S = 5.0


def connection_of_each(workers: int, given: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Where the simulator of each worker runs.

    Args:
        workers: Number of workers, 1 or more; 1 leaves it to ``given``.
        given: Arguments of the simulator's connection for each worker; ``None`` where there is nothing to say.

    Raises:
        ConfigError: ``given`` has another number.
    """
    if given is None:
        return [{} for _ in range(workers)]
    if not given:
        raise ConfigError("the list of simulators for the workers is empty; name at least one, or leave it out.")
    if workers not in (1, len(given)):
        raise ConfigError(
            f"workers={workers} does not fit {len(given)} {'server' if len(given) == 1 else 'servers'}, as each worker "
            "needs one of its own; leave the number of workers out."
        )
    return [dict(connection) for connection in given]


@dataclass(eq=False)
class Worker(ABC):
    """Does one task at a time.

    Attributes:
        place: Which of the pool's places it has; decides its settings.
        is_ready: Whether it has said that it can work.
        task: Number of the task that it does, or ``None`` while it has none.
    """

    start_advice: ClassVar[str]
    """What to do where one dies while it starts."""

    place: int
    is_ready: bool = field(default=False, init=False)
    task: int | None = field(default=None, init=False)

    @abstractmethod
    def give(self, task: int, message: Any) -> None:
        """Hand it a task; that it died just now is what its next report says."""

    @property
    @abstractmethod
    def ended(self) -> str:
        """How it died."""


WorkerT = TypeVar("WorkerT", bound=Worker)


class WorkerPool(ABC, Generic[WorkerT]):
    """Workers on numbered places; leaving the ``with`` block stops them all.

    Args:
        num_places: There are never more workers than places.
    """

    start_tries: ClassVar[int] = 1
    """How often in a row a worker may die while it starts, until that is an error."""

    def __init__(self, num_places: int) -> None:
        self._num_places = num_places
        self._closed: set[int] = set()
        self.running: list[WorkerT] = []

    def __enter__(self) -> WorkerPool[WorkerT]:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def free_places(self) -> list[int]:
        """Places without a worker."""
        taken = {worker.place for worker in self.running} | self._closed
        return [place for place in range(self._num_places) if place not in taken]

    @property
    def num_places(self) -> int:
        """Places that are not closed."""
        return self._num_places - len(self._closed)

    def start_one(self) -> WorkerT:
        """Start a worker in the first free place."""
        worker = self._start(self.free_places[0])
        self.running.append(worker)
        return worker

    @abstractmethod
    def reports(self, timeout_s: float | None) -> Iterator[tuple[WorkerT, Any]]:
        """The workers that have something to say and what it is, with ``None`` from one that died."""

    def remove(self, worker: WorkerT, *, close_place: bool = False) -> None:
        """Stop a worker; another one may take its place unless that is closed."""
        if close_place:
            self._closed.add(worker.place)
        self.running.remove(worker)
        self._stop([worker])

    def stop(self) -> None:
        """Stop every worker."""
        workers, self.running = self.running, []
        self._stop(workers)

    @abstractmethod
    def _start(self, place: int) -> WorkerT:
        """Start a worker; does not wait for it."""

    @abstractmethod
    def _stop(self, workers: list[WorkerT]) -> None:
        """End workers before their next step, by force where they do not follow."""


@dataclass(eq=False)
class ProcessWorker(Worker):
    """A worker process.

    Attributes:
        process: The process.
        connection: Our end of the pipe to it.
    """

    start_advice: ClassVar[str] = (
        'a script has to call collect below `if __name__ == "__main__":`, and there must be memory for every worker.'
    )

    process: SpawnProcess
    connection: Connection

    def give(self, task: int, message: Any) -> None:
        """Hand it a task; that it died just now is what its next report says."""
        self.task = task
        with suppress(BrokenPipeError):
            self.connection.send(message)

    @property
    def ended(self) -> str:
        """Its exit code."""
        return f"exit code {self.process.exitcode}"


class ProcessPool(WorkerPool[ProcessWorker]):
    """Processes with a pipe each.

    Args:
        target: What a process runs: takes its settings and its end of the pipe; a module-level function, because it is
            sent to other processes. It ends when the pipe is closed.
        settings: Of each place.
    """

    def __init__(self, target: Callable[[Any, Connection], None], settings: Sequence[Any]) -> None:
        super().__init__(len(settings))
        self._target = target
        self._settings = list(settings)

    def _start(self, place: int) -> ProcessWorker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=self._target, args=(self._settings[place], theirs), daemon=True)
        process.start()
        theirs.close()  # so that the end of the process closes the pipe
        return ProcessWorker(place, process, ours)

    def reports(self, timeout_s: float | None) -> Iterator[tuple[ProcessWorker, Any]]:
        """The workers that have something to say and what it is, with ``None`` from one that died."""
        by_connection: dict[Any, ProcessWorker] = {worker.connection: worker for worker in self.running}
        for connection in wait(list(by_connection), timeout_s):
            worker = by_connection[connection]
            try:
                yield worker, worker.connection.recv()
            except (EOFError, ConnectionResetError):
                worker.process.join(STOP_TIMEOUT_S)
                yield worker, None

    def _stop(self, workers: list[ProcessWorker]) -> None:
        for worker in workers:
            worker.connection.close()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
        for end in (SpawnProcess.terminate, SpawnProcess.kill):
            for worker in workers:
                if worker.process.is_alive():
                    end(worker.process)
                    worker.process.join(1.0)


class Losses:
    """Counts the tasks that were lost because a simulator died, and decides when to give up.

    A task that is lost is done again. A worker whose simulator is lost :data:`MAX_RETRIES` + 1 times without a finished
    task in between is given up, as its server is gone for good. A task that costs that many simulators that were sound
    before is given up as well, and with it everything.

    Args:
        num_workers: Places of the pool.

    Attributes:
        total: Tasks lost so far, counting each time.
        given_up: A sentence for each worker that was given up.
    """

    def __init__(self, num_workers: int) -> None:
        self.total = 0
        self.given_up: list[str] = []
        self._num_workers = num_workers
        self._in_a_row = [0] * num_workers
        self._first_lost_by: dict[int, list[int]] = {}
        self._gone: set[int] = set()

    def in_a_row(self, place: int) -> int:
        """Losses of a worker since its last finished task."""
        return self._in_a_row[place]

    def finished(self, place: int) -> None:
        """A worker has finished a task."""
        self._in_a_row[place] = 0

    def add(self, place: int, task: int, reason: str, name: str) -> bool:
        """A worker has lost its simulator.

        Args:
            place: Of the worker.
            task: Number of its task.
            reason: Why, in one sentence.
            name: What the task is called in messages.

        Returns:
            Whether the worker is to be given up, now that others remain.

        Raises:
            SimulatorLostError: No worker remains, or the task is not to be tried again.
        """
        self.total += 1
        self._in_a_row[place] += 1
        if self._in_a_row[place] == 1:
            self._first_lost_by.setdefault(task, []).append(place)
        is_gone = self._in_a_row[place] > MAX_RETRIES
        if is_gone:
            self._gone.add(place)
            self.given_up.append(
                f"worker {place + 1} of {self._num_workers} was given up, because its simulator was lost "
                f"{MAX_RETRIES + 1} times in a row: {reason}"
            )
        sound = [lost_by for lost_by in self._first_lost_by.get(task, []) if lost_by not in self._gone]
        if len(self._gone) == self._num_workers or len(sound) > MAX_RETRIES:
            raise SimulatorLostError(
                f"{name}: the simulator was lost {MAX_RETRIES + 1} times in a row: {reason.rstrip('.')}; what is "
                "finished is kept, so run the same command to go on when the simulator runs again."
            )
        return is_gone
