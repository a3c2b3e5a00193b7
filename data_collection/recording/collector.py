"""Recording a dataset with several workers: repeatable, resumable, and safe to interrupt."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from wm_gym.data_collection.datasets.codec import DEFAULT_CODEC, FrameCodec
from wm_gym.data_collection.datasets.dataset import list_episode_files
from wm_gym.data_collection.datasets.episode_file import EpisodeHeader, read_header
from wm_gym.data_collection.datasets.metadata import (
    EPISODES_FOLDER,
    METADATA_FILE,
    CollectionSettings,
    DatasetMetadata,
    difference,
    versions,
)
from wm_gym.data_collection.datasets.remote_folder import local_folder
from wm_gym.data_collection.datasets.writer import holds_dataset
from wm_gym.data_collection.recording.plan import CollectionPlan, parse_behaviours
from wm_gym.data_collection.recording.worker import MakeBehaviour, Report, WorkerSettings, run_worker
from wm_gym.data_collection.recording.worker_pool import (
    MAX_RETRIES,
    Losses,
    ProcessPool,
    Worker,
    WorkerPool,
    WorkerT,
    connection_of_each,
)
from wm_gym.errors import (
    ConfigError,
    DatasetError,
    SimulatorError,
    SimulatorLostError,
    WMGymError,
    did_you_mean,
    error_by_name,
)
from wm_gym.files import remove_temporary_files
from wm_gym.lock import locked_folder
from wm_gym.progress import progress_bar
from wm_gym.simulator import SimulatorSpec

Engine = Literal["processes", "ray"]
ENGINES: tuple[Engine, ...] = ("processes", "ray")
"""Where workers run: as processes of this machine, or as Ray actors (see ``ray_pool.py``)."""


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
        lost: How often an episode was lost with its simulator and had to be recorded again.
    """

    path: Path
    num_episodes: int
    num_steps: int
    mean_return: float
    new_episodes: int
    new_steps: int
    seconds: float
    steps_per_s: float
    lost: int = 0


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
    simulator_kwargs: Mapping[str, Any] | None = None,
    worker_kwargs: Sequence[Mapping[str, Any]] | None = None,
    codec: str = DEFAULT_CODEC,
    max_episode_steps: int | None = None,
    patience: int | None = None,
    progress: bool = True,
    engine: Engine = "processes",
    ray_address: str | None = None,
) -> CollectionSummary:
    """Record episodes into a dataset folder, or go on with one.

    Episode ``i`` is decided by ``seed`` and ``i`` alone, so that the same call gives the same episodes with any number
    of workers, in one go or resumed. Episodes that are there already are kept; a larger ``episodes`` or ``frames``
    adds to them.

    An episode whose simulator is lost (a server that dies or hangs) is thrown away whole and recorded again. A worker
    whose simulator is gone for good is given up, with a warning at the end, as long as another one remains.

    Args:
        out: The dataset's folder.
        simulator: Short name or Gymnasium id, for :func:`wm_gym.envs.simulators.make_simulator`.
        make_behaviour: Makes a behaviour from its name and the simulator's record; a module-level function.
        episodes: Number of episodes that the dataset shall have. Give either this or ``frames``.
        frames: Number of steps (one action, one new frame each) that the dataset shall have at least: the episodes
            0, 1, 2, ... until their steps reach it. Episodes are never cut for it.
        behaviour: A behaviour name, or a mix with weights as in ``"noisy:0.7,random:0.2,autopilot:0.1"``.
        workers: Number of workers; each uses one thread. With ``worker_kwargs`` their number may be left out.
        seed: Seed of the collection, below 1,000,000.
        simulator_kwargs: Further arguments for ``make_simulator`` (frame size, action repeat, ...).
        worker_kwargs: For each worker, where its simulator runs, such as ``[{"port": 2000}, {"port": 2004}]``: one
            server each. Only arguments of the simulator's connection, which are not recorded.
        codec: ``"png"``, ``"webp"``, ``"raw"``, ``"jpeg"`` or ``"jpeg:QUALITY"``.
        max_episode_steps: Truncate episodes after so many steps; ``None`` leaves it to the simulator.
        patience: Truncate episodes after so many steps in a row without a reward above 0: a car that is stuck teaches
            little. ``None`` does not.
        progress: Show a progress bar on standard error.
        engine: ``"processes"`` on this machine, or ``"ray"``: actors on the hosts of a Ray cluster, which send their
            episodes here. The dataset is the same.
        ray_address: With ``engine="ray"``: ``"auto"`` for a cluster that this machine belongs to, or ``"HOST:PORT"``;
            ``None`` takes the variable ``RAY_ADDRESS``, or else starts a Ray of our own on this machine.

    Raises:
        DatasetError: a setting is out of range or differs from the dataset's, the folder is in use or holds
            something else, or it cannot be written.
        SimulatorError: the simulator cannot be made, fails, or kills its process again and again, or there is no Ray.
        SimulatorLostError: no worker's simulator can be reached any more.
        ConfigError: there are not as many ``worker_kwargs`` as ``workers``, or there is no such engine or address.
        KeyboardInterrupt: after Ctrl-C; the workers are stopped, and every finished episode is on the disk.
    """
    target = _Target.of(episodes, frames)
    if workers < 1:
        raise DatasetError(f"workers={workers} was given, but 1 or more is wanted.")
    connections = connection_of_each(workers, worker_kwargs)
    for name, steps in (("max_episode_steps", max_episode_steps), ("patience", patience)):
        if steps is not None and steps < 1:
            raise DatasetError(f"{name}={steps} was given, but 1 or more is wanted.")
    folder = local_folder(out)
    behaviours = parse_behaviours(behaviour)
    plan = CollectionPlan(seed, behaviours)
    collection = CollectionSettings(
        seed=seed, behaviours=behaviours, max_episode_steps=max_episode_steps, patience=patience
    )
    frame_codec = FrameCodec.parse(codec)
    settings = WorkerSettings(
        simulator=simulator,
        simulator_kwargs=dict(simulator_kwargs or {}),
        make_behaviour=make_behaviour,
        collection=collection,
        folder=folder / EPISODES_FOLDER,
        codec=frame_codec,
    )
    losses = Losses(len(connections))
    started = time.perf_counter()
    places = [replace(settings, connection=connection) for connection in connections]

    def check() -> None:
        existing = _existing(folder)
        if existing is not None:
            _check_same(folder, existing, existing.model_copy(update={"collection": collection, "codec": frame_codec}))

    with (
        locked_folder(folder, check, raises=DatasetError),
        _make_pool(engine, places, ray_address) as pool,
    ):
        existing = _existing(folder)
        remove_temporary_files(folder)
        remove_temporary_files(folder / EPISODES_FOLDER)
        spec = _wait_for_simulator(pool)
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
        done = _finished_episodes(folder, plan)
        ready = time.perf_counter()
        try:
            new = _record_missing(pool, plan, target, done, losses, folder=folder / EPISODES_FOLDER, progress=progress)
        except SimulatorLostError:
            if existing is None and not done:
                _remove_empty_dataset(folder)
            raise
    ended = time.perf_counter()
    for sentence in losses.given_up:
        warnings.warn(sentence, stacklevel=2)
    wanted = [done[index] for index in range(target.num_wanted(done))]
    new_steps = _num_steps(new)
    return CollectionSummary(
        path=folder,
        num_episodes=len(wanted),
        num_steps=_num_steps(wanted),
        mean_return=sum(header.return_ for header in wanted) / len(wanted),
        new_episodes=len(new),
        new_steps=new_steps,
        seconds=ended - started,
        steps_per_s=new_steps / (ended - ready),
        lost=losses.total,
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

    def reached(self, done: dict[int, EpisodeHeader]) -> int:
        """How much of the total is there."""
        return min(self.total, len(done) if self.episodes is not None else _num_steps(done.values()))

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


def _make_pool(engine: str, places: Sequence[WorkerSettings], ray_address: str | None) -> WorkerPool[Any]:
    if engine == "ray":
        from wm_gym.data_collection.recording.ray_pool import RayPool

        return RayPool(places, ray_address)
    if engine != "processes":
        raise ConfigError(f"engine={engine!r} is unknown{did_you_mean(engine, ENGINES)}; use {' or '.join(ENGINES)}.")
    if ray_address is not None:
        raise ConfigError(f"the Ray address {ray_address!r} belongs to the engine ray; choose it, or leave this out.")
    return ProcessPool(run_worker, places)


def _wait_for_simulator(pool: WorkerPool[WorkerT]) -> SimulatorSpec:
    """Start the first worker and wait until it has made the simulator."""
    for left in reversed(range(pool.start_tries)):
        pool.start_one()
        worker, report = next(iter(pool.reports(timeout_s=None)))
        if report is not None or not left:
            break
        pool.remove(worker)
    if report is None or report.simulator is None:
        raise _failure(worker, report, "")
    worker.is_ready = True
    spec: SimulatorSpec = report.simulator
    return spec


def _record_missing(
    pool: WorkerPool[WorkerT],
    plan: CollectionPlan,
    target: _Target,
    done: dict[int, EpisodeHeader],
    losses: Losses,
    *,
    folder: Path,
    progress: bool,
) -> list[EpisodeHeader]:
    """Record what the target lacks; adds to ``done`` and returns the new headers."""
    new: list[EpisodeHeader] = []
    deaths: Counter[int | None] = Counter()  # of workers at an episode; None: of those that had not started yet
    try:
        with _progress(target, done, enabled=progress) as show:
            while not target.is_reached(done):
                _hand_out(pool, plan, target, done, losses)
                for worker, report in list(pool.reports(timeout_s=1.0)):
                    if report is None:
                        deaths[worker.task] += 1
                        pool.remove(worker)
                        if deaths[worker.task] < (MAX_RETRIES + 1 if worker.is_ready else pool.start_tries):
                            continue
                    if report is None or report.kind == "failed":
                        raise _failure(worker, report, _describe(plan, worker.task))
                    index, worker.task = worker.task, None
                    if report.kind == "ready":
                        worker.is_ready = True
                        del deaths[None]
                    elif report.kind == "lost" and index is not None:
                        if losses.add(worker.place, index, report.message, _describe(plan, index)):
                            pool.remove(worker, close_place=True)
                        show(losses.total)
                    elif report.header is not None:
                        losses.finished(worker.place)
                        done[report.header.index] = report.header
                        new.append(report.header)
                        show(losses.total)
    except BaseException:
        with suppress(Exception):
            list(pool.reports(timeout_s=0.0))  # what others have finished by now is on the disk after this
        raise
    finally:
        pool.stop()
        remove_temporary_files(folder)
    # With several workers an episode beyond the target may be finished; the same call keeps the same episodes.
    wanted = target.num_wanted(done)
    for header in [header for header in new if header.index >= wanted]:
        header.path.unlink(missing_ok=True)
        del done[header.index]
        new.remove(header)
    return new


def _hand_out(
    pool: WorkerPool[WorkerT], plan: CollectionPlan, target: _Target, done: dict[int, EpisodeHeader], losses: Losses
) -> None:
    """Give every idle worker the next missing episode, and start workers while there is more to do."""
    taken = {worker.task for worker in pool.running}
    # A target in frames does not say how many episodes it takes, so idle workers run ahead of it.
    ahead = 0 if target.episodes is not None else pool.num_places - 1
    last = target.num_wanted(done) + ahead
    missing = iter([index for index in range(last) if index not in done and index not in taken])
    starting = sum(not worker.is_ready for worker in pool.running)
    # What one worker has lost goes to another one, if that has nothing else to do.
    for worker in sorted(pool.running, key=lambda worker: losses.in_a_row(worker.place)):
        if worker.is_ready and worker.task is None and (index := next(missing, None)) is not None:
            worker.give(index, plan[index])
    for _ in range(min(len(pool.free_places), len(list(missing)) - starting)):
        pool.start_one()


@contextmanager
def _progress(target: _Target, done: dict[int, EpisodeHeader], *, enabled: bool) -> Iterator[Callable[[int], None]]:
    """The progress bar: episodes or steps of the target, with mean return and steps a second.

    Yields:
        A function that shows what is in ``done`` by now, and how many episodes were lost with their simulator.
    """
    steps_before, started = _num_steps(done.values()), time.perf_counter()
    unit = "episode" if target.episodes is not None else "step"
    with progress_bar(target.total, unit, "collect", enabled=enabled, initial=target.reached(done)) as bar:

        def show(lost: int) -> None:
            steps = _num_steps(done.values())
            shown: dict[str, object] = {
                "episodes": len(done),
                "steps": steps,
                "mean_return": f"{sum(header.return_ for header in done.values()) / max(1, len(done)):.1f}",
                "steps_per_s": f"{(steps - steps_before) / (time.perf_counter() - started):.0f}",
            }
            if lost:
                shown["lost"] = lost
            bar.set_postfix(shown, refresh=False)
            bar.update(target.reached(done) - bar.n)
            if lost:
                bar.refresh()  # a loss adds nothing to the bar, which would not show it by itself

        yield show


def _num_steps(headers: Iterable[EpisodeHeader]) -> int:
    return sum(header.length for header in headers)


def _existing(folder: Path) -> DatasetMetadata | None:
    return DatasetMetadata.read(folder) if holds_dataset(folder) else None


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


def _remove_empty_dataset(folder: Path) -> None:
    """Remove what makes a dataset without episodes, begun just now; the folder itself goes with its lock."""
    with suppress(OSError):
        (folder / EPISODES_FOLDER).rmdir()
        (folder / METADATA_FILE).unlink(missing_ok=True)


def _describe(plan: CollectionPlan, index: int | None) -> str:
    return "" if index is None else f"episode {index} (behaviour {plan[index].behaviour}, seed {plan[index].seed})"


def _failure(worker: Worker, report: Report | None, episode: str) -> WMGymError:
    """The error for a worker that failed or died."""
    episode = f"{episode}: " if episode else ""
    if report is None and worker.is_ready:
        return SimulatorError(
            f"{episode}its worker process died {MAX_RETRIES + 1} times ({worker.ended}); look for a crash of the "
            "simulator or too little memory, then run the same command to go on."
        )
    if report is None:
        return SimulatorError(f"a worker process died while it started ({worker.ended}); {worker.start_advice}")
    return error_by_name(report.error, f"{episode}{report.message}") or SimulatorError(
        f"{episode or 'the simulator cannot be made: '}{report.error}: {report.message.rstrip('.')}; the episodes "
        "before it are kept."
    )
