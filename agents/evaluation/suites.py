"""NoCrash: the share of episodes to a goal that arrive in time and without a collision, by town and traffic.

The benchmark is that of Codevilla et al. 2019, "Exploring the Limitations of Behavior Cloning for Autonomous Driving"
(https://arxiv.org/abs/1904.08980), with the numbers of its program for CARLA 0.8.4, ``carla100`` of
https://github.com/carla-simulator/driving-benchmarks, which the ports to CARLA 0.9 have kept.

What differs: its 25 pairs of start and goal are numbers of CARLA 0.8's spawn points, which mean other places in CARLA
0.9. Here routes are drawn by the seeds of the episodes, of about the original's mean length; a file of routes may be
given instead. A goal is reached within 10 m, not 2 m. The weather is the simulator's own setting.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wm_gym.agents.evaluation.evaluation import EvaluationResult, evaluate
from wm_gym.agents.evaluation.finished_episodes import FinishedEpisodes
from wm_gym.agents.evaluation.route_drives import check_is_carla
from wm_gym.envs.carla.route_files import FileRoute
from wm_gym.errors import ConfigError, did_you_mean
from wm_gym.files import check_writable, write_json_result
from wm_gym.simulator import SimulatorSpec

EPISODES = 25
"""Goals of each town."""
ENDS: dict[str, Any] = {
    "collision": True,
    "collision_impulse": 150.0,
    "off_road": False,
    "red_light": False,
    "wrong_way_m": 0.0,
    "stuck_s": 0.0,
    "max_deviation_m": 0.0,
    "route_start_s": 20.0,
    "route_s_per_m": 0.72,
}
"""What ends an episode: a collision, or the time. The original has 20 s and the route at 5 km/h, and asks for 200 N s
from cars and things, 150 N s from pedestrians; here the lower of the two holds for all."""


@dataclass(frozen=True)
class SuiteTown:
    """A town of the suite.

    Attributes:
        role: What it is in the benchmark.
        traffic: Numbers of vehicles and pedestrians by the name of the traffic.
        min_length: Of a drawn route, in metres.
        max_length: Of a drawn route, in metres.
    """

    role: str
    traffic: Mapping[str, tuple[int, int]]
    min_length: float
    max_length: float


TOWNS: dict[str, SuiteTown] = {
    "Town01": SuiteTown("train", {"empty": (0, 0), "regular": (20, 50), "dense": (100, 250)}, 450.0, 1200.0),
    "Town02": SuiteTown("test", {"empty": (0, 0), "regular": (15, 50), "dense": (70, 150)}, 200.0, 600.0),
}
SUITE = "nocrash"
TRAFFIC = ("empty", "regular", "dense")


@dataclass(frozen=True)
class Condition:
    """One town under one kind of traffic, and what came of it.

    Attributes:
        town: Its name.
        role: ``"train"`` or ``"test"``.
        traffic: ``"empty"``, ``"regular"`` or ``"dense"``.
        success_rate: Share of the episodes that reached the goal, 0 to 1.
        result: The evaluation.
    """

    town: str
    role: str
    traffic: str
    success_rate: float
    result: EvaluationResult

    def to_json(self) -> dict[str, Any]:
        """The condition in the JSON file."""
        return {**vars(self), "result": self.result.to_json()}


def parse_suite(text: str) -> tuple[str, ...]:
    """The kinds of traffic that ``nocrash`` or ``nocrash:KIND`` asks for.

    Raises:
        ConfigError: It is neither.
    """
    name, colon, traffic = text.partition(":")
    if name != SUITE:
        raise ConfigError(f"there is no suite {name!r}; use {SUITE}, or {SUITE}:KIND with {', '.join(TRAFFIC)}.")
    if not colon:
        return TRAFFIC
    if traffic not in TRAFFIC:
        raise ConfigError(
            f"{SUITE} has no traffic {traffic!r}{did_you_mean(traffic, TRAFFIC)}; use {', '.join(TRAFFIC)}."
        )
    return (traffic,)


def run_suite(
    driver: str | Path,
    simulator: str | SimulatorSpec | None,
    *,
    traffic: Sequence[str] = TRAFFIC,
    towns: Sequence[str] | None = None,
    episodes: int | None = None,
    routes: Sequence[FileRoute] | None = None,
    json_path: str | Path | None = None,
    simulator_kwargs: Mapping[str, Any] | None = None,
    notify: Callable[[Condition], None] = lambda _: None,
    **arguments: Any,
) -> list[Condition]:
    """Drive the benchmark: each town under each kind of traffic.

    Args:
        driver: As for :func:`~wm_gym.agents.evaluation.evaluation.evaluate`.
        simulator: CARLA, by name or record, or ``None`` for the one that an agent knows.
        traffic: Kinds of traffic.
        towns: Names of its towns, or ``None`` for both.
        episodes: Drives for each; ``None`` for 25, or one for each of a town's ``routes``.
        routes: Routes to drive instead of drawn ones.
        json_path: Where to write the results.
        simulator_kwargs: Arguments of the simulator; those of the benchmark itself cannot be changed.
        notify: Called with each condition when it is driven.
        **arguments: Further ones of ``evaluate``.

    Raises:
        ConfigError: The simulator is another one, or a town or an argument is not the benchmark's.
        WMGymError: As ``evaluate``.
    """
    check_is_carla(driver, simulator, f"the drives of --suite {SUITE}")
    given = dict(simulator_kwargs or {})
    for name in ("town", "traffic", "route", "end"):
        if name in given:
            raise ConfigError(f"{name} belongs to the suite {SUITE} itself; leave it out, or evaluate without --suite.")
    chosen = _towns(towns)
    by_town = {town: _options(routes, town, episodes) for town in chosen}
    file = None if json_path is None else check_writable(json_path)
    finished = FinishedEpisodes(file)
    conditions = []
    for town in chosen:
        for kind in traffic:
            options = by_town[town]
            result = evaluate(
                driver,
                simulator,
                episodes=len(options) if options is not None else EPISODES if episodes is None else episodes,
                reset_options=options,
                simulator_kwargs={**given, **condition_settings(town, kind)},
                finished=finished,
                **arguments,
            )
            conditions.append(Condition(town, TOWNS[town].role, kind, result.driving["success"], result))
            notify(conditions[-1])
            arguments = {**arguments, "video_path": None}  # the first episode of all is filmed
    if file is not None:
        write_json_result(file, suite_results(conditions, drawn=routes is None))
    finished.remove()
    return conditions


def condition_settings(town: str, traffic: str) -> dict[str, Any]:
    """Arguments of ``CarlaDriving-v0`` for a town of the suite under a kind of traffic."""
    settings = TOWNS[town]
    vehicles, walkers = settings.traffic[traffic]
    return {
        "town": town,
        "traffic": {"vehicles": vehicles, "walkers": walkers},
        "route": {"min_length": settings.min_length, "max_length": settings.max_length},
        "end": dict(ENDS),
    }


def suite_results(conditions: Sequence[Condition], *, drawn: bool) -> dict[str, Any]:
    """The contents of the JSON file."""
    return {
        "suite": SUITE,
        "routes": "drawn by seeds, not the original's" if drawn else "of a file",
        "success_rate": {
            traffic: {c.town: c.success_rate for c in conditions if c.traffic == traffic}
            for traffic in dict.fromkeys(c.traffic for c in conditions)
        },
        "mean_route_length": statistics.fmean(
            numbers["route_length"] for c in conditions for numbers in c.result.last_infos
        ),
        "conditions": [condition.to_json() for condition in conditions],
    }


def _towns(names: Sequence[str] | None) -> list[str]:
    for name in names or ():
        if name not in TOWNS:
            raise ConfigError(f"{SUITE} has no town {name!r}{did_you_mean(name, TOWNS)}; use {', '.join(TOWNS)}.")
    return [town for town in TOWNS if names is None or town in names]


def _options(routes: Sequence[FileRoute] | None, town: str, episodes: int | None) -> list[dict[str, Any]] | None:
    if routes is None:
        return None
    found = [route.reset_options(weather=False) for route in routes if route.town == town][:episodes]
    if not found:
        raise ConfigError(f"no route of the file is in {town}; leave that town out with --towns.")
    return found
