"""Agents on a Hub: pushed with the world model that they need, and read back by name."""

import json
import shutil

import numpy as np
import pytest
import yaml

from wm_gym import bundle_location
from wm_gym.agents import make_behaviour
from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.bundles.folder import AGENT_BUNDLE, load_agent, save_agent
from wm_gym.agents.bundles.push import push_agent
from wm_gym.agents.evaluation.evaluation import simulator_id
from wm_gym.cli.main import main
from wm_gym.errors import BundleError, ConfigError

NAME = "jane/agent"
SIMULATOR = "CarRacingDriving-v0"
EVALUATION = {
    "mean_return": 905.81,
    "ci95": [892.9, 915.0],
    "episodes": 100,
    "simulator": {"id": SIMULATOR},
}


def test_a_pushed_agent_drives_as_the_one_here(hub, agent_folder, driving_spec, rng):
    (agent_folder / "checkpoint.pt").write_bytes(b"not to be sent")
    push_agent(agent_folder, NAME)
    told = "model/uncertainty.safetensors"  # which this agent's world model does not have
    assert set(hub.repositories[NAME].files) == {".gitattributes", *AGENT_BUNDLE.files} - {told}
    frame = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    expected = Driver.load(agent_folder).act(frame)
    assert np.array_equal(Driver.load(NAME).act(frame), expected)
    assert np.array_equal(make_behaviour(NAME, driving_spec).act(frame), expected)
    assert simulator_id(NAME, None) == driving_spec.id


def test_an_agent_of_the_bundled_model_takes_it_along(hub, agent_folder, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_location, "bundled_folder", lambda kind: tmp_path / kind)
    tiny_model.save_pretrained(tmp_path / "model")
    agent = load_agent(agent_folder)
    small = save_agent(tmp_path / "small", agent.policy, tiny_model, agent.manifest.config)
    assert not (small / "model").exists()
    push_agent(small, NAME)
    shutil.rmtree(tmp_path / "model")  # as where another version of the package is installed
    assert load_agent(NAME).model.fingerprint == tiny_model.fingerprint


def test_the_card_of_an_agent_has_its_evaluation(hub, agent_folder, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(EVALUATION))
    push_agent(agent_folder, NAME, evaluation=tmp_path / "result.json")
    _, head, body = hub.repositories[NAME].files["README.md"].decode().split("---\n", 2)
    result = yaml.safe_load(head)["model-index"][0]["results"][0]
    assert result["dataset"]["name"] == SIMULATOR
    assert {"type": "mean_reward", "name": "mean return", "value": 905.81} in result["metrics"]
    assert "| mean return | 905.81 | 95 % interval 892.9 to 915.0, 100 episodes |" in body
    assert f'Driver.load("{NAME}")' in body


def test_damaged_agents_and_results_are_not_pushed(hub, agent_folder, tmp_path, capsys):
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(BundleError, match="is no evaluation of a driver; give the file"):
        push_agent(agent_folder, NAME, evaluation=tmp_path / "result.json")
    with (agent_folder / "policy.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    assert main(["push", str(agent_folder), NAME]) == 2
    assert "has changed since it was written" in capsys.readouterr().err
    assert not hub.requests


def test_an_agent_whose_world_model_was_changed_in_the_repository_is_refused(hub, agent_folder):
    push_agent(agent_folder, NAME)
    repository = hub.repositories[NAME]
    changed = repository.files["model/model.safetensors"][:-1] + b"\xff"
    repository.commit({**repository.files, "model/model.safetensors": changed})
    with pytest.raises(
        BundleError, match=r"model\.safetensors' has changed since it was written.*push hf://jane/agent"
    ):
        Driver.load(NAME)


def test_the_command_pushes_an_agent(hub, agent_folder, tmp_path, capsys):
    (tmp_path / "drive.mp4").write_bytes(b"film")
    assert main(["push", str(agent_folder), NAME, "--private", "--video", str(tmp_path / "drive.mp4")]) == 0
    assert f"pushed to {hub.url}/{NAME}" in capsys.readouterr().out
    assert hub.repositories[NAME].private
    assert hub.repositories[NAME].files["replay.mp4"] == b"film"


def test_an_unknown_driver_may_be_a_repository(hub, driving_spec):
    with pytest.raises(ConfigError, match="owner/name on the Hub"):
        make_behaviour("autoplot", driving_spec)
    with pytest.raises(BundleError, match="there is no hf://jane/nothing"):
        make_behaviour("jane/nothing", driving_spec)
