"""Behaviours by name, for collection and evaluation: random, autopilot, noisy autopilot, or a trained agent."""

from __future__ import annotations

from pathlib import Path

from wm_gym.agents.autopilots import make_autopilot
from wm_gym.data_collection.behaviours import Behaviour, Noisy, SmoothRandom
from wm_gym.errors import ConfigError, did_you_mean
from wm_gym.simulator import SimulatorSpec

BEHAVIOURS = ("random", "autopilot", "noisy")
"""Names of the behaviours that need no trained agent; ``"noisy"`` is the autopilot at a varied pace, with
disturbances."""


def make_behaviour(name: str, spec: SimulatorSpec) -> Behaviour:
    """Make a behaviour for a simulator.

    Args:
        name: One of :data:`BEHAVIOURS`, ``"bundled"`` for the agent that the package ships, or the folder of a
            trained agent.
        spec: The simulator that it will act in.

    Raises:
        ConfigError: ``name`` is neither a known name nor a folder.
        SimulatorError: The simulator has no autopilot, or its frames or actions are not those of the agent.
        BundleError: The agent cannot be loaded.
    """
    if name == "random":
        return SmoothRandom(spec.action)
    if name == "autopilot":
        return make_autopilot(spec.id)
    if name == "noisy":
        return Noisy(make_autopilot(spec.id, varied_pace=True), spec.action)
    if name != "bundled" and not Path(name).is_dir():
        raise ConfigError(
            f"behaviour {name!r} is neither a folder of a trained agent nor a known name"
            f"{did_you_mean(name, (*BEHAVIOURS, 'bundled'))}; use {', '.join(BEHAVIOURS)}, bundled or such a folder."
        )
    # torch and Stable-Baselines3 are needed for trained agents only.
    from wm_gym.agents.driver import Driver

    driver = Driver.load(name)
    driver.check_simulator(spec)
    return driver
