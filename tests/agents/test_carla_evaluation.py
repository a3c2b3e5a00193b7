"""Evaluation in CARLA, and its Traffic Manager as a driver: the real client and stand-in servers."""

import json
import threading
import time

import numpy as np
import pytest

from tests.carla_server.process import StandIn, free_port
from wm_gym.actions import ActionFormat
from wm_gym.agents.baselines.simulator_training import train_in_simulator
from wm_gym.agents.behaviours import make_behaviour
from wm_gym.agents.evaluation.evaluation import evaluate
from wm_gym.agents.evaluation.results_file import read_evaluation
from wm_gym.agents.policies.pixel_config import make_pixel_config
from wm_gym.agents.reports.carla_scores import carla_section
from wm_gym.cli.main import build_parser, main
from wm_gym.cli.options import carla_connections
from wm_gym.data_collection.recording.driving import begin_episode
from wm_gym.envs import describe_simulator, make_simulator
from wm_gym.errors import ConfigError, SimulatorError, SimulatorLostError

pytest.importorskip("carla")

SETTINGS = {"frame_size": 32}
PER_KM = {
    "collisions_pedestrian_per_km",
    "collisions_vehicle_per_km",
    "collisions_static_per_km",
    "red_lights_per_km",
    "off_road_per_km",
    "route_deviations_per_km",
    "blocked_per_km",
}


def at(server, **settings):
    """How to reach a server."""
    return {"host": "127.0.0.1", "port": server.port, "image_timeout_s": 30.0, "restart": True, **settings}


def run(driver, connections, **arguments):
    arguments = {"episodes": 3, "max_episode_steps": 10, "simulator_kwargs": SETTINGS, "progress": False, **arguments}
    return evaluate(driver, "carla", worker_connections=connections, **arguments)


@pytest.fixture(scope="module")
def servers():
    with StandIn() as first, StandIn() as second:
        yield first, second


@pytest.fixture
def env(servers):
    env = make_simulator("carla", connection=at(servers[0]), **SETTINGS)
    yield env
    env.close()


@pytest.fixture(scope="module")
def reference(servers):
    """Three drives of the autopilot on one server."""
    return run("autopilot", [at(servers[0])])


def test_results_are_those_of_driving_by_hand(reference, servers, env, tmp_path):
    assert reference.simulator.kwargs == {}
    autopilot = make_behaviour("autopilot", describe_simulator(env))
    for index, seed in enumerate(reference.seeds):
        frame, _ = begin_episode(env, autopilot, seed, seed)
        rewards = []
        for _ in range(10):
            frame, reward, *_, info = env.step(autopilot.act(frame))
            rewards.append(reward)
        assert reference.returns[index] == pytest.approx(sum(rewards), abs=1e-9)
        if index == 0:
            speed = info["speed"]
    assert speed > 0
    assert {"mean_speed", "off_road_fraction", "progress", "route_completion", "infraction_penalty"} <= set(
        reference.driving
    )
    assert set(reference.driving) >= PER_KM | {"driving_score", "km"}
    assert reference.driving["infraction_penalty"] == 1.0
    assert 0 < reference.driving["driving_score"] == reference.driving["route_completion"] < 5
    assert reference.driving["mean_speed"] > 0.2


def test_rates_are_all_infractions_over_all_kilometres(servers, tmp_path):
    """A driver that leaves the road: the rate of a short drive counts for less than that of a long one."""
    path = tmp_path / "result.json"
    settings = {**SETTINGS, "end": {"off_road": False, "collision": False, "wrong_way_m": 0.0, "max_deviation_m": 0.0}}
    result = run("random", [at(servers[0])], max_episode_steps=150, simulator_kwargs=settings, json_path=path)
    driving = json.loads(path.read_text())["driving"]
    assert driving == result.driving
    env = make_simulator("carla", connection=at(servers[1]), **settings)
    behaviour = make_behaviour("random", describe_simulator(env))
    counts, km = [], []
    for seed in result.seeds:
        frame, _ = begin_episode(env, behaviour, seed, seed)
        was_off_road, departures = False, 0
        for _ in range(150):
            frame, *_, info = env.step(behaviour.act(frame))
            departures += info["off_road"] and not was_off_road
            was_off_road = info["off_road"]
        counts.append(departures)
        km.append(info["km"])
    env.close()
    assert sum(counts) > 0
    assert driving["km"] == pytest.approx(sum(km))
    assert driving["off_road_per_km"] == pytest.approx(sum(counts) / sum(km))


@pytest.mark.slow
def test_the_number_of_servers_changes_nothing(reference, servers):
    two = run("autopilot", [at(server) for server in reversed(servers)])
    assert (two.returns, two.driving, two.infos) == (reference.returns, reference.driving, reference.infos)


def test_where_the_server_is_may_stand_with_the_other_arguments(reference, servers):
    result = evaluate(
        "autopilot",
        "carla",
        episodes=3,
        max_episode_steps=10,
        simulator_kwargs={**SETTINGS, **at(servers[0])},
        progress=False,
    )
    assert result.simulator == reference.simulator
    assert result.returns == reference.returns


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_drive_that_loses_its_server_is_driven_again(reference, servers, workers):
    stop = threading.Event()

    def kill_and_restart(server):
        while not stop.is_set() and not any("hero" in actor for actor in server.spawned()):
            time.sleep(0.02)
        server.kill()
        server.start()

    with StandIn() as doomed:
        killer = threading.Thread(target=kill_and_restart, args=(doomed,))
        killer.start()
        try:
            connections = [at(doomed, timeout_s=10.0, image_timeout_s=15.0), at(servers[0])][:workers]
            result = run("autopilot", connections)
        finally:
            stop.set()
            killer.join()
    assert result.episodes == 3
    assert (result.returns, result.driving) == (reference.returns, reference.driving)


@pytest.mark.slow
def test_a_server_that_is_gone_is_told_or_ends_it(reference, servers, given_up):
    gone = {"host": "127.0.0.1", "port": free_port(), "restart": True}
    sentence = "worker 1 of 2 was given up, .* no CARLA server can be reached"
    with pytest.warns(UserWarning, match=sentence), servers[0].held_until(given_up.exists):
        result = run("autopilot", [gone, at(servers[0], timeout_s=180.0)], episodes=5)
    assert result.returns[:3] == reference.returns
    with pytest.raises(SimulatorLostError, match=r"episode 0 \(seed 1000000\): .* lost 3 times in a row: no CARLA"):
        run("autopilot", [gone])
    with pytest.raises(ConfigError, match="workers=3 does not fit 2 servers"):
        run("autopilot", [gone, gone], workers=3)


def test_a_film_needs_no_second_server(reference, servers, tmp_path):
    result = run("autopilot", [at(servers[0])], video_path=tmp_path / "drive.gif")
    assert result.returns == reference.returns
    assert [file.name for file in tmp_path.iterdir()] == ["drive.gif"]
    assert (tmp_path / "drive.gif").stat().st_size > 0


def test_the_traffic_manager_drives_and_hands_the_wheel_back(env):
    spec = describe_simulator(env)
    manager, random = make_behaviour("traffic-manager", spec), make_behaviour("random", spec)
    frame, _ = begin_episode(env, manager, 3, 3)
    assert env.unwrapped.traffic_manager_drives
    for _ in range(10):
        action = manager.act(frame)
        np.testing.assert_array_equal(ActionFormat.driving().to_stored(action), action)
        frame, *_, info = env.step(np.array([1, 0, 1, -1], np.float32))
    assert info["speed"] > 0.5
    begin_episode(env, random, 3, 3)
    assert not env.unwrapped.traffic_manager_drives
    given = np.array([0.25, 0.5, 0.0, 1.0], np.float32)
    np.testing.assert_array_equal(env.step(given)[-1]["applied_action"], given)


@pytest.mark.slow
def test_disturbances_are_short_and_what_they_give_is_what_happens(env):
    behaviour = make_behaviour("noisy-traffic-manager", describe_simulator(env))
    stretches, kinds = [], set()
    for seed in range(12):
        frame, _ = begin_episode(env, behaviour, seed, seed)
        taken: list[np.ndarray] = []
        for _ in range(80):
            before = env.unwrapped.applied_action
            action = behaviour.act(frame)
            is_ours = not env.unwrapped.traffic_manager_drives
            frame, _, terminated, truncated, info = env.step(action)
            if is_ours:
                np.testing.assert_array_equal(info["applied_action"], action)
                taken = taken or [before]
                taken.append(action)
            elif taken:
                stretches.append(np.stack(taken))
                taken = []
            if terminated or truncated:
                break
    assert len(stretches) > 5
    for stretch in stretches:
        assert 6 <= len(stretch) - 1 <= 30  # 0.3 to 1.5 s
        offset = stretch[1:, 0] - stretch[0, 0]
        if np.abs(offset).max() > 1e-6:  # rises and falls evenly, the pedals stay
            kinds.add("steering")
            np.testing.assert_allclose(offset, offset[::-1], atol=1e-6)
            half = np.abs(offset[: (len(offset) + 1) // 2])
            np.testing.assert_allclose(np.diff(half), half[0], atol=1e-6)
            np.testing.assert_allclose(stretch[1:, 1:3], np.broadcast_to(stretch[0, 1:3], (len(offset), 2)), atol=1e-6)
        else:
            kinds.add("acceleration")
            assert len(np.unique(stretch[1:, 1:], axis=0)) == 1
    assert kinds == {"steering", "acceleration"}


@pytest.mark.parametrize("name", ["traffic-manager", "noisy-traffic-manager"])
def test_other_simulators_have_no_traffic_manager(name):
    with pytest.raises(SimulatorError, match=f"'{name}' belongs to CarlaDriving-v0, not to CarRacingDriving-v0"):
        make_behaviour(name, describe_simulator(make_simulator("car-racing")))
    with pytest.raises(SimulatorError, match="has no Traffic Manager"):
        make_behaviour(name, describe_simulator(make_simulator("carla"))).reset(make_simulator("car-racing"), 0)


def test_how_each_drive_ended_is_told(servers, tmp_path, capsys):
    path = tmp_path / "result.json"
    settings = {**SETTINGS, "end": {"max_s": 0.4}}
    result = run("autopilot", [at(servers[0])], simulator_kwargs=settings, json_path=path)
    assert result.texts["end"] == ["time"] * 3
    assert result.texts["town"] == ["Town01"] * 3
    assert json.loads(path.read_text())["texts"] == result.texts
    assert run("autopilot", [at(servers[0])], max_episode_steps=3).texts["end"] == [""] * 3
    command = ["evaluate", "--agent", "autopilot", "--env", "carla", "--carla", servers[0].address, "--quiet"]
    command += ["--episodes", "2", "--frame-size", "32", "--env-set", "end={max_s: 0.4}"]
    assert main(command) == 0
    assert "ended by: time 2" in capsys.readouterr().out


def test_the_report_shows_the_scores_of_the_drives(servers, tmp_path):
    path = tmp_path / "result.json"
    settings = {**SETTINGS, "end": {"max_s": 0.4}}
    driving = run("autopilot", [at(servers[0])], simulator_kwargs=settings, json_path=path).driving
    shown = carla_section({"autopilot": read_evaluation(path)})
    for cell in (f"{driving['route_completion']:.1f} %", f"{driving['driving_score']:.1f}", f"{driving['km']:.2f}"):
        assert f"<td>{cell}</td>" in shown
    assert shown.count("<td>0.00</td>") >= len(PER_KM)  # nothing happens in 0.4 s
    assert '<th>time</th></tr></thead><tbody><tr><td class="words">autopilot</td><td>3</td>' in shown


@pytest.mark.slow
def test_an_environment_that_inherits_from_carlas_has_its_drivers_and_servers(reference, servers):
    result = evaluate(
        "autopilot",
        "own_carla:OwnCarla-v0",
        episodes=3,
        max_episode_steps=10,
        simulator_kwargs=SETTINGS,
        worker_connections=[at(server) for server in servers],
        progress=False,
    )
    assert result.simulator.id == "own_carla:OwnCarla-v0"
    assert result.returns == reference.returns
    assert make_behaviour("noisy-traffic-manager", result.simulator).name == "noisy-traffic-manager"


@pytest.mark.parametrize("env", ["own_carla:OwnCarla-v0", "carla", "CarlaDriving-v0"])
def test_servers_may_be_named_for_carla_and_what_inherits_from_it(env):
    options = ["evaluate", "--agent", "random", "--carla", "one:2000,two:2000", "--env"]
    connections = carla_connections(build_parser().parse_args([*options, env]))
    assert [connection["host"] for connection in connections] == ["one", "two"]
    with pytest.raises(ConfigError, match="--carla belongs to --env carla, not to --env car-racing"):
        carla_connections(build_parser().parse_args([*options, "car-racing"]))


def test_a_policy_trains_in_as_many_environments_as_there_are_servers(servers, tmp_path):
    config = make_pixel_config({"num_envs": 2, "n_steps": 8, "batch_size": 8, "n_epochs": 1, "frame_stack": 1})
    settings = {"frame_size": 64, "end": {"max_s": 0.2}}
    connections = [at(server) for server in servers]
    arguments = {"config": config, "steps": 32, "simulator_kwargs": settings, "progress": False, "device": "cpu"}
    summary = train_in_simulator("carla", out=tmp_path / "run", connections=connections, **arguments)
    assert summary.steps == 32
    with pytest.raises(ConfigError, match="set num_envs=1, the number of servers"):
        train_in_simulator("carla", out=tmp_path / "other", connections=connections[:1], **arguments)
    assert not (tmp_path / "other").exists()
