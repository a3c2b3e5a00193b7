"""Drives in a dream: policies that act in many dreams at once, the states that these begin from, and what they earn.

All that is asked of a world model are the five verbs of :class:`~wm_gym.envs.dream_model.DreamModel`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from wm_gym.actions import FloatArray
from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.policies.observers import ObserversSideBySide
from wm_gym.data_collection.recording.behaviours import BlindBehaviour
from wm_gym.data_collection.recording.driving import check_not_lost
from wm_gym.envs.dream_model import DreamModel, start_states_of, uncertainty_of
from wm_gym.envs.imagined_rollouts import ImaginedRollouts
from wm_gym.envs.rollout_contract import ObservationKind, Observations
from wm_gym.envs.simulators import make_simulator_from_spec
from wm_gym.errors import BundleError
from wm_gym.observation import Observation, split_observation
from wm_gym.precision import single_precision
from wm_gym.rollouts import LatentFilter
from wm_gym.state import LatentState


class DreamDrives(NamedTuple):
    """What a policy earns in ``K`` steps of dreams from each of ``N`` start states.

    Attributes:
        rewards: ``(N, K)`` float32: the reward of each step, the mean over the draws.
        deviations: ``(N, K)`` float32: one standard deviation of the error of the reward that is summed up after each
            step (see :mod:`wm_gym.uncertainty`), the mean over the draws; ``None`` where the model does not tell it.
    """

    rewards: FloatArray
    deviations: FloatArray | None


class DreamPolicy(Protocol):
    """Chooses the actions of ``N`` dreams side by side.

    Attributes:
        sees: What it acts on: ``"latent"``, the features of the dreaming model, or ``"image"``, what the dream shows.
    """

    sees: ObservationKind

    def reset(self, seeds: Sequence[int]) -> None:
        """Begin ``N`` dreams, each with the seed that an episode in the simulator would have."""
        ...

    def act(self, observed: Observations) -> FloatArray:
        """Actions ``(N, A)`` float32 in the stored format.

        Args:
            observed: Features ``(N, F)`` float32, or frames ``(N, H, W, 3)`` uint8, in a ``Dict`` with vectors
                ``(N, V)`` float32 where the simulator gives them.
        """
        ...


class AgentInDreams:
    """An agent that was trained on the features of the world model that dreams.

    Args:
        driver: The agent; it takes its mean actions, as in an evaluation.
    """

    sees: ObservationKind = "latent"

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def reset(self, seeds: Sequence[int]) -> None:
        """Begin; the agent remembers nothing beside the features."""

    def act(self, observed: Observations) -> FloatArray:
        """The policy's mean actions."""
        return self.driver.actions(observed)


class OnlookerInDreams:
    """An agent with eyes of its own, another world model or none: it is shown the dream's frames, as a simulator's.

    Args:
        driver: The agent; it takes its mean actions, as in an evaluation.
    """

    sees: ObservationKind = "image"

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.reset(())

    def reset(self, seeds: Sequence[int]) -> None:
        """Begin with eyes for each dream."""
        self._observers = ObserversSideBySide(self.driver.observer, len(seeds))
        self._last_actions: FloatArray | None = None

    def act(self, observed: Observations) -> FloatArray:
        """The policy's mean actions."""
        seen = self._observers.observations(split_observation(observed), self._last_actions)
        self._last_actions = self.driver.actions(seen)
        return self._last_actions


class BlindInDreams:
    """A behaviour that looks at nothing: with equal seeds it acts in a dream as it does in the simulator.

    Args:
        make: Makes one of it for each dream.
    """

    sees: ObservationKind = "latent"

    def __init__(self, make: Callable[[], BlindBehaviour]) -> None:
        self._make = make
        self._behaviours: list[BlindBehaviour] = []

    def reset(self, seeds: Sequence[int]) -> None:
        """Begin with a behaviour for each dream."""
        self._behaviours = [self._make() for _ in seeds]
        for behaviour, seed in zip(self._behaviours, seeds, strict=True):
            behaviour.reset(None, seed)

    def act(self, observed: Observations) -> FloatArray:
        """The actions that come next."""
        return np.stack([behaviour.act(None) for behaviour in self._behaviours])


def first_states(model: DreamModel, seeds: Sequence[int], connection: Mapping[str, Any] | None = None) -> LatentState:
    """What a model makes of the first observation of each of ``N`` episodes of its simulator.

    Args:
        model: The world model.
        seeds: Seed of each episode.
        connection: Where the simulator runs, where it needs to be told.

    Returns:
        ``N`` states.

    Raises:
        SimulatorError: The simulator cannot be made, or was lost.
    """
    states = []
    with closing(make_simulator_from_spec(model.simulator, connection=connection)) as env:
        for seed in seeds:
            observed, info = env.reset(seed=seed)
            check_not_lost(info)
            seen = split_observation(observed)
            states.append(LatentFilter(model).observe(Observation(seen.image[None], seen.vector[None]), None))
    return LatentState.cat(states)


def drawn_states(model: DreamModel, count: int, seed: int) -> LatentState:
    """``count`` of a model's own start states, drawn without a simulator.

    Raises:
        BundleError: The model has none.
    """
    bank = start_states_of(model)
    rows = np.random.default_rng(seed).integers(bank.batch_size, size=count)
    return bank.select(torch.from_numpy(rows).to(bank.latent.device))


def dream_drives(
    model: DreamModel,
    policy: DreamPolicy,
    starts: LatentState,
    seeds: Sequence[int],
    *,
    steps: int,
    draws: int = 1,
) -> FloatArray:
    """Let a policy drive in dreams, and keep what it earns; see :func:`doubted_dream_drives`.

    Returns:
        ``(N, K)`` float32: the reward of each step, the mean over the draws.
    """
    return doubted_dream_drives(model, policy, starts, seeds, steps=steps, draws=draws).rewards


@single_precision()
def doubted_dream_drives(
    model: DreamModel,
    policy: DreamPolicy,
    starts: LatentState,
    seeds: Sequence[int],
    *,
    steps: int,
    draws: int = 1,
) -> DreamDrives:
    """Let a policy drive in dreams, all of which advance together.

    A dream that may have ended goes on and counts less: each reward is taken times the probability that the dream has
    come that far. The noise of a dream depends on its seed and its draw alone, so that every policy meets the same.

    Args:
        model: The world model.
        policy: What drives.
        starts: ``N`` states to begin from.
        seeds: ``N`` seeds, of the noise and of the policy's own randomness.
        steps: Length of the dreams, ``K``.
        draws: Dreams from each state, which differ in the noise of stochastic dynamics.

    Returns:
        What it earns, and how far that may be off where the model tells it.

    Raises:
        BundleError: The model imagined a number that is not finite, or states and seeds do not fit each other.
    """
    count = starts.batch_size
    if count != len(seeds):
        raise BundleError(f"{count} start states do not fit {len(seeds)} seeds; give one for each.")
    rollouts = ImaginedRollouts(
        count * draws,
        model=model,
        horizon=steps,
        observation=policy.sees,
        action=None,
        device=None,
        start_states=starts,
        termination="never",
    )
    slots = [(place, draw) for draw in range(draws) for place in range(count)]
    noise_seeds = [np.random.SeedSequence((seeds[place], draw)).generate_state(1)[0] for place, draw in slots]
    rollouts.random.seed([int(seed) for seed in noise_seeds])
    rollouts.reset(start_state=np.array([place for place, _ in slots], np.int64))
    policy.reset([seeds[place] for place, _ in slots])
    uncertainty = uncertainty_of(model)
    rewards = np.zeros((len(slots), steps))
    variances = np.zeros_like(rewards)
    reached = np.ones(len(slots))
    for step in range(steps):
        actions = policy.act(rollouts.observations())
        if uncertainty is not None:
            with torch.inference_mode():
                features = model.features(rollouts.state)
                added = uncertainty.step_variance(features, torch.from_numpy(actions).to(model.device))
            variances[:, step] = added.cpu().numpy() * reached**2
        outcome = rollouts.step(actions)
        rewards[:, step] = outcome.reward * reached
        reached *= outcome.continuation
    deviations = None if uncertainty is None else uncertainty.cumulated(variances)
    return DreamDrives(
        rewards.reshape(draws, count, steps).mean(0).astype(np.float32),
        None if deviations is None else deviations.reshape(draws, count, steps).mean(0).astype(np.float32),
    )
