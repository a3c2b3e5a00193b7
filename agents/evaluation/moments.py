"""Moments of episodes: a simulator is brought back to them, and other actions are tried from there, also in a dream.

A simulator need not save its state for that: where equal seeds and actions give equal episodes, the way to a state is
driven again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from wm_gym.actions import FloatArray
from wm_gym.data_collection.recording.behaviours import Behaviour
from wm_gym.data_collection.recording.driving import drive_episode
from wm_gym.envs.arguments import check_count
from wm_gym.envs.dream_model import DreamModel
from wm_gym.envs.simulators import make_simulator_from_spec
from wm_gym.errors import SimulatorError
from wm_gym.observation import Observation, Observed
from wm_gym.progress import progress_bar
from wm_gym.rollouts import Dreamt, dream, follow
from wm_gym.simulator import SimulatorSpec
from wm_gym.state import LatentState

T = TypeVar("T")

RUN_STEPS = 30
"""Steps that are driven from a moment."""
FIRST_POINT, LAST_POINT = 20, 120
"""Steps of an episode between which a moment lies; CarRacing's camera closes in during the first 13 of them."""
DRAWS = 8
"""Dreams of each action sequence, whose mean is what a model promises."""


class Run(NamedTuple):
    """What came of some actions in the simulator, ``M`` steps up to the end of the episode.

    Attributes:
        actions: ``(M, A)`` float32 in the stored format.
        rewards: ``(M,)`` float64, of each step.
        frames: ``(M, H, W, 3)`` uint8, after each step.
    """

    actions: FloatArray
    rewards: NDArray[np.float64]
    frames: NDArray[np.uint8]

    @property
    def total(self) -> float:
        """Sum of the rewards."""
        return float(self.rewards.sum())


@dataclass(frozen=True)
class Moment:
    """A moment of an episode, the state after ``T - 1`` steps.

    Attributes:
        seed: Of the episode.
        observed: Frames ``(T, H, W, 3)`` uint8 and vectors ``(T, V)`` float32 of the episode up to the moment.
        actions: ``(T - 1, A)`` float32 in the stored format, between them.
        taken: What the driver did from there.
    """

    seed: int
    observed: Observation[NDArray[Any]]
    actions: FloatArray
    taken: Run


class _Recorded:
    """Does again what was recorded.

    Args:
        actions: ``(T, A)`` float32 in the stored format.
    """

    name = "recorded"

    def __init__(self, actions: FloatArray) -> None:
        self._actions = iter(actions)

    def reset(self, env: gym.Env[Any, Any], seed: int) -> None:
        """Begin; there is one episode for each of them."""

    def act(self, observation: Observed) -> FloatArray:
        """The next action."""
        return next(self._actions)


def at_moments(
    simulator: SimulatorSpec,
    drivers: Sequence[Behaviour],
    count: int,
    then: Callable[[gym.Env[Any, Any], Moment], T],
    *,
    seed: int,
    steps: int = RUN_STEPS,
    connection: Mapping[str, Any] | None = None,
    description: str,
    progress: bool = False,
) -> list[T]:
    """Drive to ``count`` moments, one on each seed, and do something at each.

    Args:
        simulator: Where to drive.
        drivers: Who drives to the moments, in turns.
        count: How many moments.
        then: Called with the simulator, for :func:`run_from`, and the moment.
        seed: Of the first episode.
        steps: How many more the driver drives.
        connection: Where the simulator runs, where it needs to be told.
        description: Of the progress bar.
        progress: Show one.

    Returns:
        What ``then`` gave.

    Raises:
        ConfigError: ``steps`` is below 1.
        SimulatorError: The simulator does not repeat an episode under the same seed and actions.
        SimulatorLostError: It was lost.
    """
    check_count("steps", steps)
    found = []
    with (
        closing(make_simulator_from_spec(simulator, connection=connection)) as env,
        progress_bar(count, "point", description, enabled=progress) as bar,
    ):
        for place in range(count):
            moment = _drive_to_moment(env, simulator, drivers[place % len(drivers)], seed + place, steps)
            found.append(then(env, moment))
            bar.update()
    return found


def _drive_to_moment(
    env: gym.Env[Any, Any], simulator: SimulatorSpec, driver: Behaviour, seed: int, steps: int
) -> Moment:
    rng = np.random.default_rng((seed, 2))
    moment = int(rng.integers(FIRST_POINT, LAST_POINT + 1))
    driven = list(drive_episode(env, driver, seed=seed, behaviour_seed=seed, max_steps=moment + steps))
    seen, done = [step.observed for step in driven], driven[1:]  # the first step is the reset
    if len(done) <= moment:
        moment = len(done) // 2
    before = np.stack([step.action for step in done])[:moment].reshape(moment, simulator.action.dim)
    own = np.stack([step.action for step in done[moment:]])
    observed = Observation(*(np.stack(part[: moment + 1]) for part in zip(*seen, strict=True)))
    first = sum(step.reward for step in done[moment:])
    again = run_from(env, seed, before, own)
    if not np.isclose(again.total, first, rtol=0.0, atol=1e-6):
        raise SimulatorError(
            f"{simulator.id} does not repeat a drive under the same seed and actions (seed {seed}: a return of "
            f"{first:.3f}, then {again.total:.3f}), so that no state can be restored; leave multiple choice and "
            "counterfactuals out."
        )
    return Moment(seed, observed, before, again)


def run_from(env: gym.Env[Any, Any], seed: int, before: FloatArray, actions: FloatArray) -> Run:
    """Drive to a moment again, and take other actions from there.

    Args:
        env: The simulator.
        seed: Of the episode.
        before: ``(T - 1, A)`` float32 in the stored format, those that lead to the moment.
        actions: ``(K, A)``, from there; those behind an end of the episode are not taken.
    """
    again = _Recorded(np.concatenate((before, actions)))
    driven = drive_episode(env, again, seed=seed, behaviour_seed=seed, max_steps=len(before) + len(actions))
    steps = list(driven)[1 + len(before) :]
    return Run(
        actions[: len(steps)],
        np.array([step.reward for step in steps], np.float64),
        np.stack([step.observed[0] for step in steps]),
    )


def dreams_from(
    model: DreamModel,
    observed: Observation[NDArray[Any]],
    before: FloatArray,
    sequences: Sequence[FloatArray],
    *,
    seed: int,
    draws: int,
) -> Iterator[Dreamt]:
    """Dream each of several action sequences from a moment, all under the same noise.

    Args:
        model: The world model, which observes the episode up to the moment.
        observed: ``(T, H, W, 3)`` uint8 and ``(T, V)`` float32 of the episode.
        before: ``(T - 1, A)`` float32 in the stored format, between them.
        sequences: ``(K, A)`` each.
        seed: Of the noise.
        draws: Dreams of each sequence, ``B``.

    Yields:
        The ``B`` dreams of each sequence.
    """
    begin = LatentState.cat([follow(model, observed, before)[-1]] * draws)
    for sequence in sequences:
        actions = torch.from_numpy(sequence).to(model.device).expand(draws, *sequence.shape)
        yield dream(model, begin, actions, torch.Generator().manual_seed(seed))


def promised_rewards(dreamt: Dreamt) -> NDArray[np.float64]:
    """Mean over dreams of each step's reward times the probability that its dream has come that far, ``(K,)``."""
    earlier = torch.cat((torch.ones_like(dreamt.rewards[:, :1]), dreamt.continuations[:, :-1]), 1)
    return (dreamt.rewards * torch.cumprod(earlier, 1)).double().mean(0).cpu().numpy()
