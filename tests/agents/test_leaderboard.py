"""The leaderboard's file, against values worked out by hand from the rules of its public ``statistics_manager.py``."""

from __future__ import annotations

import json

import pytest

from wm_gym.agents.evaluation.leaderboard import RouteDrive, summarise_drives
from wm_gym.envs.carla.metrics import DrivingRecord

INFRACTIONS = {
    "collisions_layout",
    "collisions_pedestrian",
    "collisions_vehicle",
    "red_light",
    "stop_infraction",
    "outside_route_lanes",
    "min_speed_infractions",
    "yield_emergency_vehicle_infractions",
    "scenario_timeouts",
    "route_dev",
    "vehicle_blocked",
    "route_timeout",
}


def drive(route_id, length, driven, end, *, off_road=0.0, collisions=(), red_lights=0, game_s=100.0):
    """A drive that is off the road first, for ``off_road`` of the ``driven`` metres."""
    record = DrivingRecord(length)
    record.add_step(off_road, off_road=True)
    record.add_step(driven, route_done=end == "route_done")
    lines = []
    for kind in collisions:
        record.add_collision(kind)
        lines.append(f"collision_{kind}: with something at (1.0, 2.0) after 3.0 s")
    for _ in range(red_lights):
        record.add_red_light()
        lines.append("red_light: light 7 was run at (1.0, 2.0) after 3.0 s")
    if end == "deviation":
        lines.append("route_deviation: 31.0 m away from the route at (1.0, 2.0) after 3.0 s")
    numbers = {**record.metrics(), "route_length": length}
    return RouteDrive(route_id, numbers, end, "\n".join(lines), game_s, 5.0)


PERFECT = drive("3", 1000.0, 1000.0, "route_done")
CLASH = drive("4", 1000.0, 1000.0, "route_done", collisions=("vehicle", "pedestrian"), red_lights=2, game_s=50.0)
OFF_ROAD = drive("9", 2000.0, 500.0, "time", off_road=50.0, collisions=("static",))
AWAY = drive("12", 500.0, 250.0, "deviation")


def records(*drives):
    return summarise_drives(drives)["_checkpoint"]["records"]


def test_a_perfect_drive():
    (record,) = records(PERFECT)
    assert record["status"] == "Perfect"
    assert record["num_infractions"] == 0
    assert record["infractions"] == {name: [] for name in INFRACTIONS}
    assert record["scores"] == {"score_route": 100.0, "score_penalty": 1.0, "score_composed": 100.0}
    assert record["scores_2_1"] == record["scores"]
    assert record["route_id"] == "RouteScenario_3_rep0"
    assert record["index"] == 0
    assert record["meta"] == {"route_length": 1000.0, "duration_game": 100.0, "duration_system": 5.0}


def test_penalties_multiply():
    (record,) = records(CLASH)
    # 0.60 * 0.50 * 0.70 * 0.70 = 0.147; by 2.1: 1 / (1 + 0.70 + 1.00 + 2 * 0.40) = 1 / 3.5
    assert record["scores"] == {"score_route": 100.0, "score_penalty": 0.147, "score_composed": 14.7}
    assert record["scores_2_1"] == {"score_route": 100.0, "score_penalty": 0.285714, "score_composed": 28.571429}
    assert record["status"] == "Completed"
    assert record["num_infractions"] == 4
    assert record["infractions"]["collisions_vehicle"] == ["with something at (1.0, 2.0) after 3.0 s"]
    assert len(record["infractions"]["red_light"]) == 2


def test_the_part_off_the_road_is_taken_from_the_penalty():
    (record,) = records(OFF_ROAD)
    # 500 of 2000 m are 25 %; 50 of these 500 m, a tenth, were off the road: 0.65 * (1 - 0.1) = 0.585
    assert record["scores"] == {"score_route": 25.0, "score_penalty": 0.585, "score_composed": 14.625}
    # 0.9 / (1 + 0.60)
    assert record["scores_2_1"] == {"score_route": 25.0, "score_penalty": 0.5625, "score_composed": 14.0625}
    assert record["status"] == "Failed - Agent timed out"
    assert record["infractions"]["route_timeout"] == ["Route timeout."]
    (message,) = record["infractions"]["outside_route_lanes"]
    assert float(message.split(" ")[8]) == 50.0  # where the leaderboard's own tools look for the metres
    assert record["num_infractions"] == 3


def test_a_drive_that_never_starts():
    (record,) = records(drive("0", 1000.0, 0.0, "stuck"))
    assert record["scores"] == {"score_route": 0.0, "score_penalty": 1.0, "score_composed": 0.0}
    assert record["status"] == "Failed - Agent got blocked"
    assert record["infractions"]["outside_route_lanes"] == []


def test_all_routes_together():
    results = summarise_drives([PERFECT, CLASH, OFF_ROAD, AWAY])
    overall = results["_checkpoint"]["global_record"]
    # composed: (100 + 14.7 + 14.625 + 50) / 4; of the sample, squares of the deviations: 12331.6...
    assert overall["scores_mean"]["score_composed"] == pytest.approx(44.83125)
    assert overall["scores_mean"]["score_route"] == pytest.approx((100 + 100 + 25 + 50) / 4)
    assert overall["scores_mean"]["score_penalty"] == pytest.approx((1 + 0.147 + 0.585 + 1) / 4)
    deviations = [100 - 44.83125, 14.7 - 44.83125, 14.625 - 44.83125, 50 - 44.83125]
    spread = (sum(value**2 for value in deviations) / 3) ** 0.5
    assert overall["scores_std_dev"]["score_composed"] == pytest.approx(spread, abs=5e-4)
    assert overall["scores_mean_2_1"]["score_composed"] == pytest.approx((100 + 28.571429 + 14.0625 + 50) / 4)
    # 1 + 1 + 0.5 + 0.25 km were driven
    assert overall["infractions"]["collisions_vehicle"] == pytest.approx(1 / 2.75, abs=5e-4)
    assert overall["infractions"]["red_light"] == pytest.approx(2 / 2.75, abs=5e-4)
    assert overall["infractions"]["route_dev"] == pytest.approx(1 / 2.75, abs=5e-4)
    assert overall["infractions"]["outside_route_lanes"] == 0.05  # kilometres, not a rate
    assert overall["infractions"].keys() == INFRACTIONS
    assert overall["status"] == "Failed"
    assert (overall["index"], overall["route_id"]) == (-1, -1)
    assert overall["meta"] == {
        "total_length": 4500.0,
        "duration_game": 350.0,
        "duration_system": 20.0,
        "exceptions": [
            ["RouteScenario_9_rep0", 2, "Failed - Agent timed out"],
            ["RouteScenario_12_rep0", 3, "Failed - Agent deviated from the route"],
        ],
    }


def test_the_worst_route_names_the_whole():
    def status(*drives):
        return summarise_drives(drives)["_checkpoint"]["global_record"]["status"]

    assert [status(PERFECT), status(PERFECT, CLASH), status(PERFECT, CLASH, AWAY)] == ["Perfect", "Completed", "Failed"]


def test_the_layout_is_the_leaderboards():
    results = json.loads(json.dumps(summarise_drives([PERFECT, CLASH])))
    assert results.keys() == {"_checkpoint", "entry_status", "eligible", "sensors", "values", "labels"}
    assert results["_checkpoint"].keys() == {"global_record", "progress", "records"}
    assert results["_checkpoint"]["progress"] == [2, 2]
    assert (results["entry_status"], results["eligible"]) == ("Finished", True)
    by_label = dict(zip(results["labels"], results["values"], strict=True))
    assert list(by_label)[:4] == [
        "Avg. driving score",
        "Avg. route completion",
        "Avg. infraction penalty",
        "Collisions with pedestrians",
    ]
    assert by_label["Avg. driving score"] == "57.35"
    assert by_label["Red lights infractions"] == "1.0"
    assert len(by_label) == 15
    (record, _) = results["_checkpoint"]["records"]
    assert {"index", "route_id", "status", "num_infractions", "infractions", "scores", "meta"} <= record.keys()
