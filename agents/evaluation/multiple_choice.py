"""Multiple choice: of action sequences that a simulator ran from one and the same state, which does the dream prefer?

The test is that of WorldModelGym (Reka 2026, https://reka.ai/news/worldmodelgym): a model need not be right about
rewards, as long as what it would choose is what turns out best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from wm_gym.actions import FloatArray
from wm_gym.agents.evaluation.bootstrap import bootstrap_interval
from wm_gym.agents.evaluation.moments import (
    DRAWS,
    FIRST_POINT,
    LAST_POINT,
    RUN_STEPS,
    Moment,
    at_moments,
    dreams_from,
    promised_rewards,
    run_from,
)
from wm_gym.data_collection.recording.behaviours import Behaviour, ControlSpace, SmoothRandom
from wm_gym.envs.arguments import check_count
from wm_gym.envs.dream_model import DreamModel
from wm_gym.observation import Observation
from wm_gym.precision import single_precision
from wm_gym.simulator import SimulatorSpec

NUM_CHOICES = 5
"""Action sequences at each point: four times what the driver did with a constant offset on every control, and a random
one. What the driver did is not among them: for a good driver it is nearly always the best, which nobody would have to
dream to know."""
CHOICE_STEPS = RUN_STEPS
"""Their length."""
SHORTER_STEPS = (10, 20)
"""They are compared over their first so many steps, too: soon a car is beyond the road that the last frame shows."""
OFFSET = 0.1
"""Deviation of the offsets; 1 moves a control from its middle to its end."""


@dataclass(frozen=True)
class DecisionPoint:
    """A moment of an episode in a simulator, and what came of each of ``C`` action sequences of ``K`` steps from there.

    Attributes:
        seed: Of the episode.
        observed: Frames ``(T, H, W, 3)`` uint8 and vectors ``(T, V)`` float32 of the episode up to the moment.
        actions: ``(T - 1, A)`` float32 in the stored format, between them.
        choices: ``(C, K, A)`` float32 in the stored format; the last is random.
        distances: ``(C,)`` float64: how far each is from what the driver did, the mean absolute difference of controls
            (1 is half the range of one).
        rewards: ``(C, K)`` float64: the simulator's rewards under each, 0 behind an end.
    """

    seed: int
    observed: Observation[NDArray[Any]]
    actions: FloatArray
    choices: FloatArray
    distances: NDArray[np.float64]
    rewards: NDArray[np.float64]


@dataclass(frozen=True)
class ChoiceScore:
    """How often a dream picks the best of several action sequences.

    Attributes:
        points: Number of decision points.
        choices: Sequences at each.
        steps: How many of their steps were compared.
        accuracy: Share of the points at which the sequence that the dream promises most for is the simulator's best,
            or as good as it.
        ci95: 95 % bootstrap interval of the accuracy over the points; ``None`` for one point.
        chance: The accuracy of picking at random: the mean share of sequences that are the best, as several may be.
        nearest_accuracy: The accuracy of picking the sequence that is nearest to what the driver did, which needs
            no model and no reward.
        regret: Mean return that the dream's picks lose against the best.
        chance_regret: Mean return that a random pick loses.
        nearest_regret: Mean return that the nearest sequence loses.
    """

    points: int
    choices: int
    steps: int
    accuracy: float
    ci95: tuple[float, float] | None
    chance: float
    nearest_accuracy: float
    regret: float
    chance_regret: float
    nearest_regret: float


def record_decision_points(
    simulator: SimulatorSpec,
    drivers: Sequence[Behaviour],
    count: int,
    *,
    seed: int,
    steps: int = CHOICE_STEPS,
    connection: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> list[DecisionPoint]:
    """Drive to ``count`` moments, one on each seed, and run all sequences from there.

    Args:
        simulator: Where to drive.
        drivers: Who drives to the moments, in turns.
        count: How many moments.
        seed: Of the first episode.
        steps: Length of the sequences.
        connection: Where the simulator runs, where it needs to be told.
        progress: Show a progress bar.

    Raises:
        ConfigError: ``count`` or ``steps`` is below 1.
        SimulatorError: The simulator does not repeat an episode under the same seed and actions.
        SimulatorLostError: It was lost.
    """
    check_count("choices", count)

    def choose(env: gym.Env[Any, Any], moment: Moment) -> DecisionPoint:
        return _decision_point(env, simulator, moment, steps)

    return at_moments(
        simulator,
        drivers,
        count,
        choose,
        seed=seed,
        steps=steps,
        connection=connection,
        description="multiple choice",
        progress=progress,
    )


def _decision_point(env: gym.Env[Any, Any], simulator: SimulatorSpec, moment: Moment, steps: int) -> DecisionPoint:
    rng = np.random.default_rng((moment.seed, 2))
    rng.integers(FIRST_POINT, LAST_POINT + 1)  # which the moment was drawn with
    space = ControlSpace(simulator.action)
    controls = _controls(space, moment.taken.actions, steps)
    shifted = [controls + OFFSET * rng.normal(size=space.dim) for _ in range(NUM_CHOICES - 1)]
    offset = [np.stack([space.to_action(one) for one in sequence]) for sequence in shifted]
    choices = np.stack([*offset, _random(simulator, steps, moment.seed)])
    distances = np.array([np.abs(_controls(space, choice, steps) - controls).mean() for choice in choices])
    rewards = np.zeros(choices.shape[:2])
    for row, choice in zip(rewards, choices, strict=True):
        run = run_from(env, moment.seed, moment.actions, choice)
        row[: len(run.rewards)] = run.rewards
    return DecisionPoint(moment.seed, moment.observed, moment.actions, choices, distances, rewards)


def _controls(space: ControlSpace, actions: FloatArray, steps: int) -> NDArray[np.float64]:
    """Actions ``(K, A)`` as ``steps`` controls: the last one goes on where an episode has ended."""
    controls = np.stack([space.from_action(action) for action in actions])
    return np.concatenate((controls, np.repeat(controls[-1:], steps - len(controls), axis=0)))


def _random(simulator: SimulatorSpec, steps: int, seed: int) -> FloatArray:
    behaviour = SmoothRandom(simulator.action)
    behaviour.reset(None, seed)
    return np.stack([behaviour.act(None) for _ in range(steps)])


@single_precision()
def dream_of_choices(model: DreamModel, point: DecisionPoint, *, draws: int = DRAWS) -> NDArray[np.float64]:
    """What a world model promises for each step of each of the sequences, ``(C, K)`` float64.

    The model observes the episode up to the moment. Every sequence meets the same noise; each reward is taken times the
    probability that the dream has come that far.

    Args:
        model: The world model.
        point: The moment and its sequences.
        draws: Dreams of each sequence, whose mean is taken.
    """
    sequences = list(point.choices)
    dreams = dreams_from(model, point.observed, point.actions, sequences, seed=point.seed, draws=draws)
    return np.stack([promised_rewards(dreamt) for dreamt in dreams])


def score_choices(
    points: Sequence[DecisionPoint], promised: Sequence[NDArray[np.float64]], steps: int = CHOICE_STEPS
) -> ChoiceScore:
    """Compare what was promised for the sequences with what they gave.

    Args:
        points: One or more decision points.
        promised: For each, ``(C, K)``: what a model (or anything else that tells rewards) expects of each step.
        steps: How many steps are compared, from the first on; all where there are fewer.
    """
    returns = [point.rewards[:, :steps].sum(1) for point in points]  # (C, K) -> (C,)
    best = np.array([of.max() for of in returns])
    picked = np.array([of[np.argmax(one[:, :steps].sum(1))] for of, one in zip(returns, promised, strict=True)])
    nearest = np.array([of[np.argmin(point.distances)] for of, point in zip(returns, points, strict=True)])
    right = (picked >= best).astype(float).tolist()
    return ChoiceScore(
        points=len(points),
        choices=len(returns[0]),
        steps=points[0].rewards[:, :steps].shape[1],
        accuracy=float(np.mean(right)),
        ci95=bootstrap_interval(right),
        chance=float(np.mean([np.mean(of >= of.max()) for of in returns])),
        nearest_accuracy=float(np.mean(nearest >= best)),
        regret=float(np.mean(best - picked)),
        chance_regret=float(np.mean([of.max() - of.mean() for of in returns])),
        nearest_regret=float(np.mean(best - nearest)),
    )
