"""Choosing among the checkpoints of a training by short drives in the simulator, never on held-out seeds.

A policy that trains long enough in a dream learns what the dream pays for and the simulator does not: the dream's
return goes on rising while the real one falls. The dream cannot say when that begins. A few episodes on training seeds
can; they choose among checkpoints and teach nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym

from wm_gym.agents.bundles.driver import Driver
from wm_gym.bundle import read_manifest
from wm_gym.data_collection.recording.driving import drive_episode
from wm_gym.data_collection.recording.plan import HELD_OUT_FROM
from wm_gym.envs.simulators import make_simulator_from_spec
from wm_gym.errors import ConfigError, SimulatorLostError
from wm_gym.simulator import SimulatorSpec

FIRST_SEED = 980_000
"""Seed of the first episode: below those held out, and the same for every checkpoint, so that tracks do not decide."""


@contextmanager
def selection_for(
    model: str | Path,
    drives: int,
    *,
    max_episode_steps: int | None = None,
    connection: Mapping[str, Any] | None = None,
) -> Iterator[DriveSelection | None]:
    """A selection in the simulator that a world model was trained on, for ``train_agent``; ``None`` for no drives.

    Arguments as for :class:`DriveSelection`.

    Raises:
        BundleError: There is no such world model.
        ConfigError: The number of episodes is negative.
        SimulatorError: The simulator cannot be made.
    """
    if drives == 0:
        yield None
        return
    simulator = read_manifest(model)[1].simulator
    with DriveSelection(simulator, drives, max_episode_steps=max_episode_steps, connection=connection) as selection:
        yield selection


class DriveSelection:
    """Scores an agent by its mean return over a few episodes; an ``on_checkpoint`` of ``train_agent``.

    Args:
        simulator: Where to drive.
        episodes: Drives for each score.
        seed: Of the first episode; the others follow.
        max_episode_steps: Steps after which an episode is cut; ``None`` leaves it to the simulator.
        connection: Where the simulator runs, where it needs to be told.

    Attributes:
        frames: Simulator steps driven so far, which a comparison of data budgets has to count.

    Raises:
        ConfigError: There are no episodes, or a seed is held out for evaluation.
        SimulatorError: The simulator cannot be made.
    """

    def __init__(
        self,
        simulator: SimulatorSpec,
        episodes: int,
        *,
        seed: int = FIRST_SEED,
        max_episode_steps: int | None = None,
        connection: Mapping[str, Any] | None = None,
    ) -> None:
        if episodes < 1:
            raise ConfigError(f"{episodes} drives cannot choose a checkpoint; give at least 1.")
        if not 0 <= seed <= HELD_OUT_FROM - episodes:
            raise ConfigError(
                f"the seeds {seed} to {seed + episodes - 1} are not below {HELD_OUT_FROM}, from where on they are held "
                "out for evaluation."
            )
        self._seeds = range(seed, seed + episodes)
        self._max_steps = max_episode_steps
        self._env: gym.Env[Any, Any] = make_simulator_from_spec(simulator, connection=connection)
        self.frames = 0

    def __enter__(self) -> DriveSelection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, driver: Driver) -> float | None:
        """Mean return of the driver; ``None`` where the simulator was lost, which says nothing of it."""
        try:
            return statistics.fmean(self._drive(driver, seed) for seed in self._seeds)
        except SimulatorLostError:
            return None

    def close(self) -> None:
        """Close the simulator."""
        self._env.close()

    def _drive(self, driver: Driver, seed: int) -> float:
        total, steps = 0.0, -1  # the first step is the reset
        for step in drive_episode(self._env, driver, seed=seed, behaviour_seed=seed, max_steps=self._max_steps):
            total += step.reward
            steps += 1
        self.frames += steps
        return total
