"""Choosing among the checkpoints of a training by a few episodes in the simulator, never on held-out seeds.

A policy that trains long enough in a dream learns what the dream pays for and the simulator does not: the dream's
return goes on rising while the real one falls. The dream cannot say when that begins. A few episodes on training seeds
can; they choose among checkpoints and teach nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from wm_gym.agents.evaluation.drives import DrivePool, DriveResult, DriveSettings
from wm_gym.bundle import read_manifest
from wm_gym.data_collection.recording.plan import HELD_OUT_FROM
from wm_gym.data_collection.recording.worker_pool import connection_of_each
from wm_gym.envs.simulators import make_simulator_from_spec
from wm_gym.errors import ConfigError, SimulatorLostError
from wm_gym.simulator import SimulatorSpec

FIRST_SEED = 980_000
"""Seed of the first episode: below those held out, and the same for every checkpoint, so that tracks do not decide."""


def selection_for(
    model: str | Path,
    drives: int,
    *,
    max_episode_steps: int | None = None,
    workers: int = 1,
    worker_connections: Sequence[Mapping[str, Any]] | None = None,
) -> AbstractContextManager[DriveSelection | None]:
    """A selection in the simulator that a world model was trained on, for ``train_agent``; ``None`` for no episodes.

    Arguments as for :class:`DriveSelection`.

    Raises:
        BundleError: There is no such world model.
        ConfigError: A number is out of range.
        SimulatorError: The simulator cannot be made.
    """
    if drives == 0:
        return nullcontext()
    return DriveSelection(
        read_manifest(model)[1].simulator,
        drives,
        max_episode_steps=max_episode_steps,
        workers=workers,
        worker_connections=worker_connections,
    )


class DriveSelection:
    """Scores agents by their mean return over a few episodes, in processes beside the training.

    Args:
        simulator: Where to drive.
        episodes: How many for each score.
        seed: Of the first episode; the others follow.
        max_episode_steps: Steps after which an episode is cut; ``None`` leaves it to the simulator.
        workers: Processes that drive, each with one thread, on the CPU.
        worker_connections: For each worker, where its simulator runs, where that needs to be told.

    Attributes:
        episodes: How many for each score.
        frames: Simulator steps driven so far, which a comparison of data budgets has to count.

    Raises:
        ConfigError: A number is out of range, or a seed is held out for evaluation.
        SimulatorError: The simulator cannot be made.
    """

    def __init__(
        self,
        simulator: SimulatorSpec,
        episodes: int,
        *,
        seed: int = FIRST_SEED,
        max_episode_steps: int | None = None,
        workers: int = 1,
        worker_connections: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        for name, value in (("drives", episodes), ("workers", workers)):
            if value < 1:
                raise ConfigError(f"{value} {name} cannot choose a checkpoint; give at least 1.")
        if not 0 <= seed <= HELD_OUT_FROM - episodes:
            raise ConfigError(
                f"the seeds {seed} to {seed + episodes - 1} are not below {HELD_OUT_FROM}, from where on they are held "
                "out for evaluation."
            )
        self.episodes = episodes
        self._seeds = range(seed, seed + episodes)
        self._connections = connection_of_each(workers, worker_connections)[:episodes]
        for connection in self._connections:
            make_simulator_from_spec(simulator, connection=connection).close()  # or the training would run into it
        self._pool = DrivePool(DriveSettings(None, True, simulator, "cpu", max_episode_steps, None), self._connections)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="selection")
        self.frames = 0

    def __enter__(self) -> DriveSelection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, agent: str | Path) -> Callable[[], float | None]:
        """Begin the episodes of the agent in a folder, which must stay until they end.

        Returns:
            What waits for them and gives the agent's mean return, or raises what went wrong; ``None`` where the
            simulator was lost, which says nothing of the agent.
        """
        return self._thread.submit(self._drive, str(agent)).result

    def close(self) -> None:
        """End the processes, before their next step."""
        self._pool.interrupt()
        self._thread.shutdown()
        self._pool.close()

    def _drive(self, agent: str) -> float | None:
        results: list[DriveResult] = []
        try:
            results.extend(self._pool.run(dict(enumerate(self._seeds)), agent))
        except SimulatorLostError:
            return None
        finally:
            self.frames += sum(result.length for result in results)
        return statistics.fmean(result.return_ for result in sorted(results, key=lambda result: result.index))
