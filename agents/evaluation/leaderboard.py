"""Results in the layout of the CARLA leaderboard's own file, so that the tools made for it can read them.

The layout, its names and its rules are those of ``leaderboard/utils/statistics_manager.py`` of
https://github.com/carla-simulator/leaderboard (2.0): scores by the product of penalties. Beside them stand those of
leaderboard 2.1, in fields of their own that end in ``_2_1``. Scenarios, stop signs, the minimum speed and emergency
vehicles are not simulated, so their lists stay empty; see :mod:`wm_gym.envs.carla.metrics`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wm_gym.agents.evaluation.evaluation import EvaluationResult
from wm_gym.envs.carla.config import CarlaConfig

_DIGITS = 3
_SCORE_DIGITS = 6
_LEAST_KM = 0.001

_LABELS = {
    "collisions_pedestrian": "Collisions with pedestrians",
    "collisions_vehicle": "Collisions with vehicles",
    "collisions_layout": "Collisions with layout",
    "red_light": "Red lights infractions",
    "stop_infraction": "Stop sign infractions",
    "outside_route_lanes": "Off-road infractions",
    "route_dev": "Route deviations",
    "route_timeout": "Route timeouts",
    "vehicle_blocked": "Agent blocked",
    "yield_emergency_vehicle_infractions": "Yield emergency vehicles infractions",
    "scenario_timeouts": "Scenario timeouts",
    "min_speed_infractions": "Min speed infractions",
}
"""Infractions of the file and what ``labels`` calls them, in the order of ``values``."""
_OFF_ROAD = "outside_route_lanes"
_TIMEOUT = "route_timeout"
_NAMES = {
    "collision_pedestrian": "collisions_pedestrian",
    "collision_vehicle": "collisions_vehicle",
    "collision_static": "collisions_layout",
    "red_light": "red_light",
    "route_deviation": "route_dev",
    "blocked": "vehicle_blocked",
}
"""What ``info["infractions"]`` calls an infraction, and what the file does."""
_FAILURES = {
    "deviation": "Agent deviated from the route",
    "stuck": "Agent got blocked",
    "time": "Agent timed out",
    "collision": "Agent collided",
    "off_road": "Agent left the road",
    "wrong_way": "Agent drove backwards",
}
"""How an episode ended, and what the status says of it; the last three are ends of this package's own."""
_SCORES = ("score_composed", "score_route", "score_penalty")


@dataclass(frozen=True)
class RouteDrive:
    """What is known of one episode.

    Attributes:
        route_id: The route's id in its file.
        numbers: The last ``info`` of ``CarlaDriving-v0``.
        end: How it ended, as ``info["end"]``.
        infractions: Its infractions, as ``info["infractions"]``.
        game_s: Simulated seconds.
        wall_s: Seconds that it took.
    """

    route_id: str
    numbers: Mapping[str, float]
    end: str
    infractions: str
    game_s: float
    wall_s: float


def leaderboard_results(result: EvaluationResult, route_ids: Sequence[str]) -> dict[str, Any]:
    """The contents of the leaderboard's file.

    Args:
        result: An evaluation in ``CarlaDriving-v0``.
        route_ids: The id of each episode's route.
    """
    simulator = result.simulator
    tick_s = simulator.step_s / simulator.kwargs.get("action_repeat", CarlaConfig().action_repeat)
    ends, infractions = (result.texts.get(name, [""] * result.episodes) for name in ("end", "infractions"))
    drives = [
        RouteDrive(*values)
        for values in zip(
            route_ids,
            result.last_infos,
            ends,
            infractions,
            [numbers["frame"] * tick_s for numbers in result.last_infos],
            result.drive_s,
            strict=True,
        )
    ]
    return summarise_drives(drives)


def summarise_drives(drives: Sequence[RouteDrive]) -> dict[str, Any]:
    """The contents of the leaderboard's file for one or more episodes."""
    records = [_record(index, drive) for index, drive in enumerate(drives)]
    overall = _global_record(records)
    means, infractions = overall["scores_mean"], overall["infractions"]
    return {
        "_checkpoint": {
            "global_record": overall,
            "progress": [len(records), len(records)],
            "records": records,
        },
        "entry_status": "Finished",
        "eligible": True,
        "sensors": [],
        "values": [*(str(means[name]) for name in _SCORES), *(str(infractions[name]) for name in _LABELS)],
        "labels": ["Avg. driving score", "Avg. route completion", "Avg. infraction penalty", *_LABELS.values()],
    }


def _record(index: int, drive: RouteDrive) -> dict[str, Any]:
    numbers = drive.numbers
    length = numbers["route_length"]
    is_done = drive.end == "route_done"
    # What was driven, on the road and off it; the leaderboard takes the part off the road from the penalty.
    on_road = numbers["route_completion"]
    km = numbers["km"]  # never less than the least
    route = 100.0 if is_done else min(100.0, 1e5 * km / length) if km > _LEAST_KM else on_road
    on_road_part = min(1.0, on_road / route) if route > 0 else 1.0
    infractions: dict[str, list[str]] = {name: [] for name in _LABELS}
    for line in drive.infractions.splitlines():
        kind, _, message = line.partition(": ")
        infractions[_NAMES[kind]].append(message)
    off_road_m = length * max(0.0, route - on_road) / 100
    if off_road_m > 0.05:
        # Tools for these files take the ninth word of this sentence for the metres.
        infractions[_OFF_ROAD].append(
            f"The vehicle was off the road for about {off_road_m:.1f} m ({100 * (1 - on_road_part):.2f} % of its way)"
        )
    if drive.end == "time":
        infractions[_TIMEOUT].append("Route timeout.")
    count = sum(map(len, infractions.values()))
    if is_done:
        status = "Completed" if count else "Perfect"
    else:
        status = " - ".join(["Failed", *([_FAILURES[drive.end]] if drive.end in _FAILURES else [])])
    return {
        "index": index,
        "route_id": f"RouteScenario_{drive.route_id}_rep0",
        "status": status,
        "num_infractions": count,
        "infractions": infractions,
        "scores": _scores(route, on_road_part * numbers["infraction_penalty"]),
        "scores_2_1": _scores(route, on_road_part * numbers["infraction_penalty_2_1"]),
        "meta": {
            "route_length": round(length, _DIGITS),
            "duration_game": round(drive.game_s, _DIGITS),
            "duration_system": round(drive.wall_s, _DIGITS),
        },
    }


def _scores(route: float, penalty: float) -> dict[str, float]:
    return {
        "score_route": round(route, _SCORE_DIGITS),
        "score_penalty": round(penalty, _SCORE_DIGITS),
        "score_composed": round(route * penalty, _SCORE_DIGITS),
    }


def _global_record(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    failed = [record for record in records if record["status"].startswith("Failed")]
    all_perfect = all(record["status"] == "Perfect" for record in records)
    driven_m = sum(record["meta"]["route_length"] * record["scores"]["score_route"] / 100 for record in records)
    km = max(driven_m / 1000, _LEAST_KM)
    infractions = {
        name: round(sum(len(record["infractions"][name]) for record in records) / km, _DIGITS) for name in _LABELS
    }
    # That off the road is in kilometres, and is no rate.
    infractions[_OFF_ROAD] = round(sum(_off_road_km(record) for record in records), _DIGITS)
    return {
        "index": -1,
        "route_id": -1,
        "status": "Failed" if failed else "Perfect" if all_perfect else "Completed",
        "infractions": infractions,
        "scores_mean": _over(records, "scores", statistics.fmean, _SCORE_DIGITS),
        "scores_std_dev": _over(records, "scores", _deviation, _DIGITS),
        "scores_mean_2_1": _over(records, "scores_2_1", statistics.fmean, _SCORE_DIGITS),
        "scores_std_dev_2_1": _over(records, "scores_2_1", _deviation, _DIGITS),
        "meta": {
            "total_length": round(sum(record["meta"]["route_length"] for record in records), _DIGITS),
            "duration_game": round(sum(record["meta"]["duration_game"] for record in records), _DIGITS),
            "duration_system": round(sum(record["meta"]["duration_system"] for record in records), _DIGITS),
            "exceptions": [[record["route_id"], record["index"], record["status"]] for record in failed],
        },
    }


def _off_road_km(record: Mapping[str, Any]) -> float:
    messages = record["infractions"][_OFF_ROAD]
    return float(messages[0].split()[8]) / 1000 if messages else 0.0


def _over(records: Sequence[Mapping[str, Any]], group: str, of: Any, digits: int) -> dict[str, float]:
    return {name: round(of([record[group][name] for record in records]), digits) for name in _SCORES}


def _deviation(values: Sequence[float]) -> float:
    """Of the sample; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
