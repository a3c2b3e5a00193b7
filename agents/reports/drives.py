"""An agent's real episodes beside its dreams, for the report: a film, and the reality gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from wm_gym.actions import FloatArray
from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.evaluation.reality_gap import (
    FIRST_START,
    HORIZONS,
    DriveSteps,
    RealityGap,
    Windows,
    imagine_along,
    measure_drive,
    side_by_side,
    summarise_gap,
)
from wm_gym.agents.evaluation.video import write_video
from wm_gym.data_collection.recording.driving import drive_episode
from wm_gym.data_collection.recording.worker_pool import Losses
from wm_gym.envs.dream_model import DreamModel
from wm_gym.envs.simulators import make_simulator_from_spec
from wm_gym.errors import SimulatorLostError
from wm_gym.frames import Frame, tensor_to_frames
from wm_gym.observation import Observation
from wm_gym.rollouts import follow
from wm_gym.state import LatentState

MAX_DRIVE_STEPS = 200
_MAX_HORIZON = 50
_CONTEXT = 10
_FILM_STEPS = 80
_FILM_HEIGHTS = (256, 192, 128)
_FILM_MAX_BYTES = 3_000_000
_STRIP_STEPS = (1, 5, 10, 20, 40, 80)
_STRIP_GAP = 2
_DEFAULT_FPS = 12.5


class Drive(NamedTuple):
    """One episode of an agent in the simulator.

    Attributes:
        seed: Of the simulator.
        observed: ``(T + 1, H, W, 3)`` uint8 and ``(T + 1, V)`` float32.
        actions: ``(T, A)`` float32 in the stored format.
        rewards: ``(T,)`` float32.
        terminated: Whether the task ended it.
    """

    seed: int
    observed: Observation[NDArray[Any]]
    actions: FloatArray
    rewards: FloatArray
    terminated: bool = False


@dataclass(frozen=True)
class Film:
    """An episode beside its dream.

    Attributes:
        gif: The film.
        strip: ``(H', W', 3)`` uint8: a few moments of it, the simulator above the dream.
        strip_steps: Steps of the dream that the strip shows.
        seed: Of the episode.
        first_frame: Number of the episode's frame that the film begins with.
        context: Frames that the model sees before the dream begins.
        steps: Steps of the dream.
    """

    gif: bytes
    strip: Frame
    strip_steps: list[int]
    seed: int
    first_frame: int
    context: int
    steps: int


def record_drives(
    driver: Driver,
    seeds: Sequence[int],
    max_steps: int = MAX_DRIVE_STEPS,
    *,
    connection: Mapping[str, Any] | None = None,
) -> list[Drive]:
    """Let an agent drive in the simulator of its world model. An episode whose simulator is lost is driven again.

    Args:
        driver: The agent.
        seeds: One episode for each.
        max_steps: Steps after which an episode is cut.
        connection: Where the simulator runs, where it needs to be told.

    Raises:
        SimulatorError: The simulator cannot be made here.
        SimulatorLostError: It was lost again and again.
    """
    losses = Losses(1)
    drives: list[Drive] = []
    with closing(make_simulator_from_spec(driver.simulator, connection=connection)) as env:
        while len(drives) < len(seeds):
            index, seed = len(drives), seeds[len(drives)]
            try:
                drives.append(_record_drive(env, driver, seed, max_steps))
                losses.finished(0)
            except SimulatorLostError as error:
                losses.add(0, index, str(error), f"drive {index} (seed {seed})")
    return drives


def _record_drive(env: gym.Env[Any, Any], driver: Driver, seed: int, max_steps: int) -> Drive:
    driven = list(drive_episode(env, driver, seed=seed, behaviour_seed=seed, max_steps=max_steps))
    seen, steps = [step.observed for step in driven], driven[1:]  # the first step is the reset
    return Drive(
        seed,
        Observation(np.stack([one.image for one in seen]), np.stack([one.vector for one in seen])),
        np.stack([step.action for step in steps]),
        np.asarray([step.reward for step in steps], np.float32),
        steps[-1].terminated,
    )


def make_film(model: DreamModel, drive: Drive, file: Path) -> Film | None:
    """Write a GIF of an episode and of the dream that begins in the midst of it under the same actions.

    Args:
        model: The world model.
        drive: The episode.
        file: Where the GIF goes; it is made smaller until it is below 3 MB.

    Returns:
        The film, or ``None`` for an episode too short to dream along.
    """
    steps = len(drive.actions)
    context = min(_CONTEXT, steps // 2)
    if context < 1:
        return None
    first = min(FIRST_START, max(0, steps - context - FIRST_START))
    clip = slice(first, min(steps, first + context + _FILM_STEPS - 1))
    actions = drive.actions[clip]
    observed = _part(drive.observed, slice(clip.start, clip.stop + 1))
    real = observed.image
    dream = imagine_along(model, real, actions, vectors=observed.vector, context=context).frames
    seen = _reconstruct(model, _part(observed, slice(context)), actions)
    shown = np.concatenate((seen, dream))
    captions = ["model watching"] * context + [f"dream, step {step}" for step in range(1, len(dream) + 1)]
    fps = 1.0 / model.simulator.step_s if model.simulator.step_s > 0 else _DEFAULT_FPS
    for height in _FILM_HEIGHTS:
        pictures = (
            side_by_side(real[i : i + 1], shown[i : i + 1], captions=("simulator", caption), height=height)[0]
            for i, caption in enumerate(captions)
        )
        write_video(file, pictures, fps)
        if file.stat().st_size <= _FILM_MAX_BYTES:
            break
    moments = [step for step in _STRIP_STEPS if step <= len(dream)]
    return Film(
        gif=file.read_bytes(),
        strip=_strip(real[context:], dream, moments),
        strip_steps=moments,
        seed=drive.seed,
        first_frame=first,
        context=context,
        steps=len(dream),
    )


def _strip(real: NDArray[np.uint8], dream: NDArray[np.uint8], steps: Sequence[int]) -> Frame:
    """Moments of an episode above those of its dream, with white lines between them."""
    edges = ((0, _STRIP_GAP), (0, _STRIP_GAP), (0, 0))
    rows = [
        np.concatenate([np.pad(frames[step - 1], edges, constant_values=255) for step in steps], axis=1)
        for frames in (real, dream)
    ]
    return np.concatenate(rows)[:-_STRIP_GAP, :-_STRIP_GAP]


def measure_gap(driver: Driver, drives: Sequence[Drive]) -> tuple[Windows, RealityGap] | None:
    """Dream from many moments of real episodes and compare the rewards.

    The state at each moment is the one that the agent itself had there, filtered from the episode's beginning.

    Args:
        driver: The agent that drove.
        drives: Its episodes.

    Returns:
        The rewards of all windows, of the greatest length up to 50 steps that fits, and what they come to; ``None``
        where every episode is too short.
    """
    longest = max((len(drive.actions) for drive in drives), default=0)
    fitting = [steps for steps in HORIZONS if steps <= _MAX_HORIZON and FIRST_START + steps <= longest]
    if not fitting:
        return None
    found = []
    for drive in drives:
        states = LatentState.cat(follow(driver.model, _part(drive.observed, slice(-1)), drive.actions))
        steps = DriveSteps(states, drive.actions, drive.rewards, drive.terminated)
        found.append(measure_drive(driver, steps, fitting[-1]))
    windows = Windows.join([gap.windows for gap in found])
    return (windows, summarise_gap(found, fitting[-1])) if len(windows) else None


@torch.no_grad()
def _reconstruct(model: DreamModel, observed: Observation[NDArray[Any]], actions: FloatArray) -> NDArray[np.uint8]:
    """What the model makes of frames ``(T, H, W, 3)`` that it sees: its states decoded, of the same shape."""
    states = LatentState.cat(follow(model, observed, actions))
    decoded: NDArray[np.uint8] = tensor_to_frames(model.decode(states)).contiguous().cpu().numpy()
    return decoded


def _part(observed: Observation[NDArray[Any]], steps: slice) -> Observation[NDArray[Any]]:
    return Observation(observed.image[steps], observed.vector[steps])
