"""The reality gap: what a world model imagines along a real episode and from its steps on, against what was earned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from wm_gym.actions import FloatArray
from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.evaluation.calibration import (
    RewardCalibration,
    TerminationCalibration,
    UncertaintyCalibration,
    calibrate_ends,
    calibrate_rewards,
    calibrate_uncertainty,
)
from wm_gym.envs.dream_model import DreamModel, uncertainty_of
from wm_gym.errors import DatasetError
from wm_gym.frames import Frame, tensor_to_frames
from wm_gym.metrics import reward_metrics
from wm_gym.observation import Observation
from wm_gym.precision import single_precision
from wm_gym.rollouts import dream, follow, imagine_step
from wm_gym.state import LatentState

HORIZONS = (1, 5, 10, 20, 30, 50, 100, 200)
"""Steps ahead at which rewards are summed, as far as they fit."""
FIRST_START = 20
"""First step of an episode at which a window begins: CarRacing's camera closes in during the first 13 of them."""
START_STRIDE = 5
"""Steps between the beginnings of two windows."""

_GAP = 4  # pixels between two pictures
_CAPTION_HEIGHT = 18
_BACKGROUND = 24


class ImaginedDrive(NamedTuple):
    """A dream along the actions of a recorded episode; entry ``k`` belongs to recorded step ``context - 1 + k``.

    Attributes:
        rewards: ``(K,)`` float32, predicted.
        continuations: ``(K,)`` float32, predicted probability that the episode goes on.
        frames: ``(K, H, W, 3)`` uint8, decoded; they answer to ``recorded_frames[context:]``.
    """

    rewards: FloatArray
    continuations: FloatArray
    frames: NDArray[np.uint8]


@torch.no_grad()
def imagine_along(
    model: DreamModel,
    frames: NDArray[np.uint8],
    actions: FloatArray,
    *,
    vectors: FloatArray | None = None,
    context: int = 1,
    seed: int = 0,
) -> ImaginedDrive:
    """Dream from a real state under the actions that were really taken.

    The model observes the first ``context`` frames and the actions between them; from there on it sees no frame.

    Args:
        model: The world model.
        frames: ``(T + 1, H, W, 3)`` uint8, recorded, in the model's frame size.
        actions: ``(T, A)`` float32 in the stored format.
        vectors: ``(T + 1, V)`` float32, recorded beside the frames; ``None`` where the simulator gives none.
        context: Frames that are observed, 1 to ``T``.
        seed: Of the model's noise, where its dynamics have some.

    Returns:
        The dream's ``K = T + 1 - context`` steps.

    Raises:
        DatasetError: The arrays do not fit each other, the model or the context.
    """
    steps = len(actions)
    height, width = model.config.frame_size
    if frames.shape != (steps + 1, height, width, 3) or frames.dtype != np.uint8:
        raise DatasetError(
            f"{steps} actions need {steps + 1} frames, uint8 {height}x{width} RGB, but {frames.dtype} of shape "
            f"{frames.shape} was given."
        )
    if not 1 <= context <= steps:
        raise DatasetError(f"context={context} must be 1 to {steps}, so that a step is left to imagine.")
    observed = np.zeros((steps + 1, 0), np.float32) if vectors is None else vectors
    seen: Observation[NDArray[Any]] = Observation(frames[:context], observed[:context])
    state = follow(model, seen, actions)[-1]
    planned = torch.from_numpy(np.asarray(actions[context - 1 :], np.float32)).to(model.device)
    dreamt = dream(model, state, planned[None], torch.Generator().manual_seed(seed))
    decoded = torch.cat([tensor_to_frames(model.decode(state)) for state in dreamt.states])
    return ImaginedDrive(
        dreamt.rewards[0].float().cpu().numpy(),
        dreamt.continuations[0].float().cpu().numpy(),
        decoded.contiguous().cpu().numpy(),
    )


def side_by_side(
    real_frames: NDArray[np.uint8],
    dream_frames: NDArray[np.uint8],
    *,
    captions: tuple[str, str] = ("simulator", "dream"),
    height: int = 192,
) -> list[Frame]:
    """Pictures of a recorded episode and its dream next to each other, with captions.

    Args:
        real_frames: ``(K, H, W, 3)`` uint8.
        dream_frames: ``(K, H, W, 3)`` uint8.
        captions: Above the left and the right picture.
        height: Pixels that each picture is enlarged to; its width follows.

    Returns:
        ``K`` frames, uint8 RGB, for :func:`wm_gym.agents.evaluation.video.write_video`.

    Raises:
        DatasetError: The two have different shapes.
    """
    if real_frames.shape != dream_frames.shape:
        raise DatasetError(
            f"frames side by side must have one shape, but {real_frames.shape} and {dream_frames.shape} were given."
        )
    frame_height, frame_width = real_frames.shape[1:3]
    width = round(height * frame_width / frame_height)
    banner = np.full((_CAPTION_HEIGHT, 2 * width + _GAP, 3), _BACKGROUND, np.uint8)
    for caption, left in zip(captions, (0, width + _GAP), strict=True):
        cv2.putText(banner, caption, (left + 4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    gap = np.full((height, _GAP, 3), _BACKGROUND, np.uint8)
    pictures = []
    for pair in zip(real_frames, dream_frames, strict=True):
        # Nearest neighbour shows the pixels that the model sees, without inventing any.
        left, right = (cv2.resize(frame, (width, height), interpolation=cv2.INTER_NEAREST) for frame in pair)
        pictures.append(np.concatenate((banner, np.concatenate((left, gap, right), axis=1))).astype(np.uint8))
    return pictures


class DriveSteps(NamedTuple):
    """What the reality gap needs of one real episode of ``T`` steps.

    Attributes:
        states: ``T`` latent states: what the agent knew before each action.
        actions: ``(T, A)`` float32 in the stored format.
        rewards: ``(T,)`` float32.
        terminated: Whether the task ended the episode, so that nothing could follow.
    """

    states: LatentState
    actions: FloatArray
    rewards: FloatArray
    terminated: bool


@dataclass(frozen=True)
class Windows:
    """Rewards of ``N`` windows of ``K`` steps cut from real episodes, as they were and as they were dreamt.

    A window may reach beyond the end of its episode only where the task ended it: nothing is earned there.

    Attributes:
        real: ``(N, K)`` float32, from the simulator.
        predicted: ``(N, K)`` float32: dreamt from the state at the window's start under the actions really taken.
        dreamt: ``(N, K)`` float32: dreamt from the same states with the agent choosing the actions in the dream, each
            times the probability that the dream has come that far.
        driven: ``(N, K)`` bool: whether the step is one of the episode, not beyond its end.
        deviation: ``(N, K)`` float32, one standard deviation of the error of the rewards predicted up to each step;
            ``None`` where the model does not tell its uncertainty.
    """

    real: FloatArray
    predicted: FloatArray
    dreamt: FloatArray
    driven: NDArray[np.bool_]
    deviation: FloatArray | None = None

    def __len__(self) -> int:
        """``N``."""
        return len(self.real)

    @property
    def horizons(self) -> list[int]:
        """Those of :data:`HORIZONS` that fit into the windows, and the windows' whole length."""
        length = self.real.shape[1]
        return sorted({steps for steps in HORIZONS if steps < length} | {length})

    def sums(self, steps: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Sums over the first ``steps`` steps of each window, ``(N,)`` each: real, predicted, dreamt."""
        return self.real[:, :steps].sum(1), self.predicted[:, :steps].sum(1), self.dreamt[:, :steps].sum(1)

    @staticmethod
    def join(parts: Sequence[Windows]) -> Windows:
        """The windows of several episodes, without those in which the model imagined a number that is not finite."""
        names = ("real", "predicted", "dreamt", "driven")
        real, predicted, dreamt, driven = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
        finite = np.isfinite(predicted).all(1) & np.isfinite(dreamt).all(1)
        deviations = [part.deviation for part in parts if part.deviation is not None]
        deviation = np.concatenate(deviations)[finite] if len(deviations) == len(parts) else None
        return Windows(real[finite], predicted[finite], dreamt[finite], driven[finite], deviation)


@dataclass(frozen=True)
class DriveGap:
    """Dream against simulator in one episode of ``T`` steps.

    Attributes:
        windows: Rewards over some steps from many moments of the episode.
        rewards: ``(T,)`` float32, from the simulator.
        predicted: ``(T,)`` float32: reward predicted for each step from the state before it.
        continuations: ``(T,)`` float32: predicted probability that the episode goes on after each step.
        terminated: ``(T,)`` bool: whether the simulator ended the episode with the step.
        dream_return: What the agent earns in ``T`` steps of a dream from the episode's first frame on.
    """

    windows: Windows
    rewards: FloatArray
    predicted: FloatArray
    continuations: FloatArray
    terminated: NDArray[np.bool_]
    dream_return: float


@dataclass(frozen=True)
class HorizonGap:
    """Dream against simulator over a number of steps, from the same states.

    Attributes:
        steps: Number of steps.
        mean_real: Mean real return of the windows over these steps.
        mean_dream: Mean return of the agent in its dreams, each reward times the probability of coming that far.
        ratio: ``mean_dream / mean_real``; ``None`` where the real return is not above 0.
        mean_dream_as_driven: As ``mean_dream``, but over as many steps as were driven: a window that the task ended
            counts up to there. Whether the model foresees ends is told by their calibration.
        ratio_as_driven: ``mean_dream_as_driven / mean_real``.
        dream_correlation: Of dream and real returns over the windows; ``None`` where one of them is constant.
        mean_predicted: Mean return predicted along the actions really taken.
        predicted_error: Mean absolute difference of this prediction and the real return.
        predicted_correlation: Of this prediction and the real return; ``None`` where one of them is constant.
    """

    steps: int
    mean_real: float
    mean_dream: float
    ratio: float | None
    mean_dream_as_driven: float
    ratio_as_driven: float | None
    dream_correlation: float | None
    mean_predicted: float
    predicted_error: float
    predicted_correlation: float | None


@dataclass(frozen=True)
class WholeDriveGap:
    """Dreams of whole episodes, each from an episode's first frame and of as many steps, against these episodes.

    Attributes:
        drives: Number of episodes.
        mean_steps: Their mean length.
        mean_real: Mean real return.
        mean_dream: Mean return of the dreams, each reward times the probability of coming that far.
        ratio: ``mean_dream / mean_real``; ``None`` where the real return is not above 0.
        correlation: Of dream and real returns; ``None`` for one episode, or where one of them is constant.
    """

    drives: int
    mean_steps: float
    mean_real: float
    mean_dream: float
    ratio: float | None
    correlation: float | None


@dataclass(frozen=True)
class RealityGap:
    """What an agent's world model promises against what its simulator gives.

    Attributes:
        horizon: Steps in a window.
        first_start: First step of an episode at which a window begins.
        start_stride: Steps between the beginnings of two windows; they overlap.
        windows: Number of windows, of all episodes together; windows with numbers that are not finite do not count.
        by_horizon: The gap over the first steps of the windows; empty where every episode is too short.
        whole_drive: The gap over whole episodes; ``None`` where no dream of one has a finite return.
        reward: Calibration of the reward predicted for the next step.
        termination: Calibration of the end predicted for the next step.
        uncertainty: Calibration of the dreams' uncertainty under the actions really taken, by number of steps; empty
            where the model does not tell it.
    """

    horizon: int
    first_start: int
    start_stride: int
    windows: int
    by_horizon: list[HorizonGap]
    whole_drive: WholeDriveGap | None
    reward: RewardCalibration | None
    termination: TerminationCalibration | None
    uncertainty: list[UncertaintyCalibration] = field(default_factory=list)


@torch.no_grad()
@single_precision()
def measure_drive(driver: Driver, drive: DriveSteps, horizon: int, seed: int = 0) -> DriveGap:
    """Dream from many moments of a real episode and keep the rewards.

    All dreams of the episode advance together, one call of the model for each step: those along the recorded actions,
    those in which the agent chooses (deterministically), and the one of the whole episode.

    Args:
        driver: The agent that drove.
        drive: Its episode.
        horizon: Steps in a window, ``K``.
        seed: Of the model's noise, where its dynamics have some: a sample of it, not its mean, is what is compared.

    Returns:
        The rewards; without windows where the episode is too short.
    """
    model, length = driver.model, len(drive.actions)
    # Where the task has not ended the episode, nobody knows what would have followed.
    starts = np.arange(FIRST_START, length if drive.terminated else length - horizon + 1, START_STRIDE)
    steps = starts[:, None] + np.arange(horizon)
    is_driven = steps < length
    steps = np.minimum(steps, length - 1)
    generator = torch.Generator().manual_seed(seed)

    begin = drive.states.select(torch.from_numpy(starts).to(drive.states.latent.device))
    state = LatentState.cat([drive.states.first(1), begin, begin])
    num_free = 1 + len(starts)
    rewards = np.zeros((state.batch_size, max(length, horizon)), np.float32)
    continuations = np.ones_like(rewards)
    uncertainty = uncertainty_of(model)
    variance = np.zeros((len(starts), horizon))
    for step in range(max(length, horizon) if len(starts) else length):
        if step == horizon:
            state, num_free = state.first(1), 1  # only the dream of the whole episode goes on
        actions = driver.actions(model.features(state.first(num_free)).cpu().numpy())
        if step < horizon:
            recorded = drive.actions[steps[:, step]]
            actions = np.concatenate((actions, recorded))
            if uncertainty is not None:
                features = model.features(state)[num_free:]
                added = uncertainty.step_variance(features, torch.from_numpy(recorded).to(model.device))
                variance[:, step] = added.cpu().numpy()
        state, reward, continuation = _imagine(model, state, actions, generator)
        rewards[: len(reward), step] = reward
        continuations[: len(reward), step] = continuation
    reached = np.cumprod(np.concatenate((np.ones_like(rewards[:, :1]), continuations[:, :-1]), axis=1), axis=1)
    free, bound = slice(1, 1 + len(starts)), slice(1 + len(starts), None)
    deviation = None if uncertainty is None else uncertainty.cumulated(np.where(is_driven, variance, 0.0))
    _, predicted, next_continuations = _imagine(model, drive.states, drive.actions, generator)
    return DriveGap(
        windows=Windows(
            real=np.where(is_driven, drive.rewards[steps], np.float32(0)),
            predicted=np.where(is_driven, rewards[bound, :horizon], np.float32(0)),
            dreamt=(rewards[free] * reached[free])[:, :horizon],
            driven=is_driven,
            deviation=None if deviation is None else deviation.astype(np.float32),
        ),
        rewards=drive.rewards,
        predicted=predicted,
        continuations=next_continuations,
        terminated=np.arange(length) == (length - 1 if drive.terminated else -1),
        dream_return=float(np.sum((rewards[0] * reached[0])[:length], dtype=np.float64)),
    )


def summarise_gap(drives: Sequence[DriveGap], horizon: int) -> RealityGap:
    """The reality gap over several episodes.

    Args:
        drives: At least one, all measured with the same horizon.
        horizon: That horizon.
    """
    windows = Windows.join([drive.windows for drive in drives])
    return RealityGap(
        horizon=horizon,
        first_start=FIRST_START,
        start_stride=START_STRIDE,
        windows=len(windows),
        by_horizon=gap_by_horizon(windows),
        whole_drive=_whole_drives([drive for drive in drives if np.isfinite(drive.dream_return)]),
        reward=calibrate_rewards(
            np.concatenate([drive.predicted for drive in drives]), np.concatenate([drive.rewards for drive in drives])
        ),
        termination=calibrate_ends(
            np.concatenate([drive.continuations for drive in drives]),
            np.concatenate([drive.terminated for drive in drives]),
        ),
        uncertainty=[]
        if windows.deviation is None
        else calibrate_uncertainty(windows.predicted, windows.real, windows.deviation, windows.horizons),
    )


def gap_by_horizon(windows: Windows) -> list[HorizonGap]:
    """Means, errors and correlations of the windows' returns, by number of steps; nothing without windows."""
    if len(windows) == 0:
        return []
    real = torch.from_numpy(windows.real)
    predictions = reward_metrics(torch.from_numpy(windows.predicted), real, windows.horizons)
    dreams = reward_metrics(torch.from_numpy(windows.dreamt), real, windows.horizons)
    found = []
    for steps in windows.horizons:
        mean_real, mean_predicted, mean_dream = (float(np.mean(sums, dtype=np.float64)) for sums in windows.sums(steps))
        as_driven = windows.dreamt[:, :steps].sum(1, where=windows.driven[:, :steps], dtype=np.float64).mean()
        error = predictions["absolute_error"][steps]
        assert error is not None
        found.append(
            HorizonGap(
                steps=steps,
                mean_real=mean_real,
                mean_dream=mean_dream,
                ratio=_ratio(mean_dream, mean_real),
                mean_dream_as_driven=float(as_driven),
                ratio_as_driven=_ratio(float(as_driven), mean_real),
                dream_correlation=dreams["correlation"][steps],
                mean_predicted=mean_predicted,
                predicted_error=error,
                predicted_correlation=predictions["correlation"][steps],
            )
        )
    return found


def _whole_drives(drives: Sequence[DriveGap]) -> WholeDriveGap | None:
    if not drives:
        return None
    real = np.array([drive.rewards.sum(dtype=np.float64) for drive in drives])
    dream = np.array([drive.dream_return for drive in drives])
    found = reward_metrics(torch.from_numpy(dream)[:, None], torch.from_numpy(real)[:, None], [1])
    return WholeDriveGap(
        drives=len(drives),
        mean_steps=float(np.mean([len(drive.rewards) for drive in drives])),
        mean_real=float(real.mean()),
        mean_dream=float(dream.mean()),
        ratio=_ratio(float(dream.mean()), float(real.mean())),
        correlation=found["correlation"][1],
    )


def _ratio(dream: float, real: float) -> float | None:
    return dream / real if real > 0 else None


def _imagine(
    model: DreamModel, state: LatentState, actions: FloatArray, generator: torch.Generator
) -> tuple[LatentState, FloatArray, FloatArray]:
    """One dreamt step of a batch: the next states, rewards ``(N,)`` and continuation probabilities ``(N,)``."""
    taken = torch.from_numpy(actions).to(model.device)
    following, reward, continuation = imagine_step(model, state, taken, generator)
    numbers = torch.stack((reward, continuation)).float().cpu().numpy()
    return following, numbers[0], numbers[1]
