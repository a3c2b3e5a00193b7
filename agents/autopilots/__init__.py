"""Autopilots: drivers that read the simulator's own state. One file and one line below for each simulator."""

from __future__ import annotations

import pkgutil

from wm_gym.data_collection.recording.behaviours import Behaviour
from wm_gym.envs.simulators import kind_of
from wm_gym.errors import SimulatorError

AUTOPILOTS: dict[str, str] = {
    "CarRacingDriving-v0": "wm_gym.agents.autopilots.car_racing:CarRacingAutopilot",
    "CarlaDriving-v0": "wm_gym.agents.autopilots.carla:CarlaAutopilot",
}
"""Gymnasium id of a simulator, and its autopilot as ``"module:Class"``, made as ``Class(varied_pace=...)``; it drives
simulators that inherit from that one, too."""


def make_autopilot(simulator_id: str, *, varied_pace: bool = False) -> Behaviour:
    """Make the autopilot of a simulator.

    Args:
        simulator_id: Gymnasium id, as in a :class:`~wm_gym.simulator.SimulatorSpec`.
        varied_pace: Drive each episode at a pace of its own, slower or faster than is best; for collecting data.

    Raises:
        SimulatorError: The simulator has none, or is unknown.
    """
    kind = kind_of(simulator_id, AUTOPILOTS)
    if kind is None:
        raise SimulatorError(
            f"{simulator_id} has no autopilot (those with one: {', '.join(AUTOPILOTS)}); use the behaviour 'random' "
            "or a trained agent."
        )
    autopilot: Behaviour = pkgutil.resolve_name(AUTOPILOTS[kind])(varied_pace=varied_pace)
    return autopilot
