"""Evaluation on the routes of a file, each driven once, by the criteria of CARLA's leaderboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wm_gym.agents.evaluation.evaluation import EvaluationResult, evaluate, simulator_id
from wm_gym.agents.evaluation.finished_episodes import FinishedEpisodes
from wm_gym.agents.evaluation.leaderboard import leaderboard_results
from wm_gym.envs.carla.route_files import FileRoute
from wm_gym.envs.simulators import SIMULATORS, kind_of
from wm_gym.errors import ConfigError
from wm_gym.files import check_writable, write_json_result
from wm_gym.simulator import SimulatorSpec

LEADERBOARD_ENDS: dict[str, Any] = {"collision": False, "off_road": False, "red_light": False, "wrong_way_m": 0.0}
"""The leaderboard goes on after a collision or a red light, off the road and backwards; the other ends are its own."""


def evaluate_routes(
    driver: str | Path,
    simulator: str | SimulatorSpec | None,
    routes: Sequence[FileRoute],
    *,
    leaderboard_path: str | Path | None = None,
    simulator_kwargs: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> EvaluationResult:
    """Drive each route once.

    The weather is that of the route, unless ``simulator_kwargs`` has one. What ends an episode is what ends it in the
    leaderboard, changed by ``simulator_kwargs["end"]``.

    Args:
        driver: As for :func:`~wm_gym.agents.evaluation.evaluation.evaluate`.
        simulator: CARLA, by name or record, or ``None`` for the one that an agent knows.
        routes: One or more, such as :func:`~wm_gym.envs.carla.route_files.read_routes` gives.
        leaderboard_path: Where to write the results in the leaderboard's own layout.
        simulator_kwargs: Arguments of the simulator.
        **arguments: Further ones of ``evaluate``.

    Raises:
        ConfigError: The simulator is another one.
        WMGymError: As ``evaluate``.
    """
    check_is_carla(driver, simulator, "routes")
    given = dict(simulator_kwargs or {})
    ends = given.get("end", {})
    if isinstance(ends, Mapping):  # else the environment says what is wrong with it
        given["end"] = {**LEADERBOARD_ENDS, **ends}
    file = None if leaderboard_path is None else check_writable(leaderboard_path)
    finished = FinishedEpisodes(file) if arguments.get("json_path") is None else None
    result = evaluate(
        driver,
        simulator,
        episodes=len(routes),
        reset_options=[route.reset_options(weather="weather" not in given) for route in routes],
        simulator_kwargs=given,
        finished=finished,
        **arguments,
    )
    if file is not None:
        write_json_result(file, leaderboard_results(result, [route.route_id for route in routes]))
    if finished is not None:
        finished.remove()
    return result


def check_is_carla(driver: str | Path, simulator: str | SimulatorSpec | None, what: str) -> None:
    """Check that a driver is to drive in CARLA.

    Raises:
        ConfigError: It is not.
    """
    name = simulator_id(driver, simulator)
    if kind_of(name, [SIMULATORS["carla"]]) is None:
        raise ConfigError(f"{what} are driven in CARLA, but the simulator is {name}; give --env carla.")
