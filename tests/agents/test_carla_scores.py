"""CARLA's scores in the report, from the files of evaluations."""

import json
import re

from wm_gym.agents.evaluation.results_file import SavedEvaluation, read_evaluation
from wm_gym.agents.reports.carla_scores import carla_section

RATES = {
    "collisions_pedestrian": 0.0,
    "collisions_vehicle": 0.5,
    "collisions_static": 0.25,
    "red_lights": 1.25,
    "off_road": 0.75,
    "route_deviations": 0.0,
    "blocked": 0.125,
}
DRIVING = {
    "success": 0.5,
    "route_completion": 81.25,
    "infraction_penalty": 0.8,
    "driving_score": 65.04,
    "infraction_penalty_2_1": 0.75,
    "driving_score_2_1": 60.96,
    "km": 4.0,
    "mean_speed": 5.0,
    **{f"{kind}_per_km": rate for kind, rate in RATES.items()},
}


def evaluation(ends=(), **driving):
    count = len(ends) or 4
    return SavedEvaluation(
        returns=[1.0] * count,
        lengths=[10] * count,
        seeds=list(range(count)),
        mean_return=1.0,
        ci95=None,
        driving=driving,
        texts={"end": list(ends)} if ends else {},
    )


def rows(html):
    """Cells of every row of the tables."""
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr[^>]*>(.*?)</tr>", html)]


def test_scores_infractions_and_ends_of_each_driver():
    ends = ["route_done", "collision", "", "route_done"]
    html = carla_section(
        {
            "agent": evaluation(ends, **DRIVING),
            "<random>": evaluation(["off_road"] * 4, **DRIVING | {"success": 0.0, "driving_score": 1.0}),
            "racer": evaluation(progress=0.5),
        }
    )
    scores, agent, random, *others = rows(html)
    assert scores == [
        "driver",
        "success",
        "route completion",
        "infraction penalty",
        "driving score",
        "penalty, 2.1",
        "driving score, 2.1",
        "km driven",
    ]
    assert agent == ["agent", "50 %", "81.2 %", "0.80", "65.0", "0.75", "61.0", "4.00"]
    assert random[:5] == ["&lt;random&gt;", "0 %", "81.2 %", "0.80", "1.0"]
    assert others[1] == ["agent", *(f"{rate:.2f}" for rate in RATES.values())]
    assert others[3:] == [
        ["driver", "off road", "route done", "collision", "the limit on its steps"],
        ["agent", "0", "2", "1", "1"],
        ["&lt;random&gt;", "4", "0", "0", "0"],
    ]
    assert "racer" not in html
    assert html.count('<tr class="chief">') == 3


def test_what_a_file_does_not_tell_is_left_out():
    html = carla_section({"agent": evaluation(driving_score=3.0), "other": evaluation(driving_score=2.0, success=1.0)})
    assert rows(html) == [
        ["driver", "success", "driving score"],
        ["agent", "\N{EN DASH}", "3.0"],
        ["other", "100 %", "2.0"],
    ]
    assert carla_section({"agent": evaluation(progress=1.0)}) is None
    assert carla_section({}) is None


def test_an_infraction_of_a_new_kind_is_shown_by_its_name(tmp_path):
    file = tmp_path / "agent.json"
    told = evaluation(["stuck"], driving_score=3.0, stop_signs_per_km=0.5).model_dump(mode="json")
    file.write_text(json.dumps(told))
    assert rows(carla_section({"agent": read_evaluation(file)}))[2:4] == [["driver", "stop signs"], ["agent", "0.50"]]
