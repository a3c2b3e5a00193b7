"""Speed of the dream beside the simulator's, through the environments that a user makes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import torch

from wm_gym.acceleration import AcceleratedModel
from wm_gym.bench.kinds import KINDS, DreamedModel, label, model_of_kind
from wm_gym.bench.random_models import random_step
from wm_gym.bench.table import Table
from wm_gym.bench.timing import steps_per_second
from wm_gym.world_model import WorldModel

_SIMULATORS = ("CarRacing-v3", "CarRacingDriving-v0")


def measure_environments(model: str, num_envs: Sequence[int], seconds: float, *, seed: int, device: str) -> Table:
    """Environment steps a second, with random actions and resets included.

    ``DreamDriving-v0`` is made by ``gym.make`` for one dream and by ``gym.make_vec`` for several, of the model as it is
    and of :class:`wm_gym.acceleration.AcceleratedModel`. The simulators step alone in this process, as ``gym.make``
    gives them: one step of ``CarRacing-v3`` is one simulator frame, one of ``CarRacingDriving-v0`` is
    ``action_repeat`` of them with one picture.

    Args:
        model: World model's path or ``"bundled"``.
        num_envs: Numbers of dreams to measure.
        seconds: Time for each measurement.
        seed: Seed of resets and actions.
        device: Device of the model.
    """
    rows: list[dict[str, Any]] = [
        {"environment": name, "num_envs": 1, "steps_per_s": _single(name, seconds, seed)} for name in _SIMULATORS
    ]
    world_model = WorldModel.from_pretrained(model, device)
    for precision in KINDS:
        dreamed = model_of_kind(world_model, precision)
        for number in num_envs:
            row: dict[str, Any] = {"environment": "DreamDriving-v0", "model": label(precision), "num_envs": number}
            row["steps_per_s"] = _dream(dreamed, number, seconds, seed)
            if number == 1:
                row["own_us"] = 1e6 * own_seconds(dreamed, seconds, seed=seed)
            rows.append(row)
    reference = rows[0]["steps_per_s"]
    for row in rows:
        row["ratio"] = row["steps_per_s"] / reference
    return Table(
        "environments",
        "Steps a second, dream and simulator",
        (
            ("environment", "environment", ""),
            ("model", "world model", ""),
            ("num_envs", "dreams", ","),
            ("steps_per_s", "steps/s", ",.0f"),
            ("ratio", "times CarRacing-v3", ",.1f"),
            ("own_us", "beside the model's call (µs a step)", ",.0f"),
        ),
        rows,
    )


def own_seconds(model: DreamedModel, seconds: float, *, seed: int) -> float:
    """What a step of a single ``DreamDriving-v0`` takes beside the call of its model: the difference of two medians.

    Step and bare call are measured in turns, so that a machine that is busy elsewhere slows both.
    """
    env = gym.make("DreamDriving-v0", model=model, termination="never", horizon=1_000_000)
    env.reset(seed=seed)
    dream: Any = env.unwrapped
    state, action, noise = random_step(model.model if isinstance(model, AcceleratedModel) else model, 1)
    driving = env.action_space.sample()
    for _ in range(2):  # each may compile or capture a graph for its own tensors
        dream.step(driving)
        with torch.inference_mode():
            model.imagine(state, action, noise)
    steps: list[float] = []
    calls: list[float] = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        started = time.perf_counter()
        dream.step(driving)
        stepped = time.perf_counter()
        with torch.inference_mode():
            model.imagine(state, action, noise)
        calls.append(time.perf_counter() - stepped)
        steps.append(stepped - started)
    env.close()
    return statistics.median(steps) - statistics.median(calls)


def _single(name: str, seconds: float, seed: int, **kwargs: Any) -> float:
    env = gym.make(name, **kwargs)
    env.action_space.seed(seed)
    env.reset(seed=seed)

    def step() -> int:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()
        return 1

    speed = steps_per_second(step, seconds)
    env.close()
    return speed


def _dream(model: DreamedModel, num_envs: int, seconds: float, seed: int) -> float:
    if num_envs == 1:
        return _single("DreamDriving-v0", seconds, seed, model=model)
    venv = gym.make_vec("DreamDriving-v0", num_envs=num_envs, model=model)
    venv.action_space.seed(seed)
    venv.reset(seed=seed)
    # Sampling a batch of actions costs as much as a step of the dream; a policy would bring its own.
    actions = [venv.action_space.sample() for _ in range(64)]
    count = 0

    def step_all() -> int:
        nonlocal count
        venv.step(actions[count % len(actions)])
        count += 1
        return num_envs

    speed = steps_per_second(step_all, seconds)
    venv.close()
    return speed
