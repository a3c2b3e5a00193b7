"""The complete loop on CARLA: collect, train a world model, dream, train PPO, evaluate, by the command line."""

from __future__ import annotations

import json

import gymnasium as gym
import pytest

from tests.carla_server.process import StandIn
from wm_gym.cli.main import main
from wm_gym.data_collection.dataset import Dataset

pytest.importorskip("carla.libcarla")


def run(*arguments: str) -> None:
    assert main(list(arguments)) == 0, arguments


@pytest.mark.slow
def test_collect_train_dream_train_and_evaluate_in_carla(tmp_path, capsys):
    data, model, agent = (str(tmp_path / name) for name in ("data", "model", "agent"))
    result, video = tmp_path / "result.json", tmp_path / "drive.gif"
    with StandIn() as first, StandIn() as second:
        servers = f"{first.address},{second.address}"
        collect = ["collect", "--env", "carla", "--carla", servers, "--frame-size", "64", "--action-repeat", "2"]
        collect += ["--env-set", "traffic={vehicles: 3}", "--behaviour", "noisy:0.6,noisy-traffic-manager:0.4"]
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
            "--set", "num_envs=16", "--set", "horizon=10")  # fmt: skip

        evaluate = ["evaluate", "--agent", agent, "--carla", first.address, "--episodes", "2", "--quiet"]
        run(*evaluate, "--max-episode-steps", "20", "--json", str(result), "--video", str(video))
        found = json.loads(result.read_text())
        assert found["simulator"]["id"] == "CarlaDriving-v0"
        assert found["simulator"]["kwargs"] == {"traffic": {"vehicles": 3}, "action_repeat": 2}
        assert len(found["returns"]) == 2
        assert 0 <= found["driving"]["driving_score"] <= 100
        assert {"route_completion", "infraction_penalty", "collisions_vehicle_per_km"} <= set(found["driving"])
        assert video.stat().st_size > 0
        assert first.wait_until_clean()
        assert second.wait_until_clean()
    assert "driving_score" in capsys.readouterr().out
