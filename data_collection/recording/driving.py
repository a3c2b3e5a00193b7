"""One episode in a simulator, driven by a behaviour: the loop behind recording, evaluation, selection and reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from wm_gym.actions import ActionFormat, FloatArray
from wm_gym.data_collection.recording.behaviours import Behaviour, StatesIntention
from wm_gym.errors import SimulatorLostError
from wm_gym.observation import Observation, split_observation

LOST = "simulator_lost"


class Step(NamedTuple):
    """One action, and what it led to.

    Attributes:
        action: ``(A,)`` float32 in the stored format, as it was carried out.
        observed: Frame ``(H, W, 3)`` uint8 and vector ``(V,)`` float32 after it.
        reward: Of the step.
        terminated: Whether the task ended with it.
        truncated: Whether the episode was cut after it.
        info: What the simulator says of it; at the beginning, of the reset.
        intended: ``(A,)`` float32 in the stored format: what a disturbed behaviour would have done; ``None`` where none
            disturbed it.
    """

    action: FloatArray
    observed: Observation[NDArray[Any]]
    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]
    intended: FloatArray | None = None


def drive_episode(
    env: gym.Env[Any, Any],
    behaviour: Behaviour,
    *,
    seed: int,
    behaviour_seed: int,
    action: ActionFormat | None = None,
    max_steps: int | None = None,
    patience: int | None = None,
    options: Mapping[str, Any] | None = None,
    check_open: Callable[[], None] = lambda: None,
) -> Iterator[Step]:
    """Drive one episode from reset to its end, step by step.

    The action of a step is ``info["applied_action"]`` where the simulator says what it really did, as it does for a
    driver of its own; else the one that the behaviour gave.

    Args:
        env: The simulator; its actions are in the stored format.
        behaviour: Drives.
        seed: Of the simulator.
        behaviour_seed: Of the behaviour.
        action: The stored format: actions are clipped to its bounds; ``None`` takes them as they are given.
        max_steps: Steps after which to truncate, or ``None``.
        patience: Steps in a row without a reward above 0 after which to truncate, or ``None``.
        options: Of the simulator's reset.
        check_open: Called before every step; may raise to give the episode up.

    Yields:
        First what the reset gave, with an action of 0 entries and no reward; then each step.

    Raises:
        SimulatorLostError: The simulator was lost; the episode is worth nothing.
    """
    observed, info = begin_episode(env, behaviour, seed, behaviour_seed, options)
    yield Step(np.zeros(0, np.float32), split_observation(observed), 0.0, False, False, info)
    ended, steps, fruitless = False, 0, 0
    while not ended:
        check_open()
        chosen = behaviour.act(observed)
        intended = behaviour.intended_action if isinstance(behaviour, StatesIntention) else None
        if action is not None:
            chosen = action.to_stored(chosen)
        observed, reward, terminated, truncated, info = env.step(chosen)
        check_not_lost(info)
        if action is not None and action.kind == "driving" and "applied_action" in info:
            chosen = action.to_stored(info["applied_action"])
        steps += 1
        fruitless = 0 if float(reward) > 0 else fruitless + 1
        cut = bool(truncated) or steps == max_steps or fruitless == patience
        yield Step(chosen, split_observation(observed), float(reward), bool(terminated), cut, info, intended)
        ended = bool(terminated) or cut


def begin_episode(
    env: gym.Env[Any, Any],
    behaviour: Behaviour,
    seed: int,
    behaviour_seed: int,
    options: Mapping[str, Any] | None = None,
) -> tuple[Any, Mapping[str, Any]]:
    """Reset a simulator and the behaviour that drives it; returns what ``reset`` gave."""
    observed, info = env.reset(seed=seed, options=None if options is None else dict(options))
    if getattr(env.unwrapped, "traffic_manager_drives", False):
        # Another behaviour in the same simulator had given control to it.
        env.unwrapped.traffic_manager_drives = False  # type: ignore[attr-defined]
    behaviour.reset(env, behaviour_seed)
    return observed, info


def check_not_lost(info: Mapping[str, Any]) -> None:
    """Check that a step's ``info`` does not say that the simulator was lost.

    Raises:
        SimulatorLostError: It does.
    """
    if info.get(LOST, False):
        raise SimulatorLostError(str(info.get("lost_reason") or "the simulator was lost in the middle of an episode."))
