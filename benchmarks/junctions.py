"""Does a driver take the turns that its route takes? Held-out routes in CARLA; every junction with a choice counts.

A junction is met when the vehicle comes to its beginning along the route, and taken as the route says when it leaves
it along the route. Where the vehicle leaves the road or its lane within the junction, or goes another way, it is
not. The server is given as everywhere (``--carla HOST:PORT``)::

    python benchmarks/junctions.py runs/clone autopilot --carla localhost:2000 --routes 40
"""

from __future__ import annotations

import argparse
import json
from typing import Any, NamedTuple

import numpy as np

from wm_gym.agents.behaviours import make_behaviour
from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.bundles.folder import agent_simulator
from wm_gym.data_collection.recording.driving import drive_episode
from wm_gym.data_collection.recording.plan import HELD_OUT_FROM
from wm_gym.envs.carla.env import CarlaDrivingEnv, parse_address
from wm_gym.envs.carla.route import Command, Route
from wm_gym.envs.simulators import make_simulator_from_spec
from wm_gym.simulator import SimulatorSpec

ON_ROUTE_M = 3.0
"""Farther from the route's line, a vehicle has gone another way."""
BEYOND_M = 8.0
"""So far beyond a junction it must have come."""


class Junctions(NamedTuple):
    """What came of one route: junctions met, those taken as the route says, and why the episode ended."""

    met: int
    taken: int
    end: str
    completion: float


def junctions_of(route: Route) -> list[tuple[float, float]]:
    """Where the route's junctions with a choice begin and end, in metres along it."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], route.in_junction.astype(int), [0]))))
    places = []
    for first, stop in zip(edges[::2], edges[1::2], strict=True):
        has_choice = (route.commands[first:stop] != Command.LANE_FOLLOW).any()
        if has_choice and route.distances[stop - 1] + BEYOND_M < route.length:
            places.append((float(route.distances[first]), float(route.distances[stop - 1])))
    return places


def drive_route(env: Any, driver: Any, seed: int, max_steps: int) -> Junctions:
    """Drive one route and count."""
    carla = env.unwrapped
    assert isinstance(carla, CarlaDrivingEnv)
    met: set[int] = set()
    taken: set[int] = set()
    steps = drive_episode(env, driver, seed=seed, behaviour_seed=seed, max_steps=max_steps)
    step = next(steps)  # the reset
    places = junctions_of(carla.route)
    for step in steps:
        state = carla.route_state
        for index, (begin, end) in enumerate(places):
            if state.distance > begin - 1.0:
                met.add(index)
            is_on_route = abs(state.lateral_offset) < ON_ROUTE_M and not step.info["off_road"]
            if state.distance > end + BEYOND_M and is_on_route and index in met:
                taken.add(index)
    return Junctions(len(met), len(taken & met), str(step.info["end"]), float(step.info["route_completion"]))


def main() -> None:
    """Drive, and print a line for each driver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drivers", nargs="+", metavar="AGENT", help="agents' folders, or names of behaviours")
    parser.add_argument("--carla", required=True, metavar="HOST:PORT")
    parser.add_argument("--routes", type=int, default=40, metavar="N", help="held-out routes (default: 40)")
    parser.add_argument("--max-steps", type=int, default=600, metavar="N", help="actions on a route at most")
    parser.add_argument("--like", metavar="AGENT", help="whose simulator behaviours drive in")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    for name in arguments.drivers:
        is_agent = "/" in name
        simulator: SimulatorSpec = agent_simulator(name if is_agent else arguments.like or arguments.drivers[0])
        driver: Any = Driver.load(name) if is_agent else make_behaviour(name, simulator)
        env = make_simulator_from_spec(simulator, connection=parse_address(arguments.carla))
        try:
            seeds = range(HELD_OUT_FROM, HELD_OUT_FROM + arguments.routes)
            results = [drive_route(env, driver, seed, arguments.max_steps) for seed in seeds]
        finally:
            env.close()
        met, taken = (sum(getattr(result, field) for result in results) for field in ("met", "taken"))
        completion = float(np.mean([result.completion for result in results]))
        found[name] = [result._asdict() for result in results]
        print(
            f"{name}: {taken} of {met} junctions as the route says ({taken / max(1, met):.1%}), {completion:.1f} % of "
            f"the way, {sum(result.end == 'route_done' for result in results)} of {len(results)} routes finished"
        )
    if arguments.json is not None:
        with open(arguments.json, "w", encoding="utf-8") as file:  # noqa: PTH123
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
