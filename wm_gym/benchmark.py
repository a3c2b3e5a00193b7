"""Speed of the dream beside the simulator's, through the environments that a user makes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import torch

from wm_gym.provenance import provenance

_SIMULATORS = ("CarRacing-v3", "CarRacingDriving-v0")


def measure_dream_and_simulator(
    model: str, num_envs: Sequence[int], seconds: float, *, seed: int, device: str
) -> dict[str, Any]:
    """Measure environment steps a second, with random actions and resets included.

    ``DreamDriving-v0`` is made by ``gym.make`` for one dream and by ``gym.make_vec`` for several. The simulators step
    alone in this process, as ``gym.make`` gives them: one step of ``CarRacing-v3`` is one simulator frame, one of
    ``CarRacingDriving-v0`` is ``action_repeat`` of them with one picture.

    Args:
        model: World model's path or ``"bundled"``.
        num_envs: Numbers of dreams to measure.
        seconds: Time for each measurement.
        seed: Seed of resets and actions.
        device: Device of the model.

    Returns:
        ``rows`` with steps a second and the ratio to ``CarRacing-v3``, and what they were measured on.
    """
    rows: list[dict[str, Any]] = [
        {"environment": name, "num_envs": 1, "steps_per_s": _single(name, seconds, seed)} for name in _SIMULATORS
    ]
    for number in num_envs:
        speed = _dream(model, number, seconds, seed, device)
        rows.append({"environment": "DreamDriving-v0", "num_envs": number, "steps_per_s": speed})
    reference = rows[0]["steps_per_s"]
    for row in rows:
        row["ratio"] = row["steps_per_s"] / reference
    settings = {"model": model, "seconds": seconds, "seed": seed, "device": device}
    machine = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "device": _device_name(device)}
    return {"rows": rows, "settings": settings, "machine": machine, "provenance": provenance()}


def render_markdown(result: dict[str, Any]) -> str:
    """The measurements as a Markdown table with machine, versions and settings below."""
    lines = ["| environment | dreams | steps/s | times CarRacing-v3 |", "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {row['environment']} | {row['num_envs']} | {row['steps_per_s']:,.0f} | {row['ratio']:.1f} |"
        for row in result["rows"]
    ]
    made = result["provenance"]
    settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    versions = ", ".join(f"{name} {version}" for name, version in made["packages"].items())
    lines += ["", f"Settings: {settings}.", f"Machine: {machine}, {made['machine']}.", f"Versions: {versions}."]
    return "\n".join(lines)


def _single(name: str, seconds: float, seed: int, **kwargs: Any) -> float:
    env = gym.make(name, **kwargs)
    env.action_space.seed(seed)
    env.reset(seed=seed)

    def step() -> int:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()
        return 1

    speed = _steps_per_second(step, seconds)
    env.close()
    return speed


def _dream(model: str, num_envs: int, seconds: float, seed: int, device: str) -> float:
    if num_envs == 1:
        return _single("DreamDriving-v0", seconds, seed, model=model, device=device)
    venv = gym.make_vec("DreamDriving-v0", num_envs=num_envs, model=model, device=device)
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

    speed = _steps_per_second(step_all, seconds)
    venv.close()
    return speed


def _steps_per_second(step: Callable[[], int], seconds: float) -> float:
    for _ in range(10):
        step()
    steps = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        steps += step()
    return steps / (time.perf_counter() - started)


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device
