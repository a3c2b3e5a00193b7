"""Counterfactuals: what comes of wheel or pedals held at several values, in a simulator and in the dream of its state.

Along recorded actions a dream may be right without knowing what the actions do. Here each state is left under actions
that nobody took there: counterfactual fidelity, as arXiv 2606.15032 (Yu et al. 2026) asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from wm_gym.actions import FloatArray
from wm_gym.agents.evaluation.moments import (
    DRAWS,
    RUN_STEPS,
    Moment,
    at_moments,
    dreams_from,
    promised_rewards,
    run_from,
)
from wm_gym.agents.evaluation.pictures import PictureScore, frames_at, picture_steps, score_pictures
from wm_gym.agents.evaluation.rank_agreement import pearson
from wm_gym.data_collection.recording.behaviours import Behaviour, ControlSpace
from wm_gym.envs.arguments import check_count
from wm_gym.envs.dream_model import DreamModel
from wm_gym.envs.rollout_contract import not_finite
from wm_gym.errors import ConfigError
from wm_gym.frames import tensor_to_frames
from wm_gym.metrics import HELD_STEERING, HELD_THROTTLE
from wm_gym.precision import single_precision
from wm_gym.rollouts import Dreamt
from wm_gym.simulator import SimulatorSpec
from wm_gym.state import LatentState

Control = Literal["wheel", "pedals"]
HELD_ACCELERATION = (-0.5, 0.0, 0.15, 0.5, 1.0)
"""Values of the pedals, negative ones brake. The wheel is straight meanwhile: what the driver did with it would be news
of a road that the model has not seen, and that its dream draws otherwise."""
HELD: Mapping[Control, tuple[float, ...]] = {"wheel": HELD_STEERING, "pedals": HELD_ACCELERATION}
"""Values of each control that is held, in the order of the action sequences."""


@dataclass(frozen=True)
class CounterfactualPoint:
    """A moment of an episode in a simulator, and what came of ``S`` action sequences from there.

    The last one is what the driver did; the others hold the values of :data:`HELD`.

    Attributes:
        moment: The moment.
        sequences: ``S`` arrays ``(K, A)`` float32 in the stored format; the last may be shorter.
        returns: ``(S,)`` float64: sum of the simulator's rewards; nothing is earned behind an end.
        frames: ``S`` arrays ``(P, H, W, 3)`` uint8: the simulator's frames after the steps that
            :func:`~wm_gym.agents.evaluation.pictures.picture_steps` names, up to an end.
    """

    moment: Moment
    sequences: list[FloatArray]
    returns: NDArray[np.float64]
    frames: list[NDArray[np.uint8]]


class DreamtPoint(NamedTuple):
    """What a world model makes of the sequences of a :class:`CounterfactualPoint`.

    Attributes:
        returns: ``(S,)`` float64: what it promises, the mean over its dreams.
        frames: ``S`` arrays ``(P, H, W, 3)`` uint8 of the first dream, after the same steps as the simulator's;
            ``None`` where the model decodes no frames.
    """

    returns: NDArray[np.float64]
    frames: list[NDArray[np.uint8]] | None


@dataclass(frozen=True)
class HeldScore:
    """Dream against simulator with one control held, over all values and moments.

    Attributes:
        values: The values that were held, -1 to 1.
        real: For each, the mean over the moments of the summed reward in the simulator.
        predicted: For each, that of what the dream promises.
        pearson: Correlation of promised and real return over values and moments; ``None`` where one does not vary.
        mean_absolute_error: Mean absolute difference of the two, in units of return.
    """

    values: list[float]
    real: list[float]
    predicted: list[float]
    pearson: float | None
    mean_absolute_error: float


@dataclass(frozen=True)
class CounterfactualScore:
    """How well a dream tells what wheel and pedals do.

    Attributes:
        points: Number of moments.
        steps: Steps that each value is held.
        wheel: With the wheel held, and a little throttle.
        pedals: With the pedals held, and the wheel straight.
    """

    points: int
    steps: int
    wheel: HeldScore
    pedals: HeldScore


def check_has_wheel(simulator: SimulatorSpec) -> None:
    """Check that a simulator has wheel and pedals to be held.

    Raises:
        ConfigError: It has not.
    """
    if simulator.action.kind != "driving":
        raise ConfigError(
            f"counterfactuals hold wheel and pedals, which the actions of {simulator.id} do not have; leave them out."
        )


def held_sequences(simulator: SimulatorSpec, steps: int) -> list[FloatArray]:
    """The held actions as sequences ``(steps, A)`` float32 in the stored format, in the order of :data:`HELD`."""
    space = ControlSpace(simulator.action)
    controls = [(angle, HELD_THROTTLE) for angle in HELD["wheel"]] + [(0.0, value) for value in HELD["pedals"]]
    return [np.repeat(space.to_action(np.array(held))[None], steps, axis=0) for held in controls]


def record_counterfactuals(
    simulator: SimulatorSpec,
    drivers: Sequence[Behaviour],
    count: int,
    *,
    seed: int,
    steps: int = RUN_STEPS,
    connection: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> list[CounterfactualPoint]:
    """Drive to ``count`` moments, one on each seed, and hold wheel and pedals from there.

    Args:
        simulator: Where to drive; its actions are those of a car.
        drivers: Who drives to the moments, in turns.
        count: How many moments.
        seed: Of the first episode.
        steps: How long a value is held.
        connection: Where the simulator runs, where it needs to be told.
        progress: Show a progress bar.

    Raises:
        ConfigError: ``count`` or ``steps`` is below 1, or there is no wheel.
        SimulatorError: The simulator does not repeat an episode under the same seed and actions.
        SimulatorLostError: It was lost.
    """
    check_count("counterfactuals", count)
    check_has_wheel(simulator)
    held = held_sequences(simulator, check_count("steps", steps))

    def hold(env: gym.Env[Any, Any], moment: Moment) -> CounterfactualPoint:
        runs = [*(run_from(env, moment.seed, moment.actions, sequence) for sequence in held), moment.taken]
        return CounterfactualPoint(
            moment,
            [*held, moment.taken.actions],
            np.array([run.total for run in runs]),
            [frames_at(run.frames) for run in runs],
        )

    return at_moments(
        simulator,
        drivers,
        count,
        hold,
        seed=seed,
        steps=steps,
        connection=connection,
        description="counterfactuals",
        progress=progress,
    )


@single_precision()
def dream_of_counterfactuals(model: DreamModel, point: CounterfactualPoint, *, draws: int = DRAWS) -> DreamtPoint:
    """What a world model promises for each of the sequences, and the frames that it dreams.

    The model observes the episode up to the moment. Every sequence meets the same noise; each reward is taken times the
    probability that the dream has come that far.

    Args:
        model: The world model.
        point: The moment and its sequences.
        draws: Dreams of each sequence, whose mean return is taken.

    Raises:
        BundleError: The model imagined a number that is not finite.
    """
    moment, returns, frames = point.moment, [], []
    dreams = dreams_from(model, moment.observed, moment.actions, point.sequences, seed=moment.seed, draws=draws)
    for dreamt in dreams:
        returns.append(float(promised_rewards(dreamt).sum()))
        frames.append(_decoded(model, dreamt))
    if not np.isfinite(returns).all():
        raise not_finite()
    decoded = [one for one in frames if one is not None]
    return DreamtPoint(np.array(returns), decoded if len(decoded) == len(frames) else None)


@torch.no_grad()
def _decoded(model: DreamModel, dreamt: Dreamt) -> NDArray[np.uint8] | None:
    """Frames ``(P, H, W, 3)`` of the first of the dreams; ``None`` where the model has none."""
    decode = getattr(model, "decode", None)
    if decode is None:
        return None
    states = LatentState.cat([dreamt.states[step - 1].first(1) for step in picture_steps(len(dreamt.states))])
    try:
        return np.asarray(tensor_to_frames(decode(states)).contiguous().cpu().numpy(), np.uint8)
    except NotImplementedError:
        return None


def score_counterfactuals(
    points: Sequence[CounterfactualPoint], promised: Sequence[NDArray[np.float64]]
) -> CounterfactualScore:
    """Compare what was promised under held actions with what they gave.

    Args:
        points: One or more moments.
        promised: For each, ``(S,)``: what a model (or anything else that predicts returns) expects of its sequences.

    Raises:
        ConfigError: A promised return is not finite.
    """
    real = np.stack([point.returns for point in points])
    predicted = np.stack(promised)
    scores, begin = {}, 0
    for control, values in HELD.items():
        columns = slice(begin, begin + len(values))
        scores[control] = _score(list(values), real[:, columns], predicted[:, columns])
        begin += len(values)
    return CounterfactualScore(len(points), len(points[0].sequences[0]), scores["wheel"], scores["pedals"])


def pictures_of(
    points: Sequence[CounterfactualPoint], dreamt: Sequence[DreamtPoint], device: str | torch.device = "cpu"
) -> PictureScore | None:
    """Compare the frames of all sequences, what the drivers did among them.

    Args:
        points: One or more moments.
        dreamt: For each, what a model makes of it.
        device: Where the networks that compare compute.

    Returns:
        The comparison; ``None`` where the model decodes no frames.
    """
    real, ours, last = [], [], []
    for point, one in zip(points, dreamt, strict=True):
        if one.frames is None:
            return None
        real += point.frames
        ours += one.frames
        last += [point.moment.observed.image[-1]] * len(point.frames)
    return score_pictures(real, ours, last, device=device)


def _score(values: list[float], real: NDArray[np.float64], predicted: NDArray[np.float64]) -> HeldScore:
    """The score of one control from returns ``(N, V)`` of ``N`` moments and ``V`` values."""
    return HeldScore(
        values=values,
        real=real.mean(0).tolist(),
        predicted=predicted.mean(0).tolist(),
        pearson=pearson(predicted.ravel().tolist(), real.ravel().tolist()),
        mean_absolute_error=float(np.abs(predicted - real).mean()),
    )
