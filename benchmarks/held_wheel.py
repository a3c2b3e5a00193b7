"""Does a world model know what steering does? The wheel is held, in CarRacing and in the dream, from the same states.

The autopilot drives until the car is at speed; then one steering angle is held for some steps, with a little
throttle. The simulator's rewards are summed, and so are those that each world model imagines from the state that it
observed up to that moment. Recordings of good drivers hold no such thing, and a world model that has seen no other lets
the road follow the wheel: held-out recordings do not show that, and policies exploit it (docs/experiments.md). It takes
half a minute::

    python benchmarks/held_wheel.py bundled runs/model --drives 14
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from wm_gym.agents.behaviours import make_behaviour
from wm_gym.envs.simulators import describe_simulator, make_simulator_from_spec
from wm_gym.frames import frames_to_tensor
from wm_gym.rollouts import dream
from wm_gym.simulator import SimulatorSpec
from wm_gym.world_model import WorldModel

FIRST_SEED = 950_000  # of training tracks
ANGLES = (-0.3, -0.15, -0.05, 0.0, 0.05, 0.15, 0.3)
THROTTLE = 0.15
OBSERVED = 8


class Held(NamedTuple):
    """One drive up to the moment that the wheel is held, and what came of it.

    Attributes:
        frames: ``(OBSERVED, H, W, 3)`` uint8, the last ones before.
        actions: ``(OBSERVED - 1, A)`` float32, between them.
        action: ``(A,)`` float32, held.
        reward: Sum of the simulator's rewards while it was held.
    """

    frames: NDArray[np.uint8]
    actions: NDArray[np.float32]
    action: NDArray[np.float32]
    reward: float


def drive(simulator: SimulatorSpec, angle: float, drives: int, steps: int) -> list[Held]:
    """Hold one angle in the simulator, once on each track."""
    env = make_simulator_from_spec(simulator)
    autopilot = make_behaviour("autopilot", describe_simulator(env))
    action = np.array((angle, THROTTLE, 0.0, 1.0), np.float32)
    held = []
    for seed in range(FIRST_SEED, FIRST_SEED + drives):
        frame, _ = env.reset(seed=seed)
        autopilot.reset(env, seed)
        frames, actions = [frame], []
        for _ in range(60 + int(np.random.default_rng(seed).integers(40))):
            actions.append(autopilot.act(frame))
            frame = env.step(actions[-1])[0]
            frames.append(frame)
        total, ended = 0.0, False
        for _ in range(steps):
            if not ended:
                _, reward, terminated, truncated, _ = env.step(action)
                total += float(reward)
                ended = terminated or truncated
        held.append(Held(np.stack(frames[-OBSERVED:]), np.stack(actions[-OBSERVED + 1 :]), action, total))
    env.close()
    return held


@torch.no_grad()
def imagine(model: WorldModel, held: list[Held], steps: int) -> float:
    """Mean sum of the rewards that the model imagines from the same states."""
    frames = frames_to_tensor(torch.from_numpy(np.stack([one.frames for one in held])))
    actions = torch.from_numpy(np.stack([one.actions for one in held]))
    latents = model.encode(frames)
    state = model.dynamics.initial(latents[:, 0])
    for t in range(OBSERVED - 1):
        state = model.observe_latent(state, actions[:, t], latents[:, t + 1])
    action = torch.from_numpy(np.stack([one.action for one in held]))
    dreamt = dream(model, state, action.unsqueeze(1).expand(-1, steps, -1), torch.Generator().manual_seed(0))
    return float(dreamt.rewards.sum(1).mean())


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("models", nargs="+", help="folders of world models of CarRacingDriving-v0, or 'bundled'")
    parser.add_argument("--drives", type=int, default=14, help="tracks for each angle")
    parser.add_argument("--steps", type=int, default=20, help="steps that the wheel is held")
    options = parser.parse_args()
    models = {name: WorldModel.from_pretrained(name).eval() for name in options.models}
    simulator = next(iter(models.values())).simulator
    rows: dict[str, list[float]] = {"simulator": [], **{name: [] for name in models}}
    for angle in ANGLES:
        held = drive(simulator, angle, options.drives, options.steps)
        rows["simulator"].append(float(np.mean([one.reward for one in held])))
        for name, model in models.items():
            rows[name].append(imagine(model, held, options.steps))
    print("| steering held | " + " | ".join(f"{angle:g}" for angle in ANGLES) + " |")
    print("| --- |" + " ---: |" * len(ANGLES))
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.0f}" for value in values) + " |")


if __name__ == "__main__":
    main()
