"""``wm-gym evaluate --routes`` and ``--suite``: the real CARLA client and the package's own server."""

from __future__ import annotations

import json

import pytest

from tests.carla_server.process import StandIn
from wm_gym.agents.evaluation.evaluation import evaluate
from wm_gym.agents.evaluation.route_drives import LEADERBOARD_ENDS, evaluate_routes
from wm_gym.agents.evaluation.suites import ENDS, TOWNS, condition_settings, parse_suite
from wm_gym.cli.main import main
from wm_gym.envs import make_simulator
from wm_gym.envs.carla.config import CarlaConfig
from wm_gym.envs.carla.route_files import read_routes
from wm_gym.errors import ConfigError

pytest.importorskip("carla")

ROUTE = '<route id="{}" town="{}">{}</route>'
SMALL = ["--frame-size", "32", "--env-set", "view=birdview", "--action-repeat", "2", "--quiet"]


@pytest.fixture(scope="module")
def server():
    with StandIn() as server:
        yield server


@pytest.fixture(scope="module")
def places(server):
    """Places 40 m apart along one way through the first town, and the way's length."""
    connection = {"host": "127.0.0.1", "port": server.port, "connect_timeout_s": 15.0}
    settings = {"frame_size": 32, "view": "birdview", "route": {"min_length": 150, "max_length": 170}}
    env = make_simulator("carla", connection=connection, **settings)
    env.reset(seed=3)
    points = env.unwrapped.route.points
    env.close()
    return [tuple(map(float, point)) for point in points[::40]]


@pytest.fixture
def file(places, tmp_path):
    old = "".join(f'<waypoint x="{x}" y="{y}" z="0" yaw="0"/>' for x, y in places)
    new = "".join(f'<position x="{x}" y="{y}" z="0"/>' for x, y in places)
    scenario = '<scenarios><scenario name="a" type="ControlLoss"/></scenarios>'
    weather = '<weathers><weather route_percentage="0" cloudiness="7"/></weathers>'
    routes = ROUTE.format(0, "Town01", old)
    routes += ROUTE.format(5, "Town01", f"{weather}<waypoints>{new}</waypoints>{scenario}")
    path = tmp_path / "routes.xml"
    path.write_text(f"<routes>{routes}{ROUTE.format(8, 'Town12', old)}</routes>")
    return path


def command(server, *arguments):
    return ["evaluate", "--env", "carla", "--carla", server.address, *SMALL, *map(str, arguments)]


def test_routes_are_driven_once_each(server, file, places, tmp_path, capsys):
    json_file, leaderboard_file = tmp_path / "result.json", tmp_path / "leaderboard.json"
    asked = ["--agent", "autopilot", "--routes", file, "--towns", "Town01", "--json", json_file]
    assert main(command(server, *asked, "--leaderboard-json", leaderboard_file)) == 0
    said = capsys.readouterr().out
    assert "left out: 1 scenarios of 1 routes" in said
    assert "route 5 (Town01, " in said
    result = json.loads(json_file.read_text())
    assert result["texts"]["end"] == ["route_done"] * 2
    assert result["texts"]["weather"] == ["custom"] * 2
    assert result["driving"]["success"] == 1.0
    assert result["simulator"]["kwargs"]["end"] == LEADERBOARD_ENDS
    lengths = [numbers["route_length"] for numbers in result["last_infos"]]
    assert lengths == pytest.approx([40.0 * (len(places) - 1)] * 2, abs=3.0)
    board = json.loads(leaderboard_file.read_text())
    records = board["_checkpoint"]["records"]
    assert [record["route_id"] for record in records] == ["RouteScenario_0_rep0", "RouteScenario_5_rep0"]
    assert [record["scores"]["score_route"] for record in records] == [100.0] * 2
    for record, numbers in zip(records, result["last_infos"], strict=True):
        assert record["scores"]["score_composed"] == pytest.approx(numbers["driving_score"], abs=1e-5)
        assert record["scores_2_1"]["score_composed"] == pytest.approx(numbers["driving_score_2_1"], abs=1e-5)
        assert record["meta"]["duration_game"] == pytest.approx(0.05 * numbers["frame"], abs=1e-3)


def test_ends_are_the_leaderboards_and_those_asked_for(server, file):
    connection = {"host": "127.0.0.1", "port": server.port, "connect_timeout_s": 15.0}
    kwargs = {"frame_size": 32, "view": "birdview", "end": {"max_s": 1.0}}
    result = evaluate_routes(
        "random",
        "carla",
        read_routes(file)[:1],
        worker_connections=[connection],
        simulator_kwargs=kwargs,
        progress=False,
    )
    assert result.simulator.kwargs["end"] == {**LEADERBOARD_ENDS, "max_s": 1.0}
    assert result.texts["end"] == ["time"]
    assert result.driving["success"] == 0.0


def test_the_start_is_the_first_place(server, places):
    connection = {"host": "127.0.0.1", "port": server.port, "connect_timeout_s": 15.0}
    env = make_simulator("carla", connection=connection, frame_size=32, view="birdview")
    try:
        _, info = env.reset(seed=0, options={"waypoints": places, "weather": {"cloudiness": 12.0}})
        ego = env.unwrapped.ego_state
        assert (ego.x, ego.y) == pytest.approx(places[0], abs=0.5)
        assert abs(info["heading_error"]) < 2.0
        assert info["weather"] == "custom"
        for options, message in (
            ({"waypoints": places[:1]}, "two or more places"),
            ({"waypoints": [(0, 1), (2, float("nan"))]}, "two or more places"),
            ({"waypoints": 3}, "two or more places"),
            ({"waypoints": places, "spawn_point": 1}, "exclude each other"),
            ({"weather": {"cloudyness": 1.0}}, "did you mean 'cloudiness'"),
            ({"weather": {"cloudiness": "much"}}, "finite number"),
        ):
            with pytest.raises(ConfigError, match=message):
                env.reset(seed=0, options=options)
    finally:
        env.close()


def test_a_town_that_the_server_has_not_is_one_sentence(server, file, capsys):
    assert main(command(server, "--agent", "autopilot", "--routes", file, "--route-ids", "8")) == 2
    assert "has no town 'Town12'; it has Town01, Town02" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--route-ids", "0"], "belongs to --routes"),
        (["--leaderboard-json", "x.json"], "belongs to --routes"),
        (["--towns", "Town01"], "belongs to --routes or --suite"),
        (["--routes", "FILE", "--episodes", "3"], "drives each route once"),
        (["--routes", "FILE", "--route-ids", "1"], "has no route '1'"),
        (["--routes", "none.xml"], "there is no such file"),
        (["--suite", "corl"], "there is no suite 'corl'"),
        (["--suite", "nocrash:dens"], "did you mean 'dense'"),
        (["--suite", "nocrash", "--towns", "Town03"], "nocrash has no town 'Town03'"),
        (["--suite", "nocrash", "--env-set", "town=Town02"], "town belongs to the suite"),
        (["--suite", "nocrash", "--routes", "FILE"], "no route of the file is in Town02"),
        (["--suite", "nocrash", "--leaderboard-json", "x.json"], "does not go with --suite"),
    ],
)
def test_what_does_not_fit_is_said_at_once(arguments, message, file, capsys):
    given = [str(file) if argument == "FILE" else argument for argument in arguments]
    assert main(["evaluate", "--agent", "autopilot", "--env", "carla", "--quiet", *given]) == 2
    assert message in capsys.readouterr().err


def test_other_simulators_have_no_routes(file, capsys):
    for given in (["--routes", str(file)], ["--suite", "nocrash"]):
        assert main(["evaluate", "--agent", "bundled", *given]) == 2
        assert "the simulator is CarRacingDriving-v0; give --env carla" in capsys.readouterr().err


def test_the_suite_reports_each_condition(server, tmp_path, capsys):
    path = tmp_path / "suite.json"
    asked = ["--agent", "random", "--suite", "nocrash:empty", "--episodes", "2", "--max-episode-steps", "3"]
    assert main(command(server, *asked, "--json", path)) == 0
    said = capsys.readouterr().out
    assert "Town01 (train), empty: success 0.00 of 2 drives" in said
    assert "Town02 (test), empty: success 0.00 of 2 drives" in said
    assert "drawn by seeds" in said
    written = json.loads(path.read_text())
    assert written["success_rate"] == {"empty": {"Town01": 0.0, "Town02": 0.0}}
    assert [condition["result"]["texts"]["town"] for condition in written["conditions"]] == [
        ["Town01"] * 2,
        ["Town02"] * 2,
    ]


def test_a_suite_on_routes_of_a_file(server, file, tmp_path):
    path = tmp_path / "suite.json"
    asked = ["--agent", "autopilot", "--suite", "nocrash:empty", "--towns", "Town01", "--routes", file]
    assert main(command(server, *asked, "--json", path)) == 0
    written = json.loads(path.read_text())
    assert written["success_rate"] == {"empty": {"Town01": 1.0}}
    assert written["routes"] == "of a file"


def test_the_suites_settings_are_the_benchmarks():
    assert parse_suite("nocrash") == ("empty", "regular", "dense")
    assert parse_suite("nocrash:dense") == ("dense",)
    numbers = {(town, kind): TOWNS[town].traffic[kind] for town in TOWNS for kind in parse_suite("nocrash")}
    assert numbers == {
        ("Town01", "empty"): (0, 0),
        ("Town01", "regular"): (20, 50),
        ("Town01", "dense"): (100, 250),
        ("Town02", "empty"): (0, 0),
        ("Town02", "regular"): (15, 50),
        ("Town02", "dense"): (70, 150),
    }
    config = CarlaConfig(**condition_settings("Town02", "regular"))
    assert (config.traffic.vehicles, config.traffic.walkers) == (15, 50)
    # 1 km at 5 km/h is 720 s
    assert config.end.time_limit_s(1000.0) == pytest.approx(20.0 + 720.0)
    assert ENDS["collision"]


def test_options_of_each_reset_are_as_many_as_episodes():
    with pytest.raises(ConfigError, match="1 reset_options do not fit episodes=2"):
        evaluate("autopilot", "carla", episodes=2, reset_options=[{}], progress=False)
