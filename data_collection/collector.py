"""Recording a dataset with several worker processes: repeatable, resumable, and safe to interrupt."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from tqdm import tqdm

from wm_gym import errors
from wm_gym.data_collection.codec import DEFAULT_CODEC, FrameCodec
from wm_gym.data_collection.dataset import list_episode_files
from wm_gym.data_collection.dataset_writer import check_is_free
from wm_gym.data_collection.episode_file import EpisodeHeader, read_header
from wm_gym.data_collection.lock import exclusive_lock
from wm_gym.data_collection.metadata import (
    EPISODES_FOLDER,
    METADATA_FILE,
    CollectionSettings,
    DatasetMetadata,
    difference,
    versions,
)
from wm_gym.data_collection.plan import CollectionPlan, parse_behaviours
from wm_gym.data_collection.worker import MakeBehaviour, Report, WorkerSettings, run_worker
from wm_gym.errors import DatasetError, SimulatorError, WMGymError
from wm_gym.files import remove_temporary_files
from wm_gym.simulator import SimulatorSpec

MAX_RETRIES = 2
"""How often an episode is tried again after its worker died without a word (killed, out of memory, segfault)."""

STOP_TIMEOUT_S = 5.0
LOCK_FILE = ".collect.lock"


@dataclass(frozen=True)
class CollectionSummary:
    """What a call of :func:`collect` did.

    Attributes:
        path: The dataset's folder.
        num_episodes: Episodes that the dataset now has of those asked for.
        num_steps: Their steps.
        mean_return: Their mean return.
        new_episodes: Episodes that this call recorded.
        new_steps: Their steps.
        seconds: Wall-clock time of this call, from the first worker's start.
        steps_per_s: New steps for each second, without the time until the first worker was ready.
    """

    path: Path
    num_episodes: int
    num_steps: int
    mean_return: float
    new_episodes: int
    new_steps: int
    seconds: float
    steps_per_s: float


def collect(
    out: str | Path,
    simulator: str,
    *,
    make_behaviour: MakeBehaviour,
    episodes: int | None = None,
    frames: int | None = None,
    behaviour: str = "random",
    workers: int = 1,
    seed: int = 0,
    simulator_kwargs: dict[str, Any] | None = None,
    codec: str = DEFAULT_CODEC,
    max_episode_steps: int | None = None,
    progress: bool = True,
) -> CollectionSummary:
    """Record episodes into a dataset folder, or go on with one.

    Episode ``i`` is decided by ``seed`` and ``i`` alone, so that the same call gives the same episodes with any number
    of workers, in one go or resumed. Episodes that are there already are kept; a larger ``episodes`` or ``frames``
    adds to them.

    Args:
        out: The dataset's folder.
        simulator: Short name or Gymnasium id, for :func:`wm_gym.envs.simulators.make_simulator`.
        make_behaviour: Makes a behaviour from its name and the simulator's record; a module-level function.
        episodes: Number of episodes that the dataset shall have. Give either this or ``frames``.
        frames: Number of steps (one action, one new frame each) that the dataset shall have at least: the episodes
            0, 1, 2, ... until their steps reach it. Episodes are never cut for it.
        behaviour: A behaviour name, or a mix with weights as in ``"noisy:0.7,random:0.2,autopilot:0.1"``.
        workers: Number of processes; each uses one thread.
        seed: Seed of the collection, below 1,000,000.
        simulator_kwargs: Further arguments for ``make_simulator`` (frame size, action repeat, ...).
        codec: ``"png"``, ``"webp"``, ``"raw"``, ``"jpeg"`` or ``"jpeg:QUALITY"``.
        max_episode_steps: Truncate episodes after so many steps; ``None`` leaves it to the simulator.
        progress: Show a progress bar on standard error.

    Raises:
        DatasetError: a setting is out of range or differs from the dataset's, the folder is in use or holds
            something else, or it cannot be written.
        SimulatorError: the simulator cannot be made, fails, or kills its process again and again.
        KeyboardInterrupt: after Ctrl-C; the workers are stopped, and every finished episode is on the disk.
    """
    target = _Target.of(episodes, frames)
    if workers < 1:
        raise DatasetError(f"workers={workers} was given, but 1 or more is wanted.")
    if max_episode_steps is not None and max_episode_steps < 1:
        raise DatasetError(f"max_episode_steps={max_episode_steps} was given, but 1 or more is wanted.")
    folder = Path(out)
    behaviours = parse_behaviours(behaviour)
    plan = CollectionPlan(seed, behaviours)
    collection = CollectionSettings(seed=seed, behaviours=behaviours, max_episode_steps=max_episode_steps)
    frame_codec = FrameCodec.parse(codec)
    existing = _existing(folder)
    if existing is not None:
        _check_same(folder, existing, existing.model_copy(update={"collection": collection, "codec": frame_codec}))
    settings = WorkerSettings(
        simulator=simulator,
        simulator_kwargs=dict(simulator_kwargs or {}),
        behaviours=tuple(behaviours),
        make_behaviour=make_behaviour,
        folder=folder / EPISODES_FOLDER,
        codec=frame_codec,
        max_episode_steps=max_episode_steps,
    )
    started = time.perf_counter()
    with _Workers(settings) as pool:
        pool.start_one()
        spec = pool.wait_for_simulator()
        metadata = DatasetMetadata(
            simulator=spec,
            codec=frame_codec,
            collection=collection,
            source=f"collected from {spec.id}",
            created_with=versions(),
        )
        if existing is None:
            metadata.write(folder)
        else:
            _check_same(folder, existing, metadata)
        with exclusive_lock(folder / LOCK_FILE):
            remove_temporary_files(folder)
            remove_temporary_files(folder / EPISODES_FOLDER)
            done = _finished_episodes(folder, plan)
            ready = time.perf_counter()
            new = _record_missing(pool, plan, target, done, workers=workers, progress=progress)
    ended = time.perf_counter()
    wanted = [done[index] for index in range(target.num_wanted(done))]
    new_steps = sum(header.length for header in new)
    return CollectionSummary(
        path=folder,
        num_episodes=len(wanted),
        num_steps=sum(header.length for header in wanted),
        mean_return=sum(header.return_ for header in wanted) / len(wanted),
        new_episodes=len(new),
        new_steps=new_steps,
        seconds=ended - started,
        steps_per_s=new_steps / (ended - ready),
    )


@dataclass(frozen=True)
class _Target:
    """How much to collect: a number of episodes, or a number of steps."""

    episodes: int | None
    frames: int | None

    @classmethod
    def of(cls, episodes: int | None, frames: int | None) -> _Target:
        if (episodes is None) == (frames is None):
            raise DatasetError("give either a number of episodes or a number of frames to collect.")
        if (episodes if episodes is not None else frames or 0) < 1:
            raise DatasetError(f"{episodes if frames is None else frames} was asked for, but 1 or more is wanted.")
        return cls(episodes, frames)

    @property
    def total(self) -> int:
        return self.episodes or self.frames or 0

    def num_wanted(self, done: dict[int, EpisodeHeader]) -> int:
        """Number of episodes that the target needs as far as is known: all up to this index must be there."""
        if self.episodes is not None:
            return self.episodes
        steps, index = 0, 0
        while steps < (self.frames or 0):
            if index not in done:
                return index + 1
            steps += done[index].length
            index += 1
        return index

    def is_reached(self, done: dict[int, EpisodeHeader]) -> bool:
        return all(index in done for index in range(self.num_wanted(done)))


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    is_ready: bool = False
    index: int | None = None


@dataclass
class _Workers:
    """The worker processes; leaving the ``with`` block stops them all."""

    settings: WorkerSettings
    running: list[_Worker] = field(default_factory=list)

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start_one(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=run_worker, args=(self.settings, theirs), daemon=True)
        process.start()
        theirs.close()  # so that the end of the process closes the pipe
        self.running.append(_Worker(process, ours))

    def wait_for_simulator(self) -> SimulatorSpec:
        worker, report = next(self.reports(timeout_s=None))
        if report is None or report.simulator is None:
            raise _failure(worker, report, "")
        worker.is_ready = True
        return report.simulator

    def reports(self, timeout_s: float | None) -> Iterator[tuple[_Worker, Report | None]]:
        """The workers that have something to say, with ``None`` from one that died."""
        by_connection: dict[Any, _Worker] = {worker.connection: worker for worker in self.running}
        for connection in wait(list(by_connection), timeout_s):
            worker = by_connection[connection]
            try:
                yield worker, worker.connection.recv()
            except (EOFError, ConnectionResetError):
                worker.process.join(STOP_TIMEOUT_S)
                yield worker, None

    def remove(self, worker: _Worker) -> None:
        self.running.remove(worker)
        _stop([worker])

    def stop(self) -> None:
        workers, self.running = self.running, []
        _stop(workers)


def _stop(workers: list[_Worker]) -> None:
    """Close the connections, which ends a worker before its next step; end by force what does not follow."""
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


def _record_missing(
    pool: _Workers,
    plan: CollectionPlan,
    target: _Target,
    done: dict[int, EpisodeHeader],
    *,
    workers: int,
    progress: bool,
) -> list[EpisodeHeader]:
    """Record what the target lacks; adds to ``done`` and returns the new headers."""
    new: list[EpisodeHeader] = []
    deaths: dict[int, int] = {}
    try:
        with _Progress(target, done, enabled=progress) as bar:
            while not target.is_reached(done):
                _hand_out(pool, plan, target, done, workers)
                for worker, report in list(pool.reports(timeout_s=1.0)):
                    if report is None and worker.is_ready and worker.index is not None:
                        deaths[worker.index] = deaths.get(worker.index, 0) + 1
                        pool.remove(worker)
                        if deaths[worker.index] <= MAX_RETRIES:
                            continue
                    if report is None or report.kind == "failed":
                        raise _failure(worker, report, _describe(plan, worker.index))
                    if report.kind == "ready":
                        worker.is_ready = True
                    elif report.header is not None:
                        worker.index = None
                        done[report.header.index] = report.header
                        new.append(report.header)
                        bar.update(done)
    finally:
        pool.stop()
        remove_temporary_files(pool.settings.folder)
    # With several workers an episode beyond the target may be finished; the same call keeps the same episodes.
    wanted = target.num_wanted(done)
    for header in [header for header in new if header.index >= wanted]:
        header.path.unlink(missing_ok=True)
        del done[header.index]
        new.remove(header)
    return new


def _hand_out(
    pool: _Workers, plan: CollectionPlan, target: _Target, done: dict[int, EpisodeHeader], workers: int
) -> None:
    """Give every idle worker the next missing episode, and start workers while there is more to do."""
    taken = {worker.index for worker in pool.running}
    # A target in frames does not say how many episodes it takes, so idle workers run ahead of it.
    last = target.num_wanted(done) if target.episodes is not None else target.num_wanted(done) + workers - 1
    missing = iter([index for index in range(last) if index not in done and index not in taken])
    starting = sum(not worker.is_ready for worker in pool.running)
    for worker in pool.running:
        if worker.is_ready and worker.index is None and (index := next(missing, None)) is not None:
            worker.index = index
            with suppress(BrokenPipeError):  # it died just now, which the next report says
                worker.connection.send(plan[index])
    for _ in range(min(workers - len(pool.running), len(list(missing)) - starting)):
        pool.start_one()


class _Progress:
    """The progress bar: episodes or steps of the target, with mean return and steps a second."""

    def __init__(self, target: _Target, done: dict[int, EpisodeHeader], *, enabled: bool) -> None:
        self._target = target
        self._steps_before = sum(header.length for header in done.values())
        self._started = time.perf_counter()
        self._bar = tqdm(
            total=target.total,
            initial=self._count(done),
            unit="episode" if target.episodes is not None else "step",
            desc="collect",
            disable=not enabled,
        )

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, done: dict[int, EpisodeHeader]) -> None:
        steps = sum(header.length for header in done.values())
        elapsed = time.perf_counter() - self._started
        self._bar.set_postfix(
            episodes=len(done),
            steps=steps,
            mean_return=f"{sum(header.return_ for header in done.values()) / len(done):.1f}",
            steps_per_s=f"{(steps - self._steps_before) / elapsed:.0f}",
            refresh=False,
        )
        self._bar.update(self._count(done) - self._bar.n)

    def _count(self, done: dict[int, EpisodeHeader]) -> int:
        found = len(done) if self._target.episodes is not None else sum(header.length for header in done.values())
        return min(found, self._target.total)


def _existing(folder: Path) -> DatasetMetadata | None:
    if (folder / METADATA_FILE).exists():
        return DatasetMetadata.read(folder)
    check_is_free(folder)
    return None


def _check_same(folder: Path, existing: DatasetMetadata, wanted: DatasetMetadata) -> None:
    if existing.collection is None:
        raise DatasetError(f"{folder} was imported, not collected, so nothing can be added; choose another folder.")
    different = difference(existing, wanted)
    if different:
        raise DatasetError(
            f"{folder} was collected with another setting: {different}; use the same settings to go on, or another "
            "folder."
        )


def _finished_episodes(folder: Path, plan: CollectionPlan) -> dict[int, EpisodeHeader]:
    done = {}
    for path in list_episode_files(folder):
        header = read_header(path)
        planned = plan[header.index]
        if (header.seed, header.behaviour) != (planned.seed, planned.behaviour):
            raise DatasetError(f"{path} is not an episode of this collection; move it out of the dataset.")
        done[header.index] = header
    return done


def _describe(plan: CollectionPlan, index: int | None) -> str:
    return "" if index is None else f"episode {index} (behaviour {plan[index].behaviour}, seed {plan[index].seed}): "


def _failure(worker: _Worker, report: Report | None, episode: str) -> WMGymError:
    """The error for a worker that failed or died."""
    if report is None and worker.is_ready:
        return SimulatorError(
            f"{episode}its worker process died {MAX_RETRIES + 1} times (exit code {worker.process.exitcode}); look for "
            "a crash of the simulator or too little memory, then run the same command to go on."
        )
    if report is None:
        return SimulatorError(
            f"a worker process died while it started (exit code {worker.process.exitcode}); a script has to call "
            'collect below `if __name__ == "__main__":`, and there must be memory for every worker.'
        )
    known = getattr(errors, report.error, None)
    if isinstance(known, type) and issubclass(known, WMGymError):
        return known(f"{episode}{report.message}")
    return SimulatorError(
        f"{episode or 'the simulator cannot be made: '}{report.error}: {report.message.rstrip('.')}; the episodes "
        "before it are kept."
    )
