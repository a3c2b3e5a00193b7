"""The complete loop on CARLA: collect, train a world model, dream, train PPO, evaluate, by the command line."""

from __future__ import annotations

import json
import threading

import gymnasium as gym
import pytest

from tests.carla_server.process import StandIn
from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.reports.drives import record_drives
from wm_gym.cli.main import main
from wm_gym.data_collection.datasets.dataset import Dataset

pytest.importorskip("carla.libcarla")


def run(*arguments: str) -> None:
    assert main(list(arguments)) == 0, arguments


def check_that_a_lost_server_is_no_driving(agent: str, server: StandIn) -> None:
    """A report's drive whose server is killed in the middle is driven again."""
    connection = {"host": "127.0.0.1", "port": server.port, "timeout_s": 10.0, "restart": True}
    driver = Driver.load(agent)
    seeds = [3, 4]
    undisturbed = record_drives(driver, seeds, connection=connection)
    frame = server.summary()["frame"]
    has_ended, was_killed = threading.Event(), threading.Event()

    def kill_and_restart() -> None:
        while not (server.summary()["synchronous"] and server.summary()["frame"] > frame + 60):
            if has_ended.wait(0.01):
                return
        server.kill()
        was_killed.set()
        server.start()

    killer = threading.Thread(target=kill_and_restart)
    killer.start()
    try:
        again = record_drives(driver, seeds, connection=connection)
    finally:
        has_ended.set()
        killer.join()
    assert was_killed.is_set()
    assert [len(drive.actions) for drive in again] == [len(drive.actions) for drive in undisturbed]


@pytest.mark.slow
def test_collect_train_dream_train_and_evaluate_in_carla(tmp_path, capsys):
    data, model, agent = (str(tmp_path / name) for name in ("data", "model", "agent"))
    result, video = tmp_path / "result.json", tmp_path / "drive.gif"
    with StandIn() as first, StandIn() as second:
        servers = f"{first.address},{second.address}"
        collect = ["collect", "--env", "carla", "--carla", servers, "--frame-size", "64", "--action-repeat", "2"]
        collect += [
            "--env-set",
            "traffic={vehicles: 3}",
            "--env-set",
            "end={max_s: 3}",
            "--behaviour",
            "noisy:0.6,noisy-traffic-manager:0.4",
        ]
        run(*collect, "--episodes", "5", "--max-episode-steps", "30", "--out", data, "--quiet")
        assert Dataset.open(data).num_episodes == 5
        run("dataset", "verify", data)

        train = ["train-model", "--data", data, "--config", "debug", "--out", model, "--quiet"]
        run(*train, "--set", "training.steps=6", "--seed", "1", "--device", "cpu")
        dream = gym.make("DreamDriving-v0", model=model)
        dream.reset(seed=0)
        dream.step(dream.action_space.sample())
        dream.close()

        run("train-agent", "--model", model, "--algo", "ppo", "--steps", "320", "--out", agent, "--quiet",
            "--set", "num_envs=16", "--set", "horizon=10",
            "--select-drives", "1", "--carla", first.address)  # fmt: skip
        assert "best mean return of its selection drives" in capsys.readouterr().out

        run("train-agent", "--model", model, "--data", data, "--rounds", "1", "--frames", "60", "--carla", servers,
            "--out", str(tmp_path / "rounds"), "--quiet", "--steps", "320", "--set", "num_envs=16",
            "--set", "horizon=10", "--select-drives", "1", "--set-rounds", "model_updates=3",
            "--set-rounds", "workers=2")  # fmt: skip
        assert "round 1: 6" in capsys.readouterr().out
        recording = Dataset.open(tmp_path / "rounds" / "round-1" / "data")
        assert recording.metadata.collection.patience is None  # a red light outlasts it
        check_that_a_lost_server_is_no_driving(agent, first)

        evaluate = ["evaluate", "--agent", agent, "--carla", first.address, "--episodes", "2", "--quiet"]
        run(*evaluate, "--max-episode-steps", "20", "--json", str(result), "--video", str(video))
        found = json.loads(result.read_text())
        assert found["simulator"]["id"] == "CarlaDriving-v0"
        assert found["simulator"]["kwargs"] == {
            "traffic": {"vehicles": 3},
            "end": {"max_s": 3},
            "action_repeat": 2,
        }
        assert len(found["returns"]) == 2
        assert 0 <= found["driving"]["driving_score"] <= 100
        assert {"route_completion", "infraction_penalty", "collisions_vehicle_per_km"} <= set(found["driving"])
        assert video.stat().st_size > 0
        assert first.wait_until_clean()
        assert second.wait_until_clean()
    assert "driving_score" in capsys.readouterr().out


@pytest.mark.slow
def test_the_demo_in_carla_trains_in_one_town_and_drives_in_another(tmp_path, capsys):
    out = tmp_path / "demo"
    with StandIn() as first, StandIn() as second:
        servers = f"{first.address},{second.address}"
        run("demo", "--env", "carla", "--carla", servers, "--quick", "--quiet", "--out", str(out))
    told = capsys.readouterr().out
    assert "driving score" in told
    assert "2 held-out routes" in told
    assert "the clone that it began from" in told
    assert json.loads((out / "agent" / "run.json").read_text())["initial"] is not None
    assert Dataset.open(out / "data").metadata.simulator.kwargs["town"] == "Town01"
    for driver in ("agent", "clone", "random", "autopilot"):
        result = json.loads((out / "evaluation" / f"{driver}.json").read_text())
        assert result["simulator"]["kwargs"]["town"] == "Town02"
        assert result["simulator"]["kwargs"]["reward"] in ("route_completion", {"preset": "route_completion"})
    assert (out / "report" / "index.html").stat().st_size > 10_000
