"""Collection from CARLA servers that come and go: the real client and stand-in servers."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.carla_server.process import StandIn, command, free_port
from wm_gym.agents.behaviours import make_behaviour
from wm_gym.data_collection import Dataset
from wm_gym.data_collection.datasets.verification import verify
from wm_gym.data_collection.recording.collector import collect
from wm_gym.data_collection.recording.plan import CollectionPlan, parse_behaviours
from wm_gym.envs import make_simulator
from wm_gym.errors import ConfigError, SimulatorError, SimulatorLostError

pytest.importorskip("carla")

MIX = "autopilot:0.2,noisy:0.2,random:0.2,traffic-manager:0.2,noisy-traffic-manager:0.2"

SOON = {"timeout_s": 10.0, "image_timeout_s": 15.0, "connect_timeout_s": 1.0}
"""For servers that die and do not come back."""


def at(server, **settings):
    """How to reach a server."""
    return {"host": "127.0.0.1", "port": server.port, "image_timeout_s": 30.0, "restart": True, **settings}


def collect_carla(out, worker_kwargs, **settings):
    settings = {"behaviour": "random", "max_episode_steps": 12, "progress": False, **settings}
    return collect(
        out,
        "carla",
        make_behaviour=make_behaviour,
        simulator_kwargs={"frame_size": 32},
        worker_kwargs=worker_kwargs,
        **settings,
    )


def checksums(out):
    return {header.index: header.sha256 for header in Dataset.open(out).episodes}


def check_folder(out, episodes):
    """Every episode is there, whole, and nothing else is."""
    assert verify(out).problems == []
    names = {path.name for path in (out / "episodes").iterdir()}
    assert names == {f"episode-{index:06d}.safetensors" for index in range(episodes)}
    assert {path.name for path in out.iterdir()} <= {"dataset.json", "episodes", ".collect.lock"}


@pytest.fixture(scope="module")
def servers():
    with StandIn() as first, StandIn() as second:
        yield first, second


@pytest.fixture(scope="module")
def reference(servers, tmp_path_factory):
    """Ten episodes of all behaviours from one server."""
    out = tmp_path_factory.mktemp("reference") / "data"
    summary = collect_carla(out, [at(servers[0])], episodes=10, behaviour=MIX)
    assert (summary.num_episodes, summary.num_steps, summary.lost) == (10, 120, 0)
    return out


def test_episodes_are_whole_and_say_nothing_of_the_server(reference, servers):
    check_folder(reference, 10)
    assert all(server.wait_until_clean() for server in servers)
    record = (reference / "dataset.json").read_text()
    assert json.loads(record)["simulator"]["kwargs"] == {}
    assert str(servers[0].port) not in record
    assert "127.0.0.1" not in record
    dataset = Dataset.open(reference)
    assert dataset.metadata.simulator.id == "CarlaDriving-v0"
    assert dataset.metadata.simulator.step_s == 0.05
    assert len({header.behaviour for header in dataset.episodes}) == 5
    episode = dataset.read_episode(0)
    assert episode.frames.shape == (13, 32, 32, 3)
    assert {"speed", "progress", "driving_score", "reward_progress"} <= episode.infos.keys()
    assert "simulator_lost" not in episode.infos


def test_two_servers_give_the_same_bytes_as_one(reference, servers, tmp_path):
    collect_carla(tmp_path / "data", [at(server) for server in reversed(servers)], episodes=10, behaviour=MIX)
    assert checksums(tmp_path / "data") == checksums(reference)


def test_running_again_resumes_on_another_server(reference, servers, tmp_path):
    out = tmp_path / "data"
    collect_carla(out, [at(servers[0])], episodes=3, behaviour=MIX)
    summary = collect_carla(out, [at(servers[1])], episodes=5, behaviour=MIX)
    assert summary.new_episodes == 2
    check_folder(out, 5)
    assert checksums(out) == {index: sha256 for index, sha256 in checksums(reference).items() if index < 5}


def test_the_traffic_manager_is_recorded_with_what_it_applied(reference, servers):
    dataset = Dataset.open(reference)
    header = next(header for header in dataset.episodes if header.behaviour == "traffic-manager")
    applied = []
    env = make_simulator("carla", frame_size=32, connection=at(servers[1]))
    env.reset(seed=header.seed)
    env.unwrapped.traffic_manager_drives = True
    for _ in range(header.length):
        info = env.step(np.array([1.0, 0.0, 1.0, -1.0], np.float32))[-1]  # ignored
        applied.append(info["applied_action"])
    env.close()
    actions = dataset.read_episode(header.index).actions
    np.testing.assert_array_equal(actions, applied)
    assert actions[:, 1].max() > 0.3
    assert len(np.unique(actions[:, :2], axis=0)) > 1


def test_other_behaviours_are_recorded_with_what_they_gave(reference):
    dataset = Dataset.open(reference)
    header = next(header for header in dataset.episodes if header.behaviour == "random")
    behaviour = make_behaviour("random", dataset.metadata.simulator)
    behaviour.reset(None, CollectionPlan(0, parse_behaviours(MIX))[header.index].behaviour_seed)
    given = [behaviour.act(None) for _ in range(header.length)]
    np.testing.assert_array_equal(dataset.read_episode(header.index).actions, given)


@pytest.mark.slow
def test_a_server_that_is_killed_again_and_again_costs_no_episode(reference, tmp_path):
    out = tmp_path / "data"
    stop = threading.Event()

    def kill_and_restart(server):
        for wanted in (1, 3, 6):
            while len(list((out / "episodes").glob("*.safetensors"))) < wanted and not stop.is_set():
                time.sleep(0.01)
            server.kill()
            time.sleep(0.2)
            server.start()

    with StandIn() as server:
        killer = threading.Thread(target=kill_and_restart, args=(server,))
        killer.start()
        try:
            summary = collect_carla(out, [at(server, timeout_s=10.0, image_timeout_s=15.0)], episodes=10, behaviour=MIX)
        finally:
            stop.set()
            killer.join()
    assert summary.new_episodes == 10
    check_folder(out, 10)
    assert checksums(out) == checksums(reference)


def test_an_episode_that_loses_its_server_is_recorded_again(reference, tmp_path, capfd):
    """A server of our own that dies in the middle of an episode, and is started again."""
    out, port = tmp_path / "data", free_port()
    died = tmp_path / "died"
    dies_once = [*command("{port}")[:2], dying_server(died), "--port", "{port}"]
    connection = {"host": "127.0.0.1", "port": port, "launch": dies_once, "restart": True, "timeout_s": 15.0}
    summary = collect_carla(out, [connection], episodes=3, behaviour=MIX, progress=True)
    assert died.exists()
    assert summary.lost == 1
    assert "lost=1" in capfd.readouterr().err
    check_folder(out, 3)
    assert checksums(out) == {index: sha256 for index, sha256 in checksums(reference).items() if index < 3}


def dying_server(marker):
    """A program: a stand-in server whose process ends in the middle of the second episode, the first time only."""
    return (
        f"import os, sys, pathlib; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        f"marker = pathlib.Path({str(marker)!r})\n"
        "from wm_gym.envs.carla_light.world import World\n"
        "control, calls = World.control_vehicle, []\n"
        "def dies(*arguments):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 18 and not marker.exists():\n"
        "        marker.touch()\n"
        "        os._exit(1)\n"
        "    return control(*arguments)\n"
        "World.control_vehicle = dies\n"
        "from tests.carla_server.__main__ import main\n"
        "main()\n"
    )


def test_a_server_that_dies_for_good_leaves_its_episode_to_the_other(reference, servers, tmp_path):
    out = tmp_path / "data"
    with StandIn() as doomed, servers[0].held_until(doomed.dies_in_use):
        places = [at(doomed, **SOON), at(servers[0], timeout_s=180.0)]
        summary = collect_carla(out, places, episodes=8, behaviour=MIX)
    assert summary.lost >= 1
    check_folder(out, 8)
    assert checksums(out) == {index: sha256 for index, sha256 in checksums(reference).items() if index < 8}


def test_a_worker_whose_server_is_gone_is_given_up_with_a_warning(reference, servers, tmp_path, given_up):
    out = tmp_path / "data"
    gone = {"host": "127.0.0.1", "port": free_port(), "restart": True}
    sentence = r"worker 1 of 2 was given up, .* lost 3 times in a row: no CARLA server can be"
    with pytest.warns(UserWarning, match=sentence), servers[0].held_until(given_up.exists):
        summary = collect_carla(out, [gone, at(servers[0], timeout_s=180.0)], episodes=8, behaviour=MIX)
    assert summary.lost == 3
    check_folder(out, 8)
    assert checksums(out) == {index: sha256 for index, sha256 in checksums(reference).items() if index < 8}


def test_the_last_server_gone_ends_the_collection_and_keeps_what_is_there(reference, tmp_path):
    out = tmp_path / "data"
    with StandIn() as server:
        stop = threading.Event()

        def kill():
            while len(list((out / "episodes").glob("*.safetensors"))) < 2 and not stop.is_set():
                time.sleep(0.01)
            server.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            with pytest.raises(
                SimulatorLostError, match=r"^episode \d+ \(behaviour .*lost 3 times in a row: "
            ) as error:
                collect_carla(out, [at(server, **SOON)], episodes=500, behaviour=MIX)
        finally:
            stop.set()
            killer.join()
    assert f"127.0.0.1:{server.port}" in str(error.value)
    assert "what is finished is kept" in str(error.value)
    found = Dataset.open(out).num_episodes
    assert found >= 2
    check_folder(out, found)
    kept = checksums(reference)
    assert all(sha256 == kept.get(index, sha256) for index, sha256 in checksums(out).items())


def test_no_server_at_all_is_told_at_once_and_leaves_nothing(tmp_path):
    started = time.monotonic()
    with pytest.raises(
        SimulatorLostError, match=r"no CARLA server can be reached at 127\.0\.0\.1:\d+: nothing listens"
    ):
        collect_carla(tmp_path / "data", [{"host": "127.0.0.1", "port": free_port(), "restart": True}], episodes=2)
    assert time.monotonic() - started < 50  # it is not waited for, as it would be for one that was lost
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("worker_kwargs", "settings", "error", "sentence"),
    [
        ([{}, {}], {"workers": 3}, ConfigError, "workers=3 does not fit 2 servers"),
        ([{}], {"workers": 2}, ConfigError, "workers=2 does not fit 1 server,"),
        ([], {}, ConfigError, "the list of simulators for the workers is empty"),
        ([{"town": "Town02"}], {}, SimulatorError, "'town' is no setting of the connection to CarlaDriving-v0"),
        ([{"prot": 2000}], {}, SimulatorError, "did you mean 'port'"),
        ([{"port": 70000}], {}, ConfigError, "port"),
        ([{"launch": "/nowhere/CarlaUE4.sh"}], {}, SimulatorError, "names no CARLA server"),
    ],
)
def test_wrong_settings_give_one_sentence(tmp_path, worker_kwargs, settings, error, sentence):
    with pytest.raises(error, match=sentence) as raised:
        collect_carla(tmp_path / "data", worker_kwargs, episodes=1, **settings)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
