import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from wm_gym import bundle_location
from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.bundles.folder import (
    agent_model_path,
    agent_simulator,
    load_agent,
    read_agent_manifest,
    save_agent,
    save_pixel_agent,
)
from wm_gym.agents.policies.algorithms import ALGORITHMS
from wm_gym.agents.policies.config import AgentConfig
from wm_gym.agents.policies.from_config import resolve
from wm_gym.agents.policies.network import rebuild_policy
from wm_gym.agents.policies.observers import PixelObserver
from wm_gym.agents.policies.pixel_config import PixelAgentConfig
from wm_gym.agents.training.imagination import ImaginationTrainer
from wm_gym.errors import BundleError
from wm_gym.uncertainty import Uncertainty, VarianceNetwork


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_loaded_policy_acts_as_the_saved_one(algo, tiny_model, tmp_path, rng):
    further = {"algorithm": {"use_sde": True}} if algo in ("ppo", "sac") else {}
    config = AgentConfig(algo=algo, num_envs=2, horizon=8, net_arch=(8, 6), **further)
    features = rng.normal(size=(32, tiny_model.feature_dim)).astype(np.float32)
    with ImaginationTrainer(tiny_model, config) as trainer:
        save_agent(tmp_path / "agent", trainer.policy, tiny_model, trainer.config)
        expected = trainer.policy.predict(features, deterministic=True)[0]
    agent = load_agent(tmp_path / "agent")
    assert np.array_equal(agent.policy.predict(features, deterministic=True)[0], expected)
    assert agent.manifest.config == trainer.config
    assert not agent.policy.training
    assert sorted(file.name for file in (tmp_path / "agent").iterdir()) == [
        "README.md",
        "agent.yaml",
        "metrics.json",
        "model",
        "policy.safetensors",
    ]


def test_an_agent_is_self_contained(agent_folder, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.move(agent_folder, moved)
    assert load_agent(moved).model.start_states.batch_size == 16


def test_an_agent_of_the_bundled_model_refers_to_it_by_name(agent_folder, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_location, "bundled_folder", lambda kind: tmp_path / kind)
    tiny_model.save_pretrained(tmp_path / "model")
    policy, config = load_agent(agent_folder).policy, load_agent(agent_folder).manifest.config
    save_agent(tmp_path / "small", policy, tiny_model, config)
    assert not (tmp_path / "small" / "model").exists()
    agent = load_agent(tmp_path / "small")
    assert (agent.manifest.model.location, agent.model.fingerprint) == ("bundled", tiny_model.fingerprint)
    # The same parameters with an uncertainty, which the shipped model lacks, go with the agent.
    tiny_model.uncertainty = Uncertainty(VarianceNetwork(tiny_model.feature_dim, tiny_model.simulator.action.dim, 3))
    save_agent(tmp_path / "doubting", policy, tiny_model, config)
    assert load_agent(tmp_path / "doubting").model.uncertainty.horizon == 3
    first = tiny_model.fingerprint
    with torch.no_grad():
        tiny_model.reward_head.mlp[-1].weight += 1
    tiny_model.save_pretrained(tmp_path / "new")
    (tmp_path / "former").mkdir()
    shutil.move(tmp_path / "model", tmp_path / "former" / first[:12])
    shutil.move(tmp_path / "new", tmp_path / "model")
    assert load_agent(tmp_path / "small").model.fingerprint == first, "it finds the model that was shipped before"
    shutil.rmtree(tmp_path / "former")
    with pytest.raises(BundleError, match=r"was trained in the world model \w{12}, but the bundled one is \w{12};"):
        load_agent(tmp_path / "small")


def test_an_agent_written_before_there_were_two_kinds_is_read_as_it_was(agent_folder):
    written = load_agent(agent_folder).manifest
    replace_in_manifest(agent_folder, lambda values: (values.pop("observation"), values.pop("trained_in")))
    manifest = read_agent_manifest(agent_folder)[1]
    assert manifest == written.model_copy(update={"checksums": None})
    assert (manifest.observation, manifest.trained_in) == ("latent", "dream")
    assert "trained in imagination" in (agent_folder / "README.md").read_text()


def replace_in_manifest(folder, change):
    """Change an agent that was written before there were checksums, so that what the change means is seen."""
    values = yaml.safe_load((folder / "agent.yaml").read_text())
    del values["checksums"]
    change(values)
    (folder / "agent.yaml").write_text(yaml.safe_dump(values))


def cut_policy(folder):
    data = (folder / "policy.safetensors").read_bytes()
    (folder / "policy.safetensors").write_bytes(data[:-100])


def drop_tensor(folder):
    state = load_file(folder / "policy.safetensors")
    del state["log_std"]
    save_file(state, folder / "policy.safetensors")


def other_model(folder):
    state = load_file(folder / "model" / "model.safetensors")
    first = sorted(state)[0]
    state[first] = state[first] + 1
    save_file(state, folder / "model" / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (shutil.rmtree, "there is no agent at"),
        (lambda f: (f / "agent.yaml").unlink(), r"is no agent: it has no agent\.yaml"),
        (lambda f: (f / "agent.yaml").write_text("a: [1"), r"agent\.yaml' is damaged: it is no valid YAML"),
        (lambda f: (f / "agent.yaml").write_bytes(b"\xff\xfe\x00"), r"agent\.yaml' is damaged"),
        (lambda f: (f / "agent.yaml").write_text("- 1"), "must hold a mapping, not a list"),
        (lambda f: replace_in_manifest(f, lambda v: v.update(format="sb3")), "of another format"),
        (
            lambda f: replace_in_manifest(f, lambda v: v.update(version=9)),
            "has format version 9, but this wm_gym reads",
        ),
        (lambda f: replace_in_manifest(f, lambda v: v.update(extra=9)), "unknown key 'extra'"),
        (lambda f: replace_in_manifest(f, lambda v: v["config"].update(algo="dqn")), "no algorithm is called 'dqn'"),
        (lambda f: replace_in_manifest(f, lambda v: v["config"].update(algo="sac")), "does not fit the sac policy"),
        (lambda f: replace_in_manifest(f, lambda v: v["config"].update(net_arch=[9])), "does not fit the ppo policy"),
        (lambda f: replace_in_manifest(f, lambda v: v["config"].update(action="native")), "is not offered for driving"),
        (lambda f: (f / "policy.safetensors").unlink(), r"policy\.safetensors' is missing or damaged"),
        (cut_policy, r"policy\.safetensors' is missing or damaged"),
        (drop_tensor, "does not fit the ppo policy"),
        (lambda f: shutil.rmtree(f / "model"), "there is no world model at"),
        (other_model, r"model\.safetensors' has changed since it was written: its checksum does not match"),
        (lambda f: (f / "metrics.json").write_text("{"), r"metrics\.json' is damaged"),
    ],
)
def test_damage_gives_one_sentence(agent_folder, damage, sentence):
    damage(agent_folder)
    with pytest.raises(BundleError, match=sentence) as raised:
        load_agent(agent_folder)
    assert "\n" not in str(raised.value)


def test_code_in_a_manifest_is_not_run(agent_folder):
    file = agent_folder / "agent.yaml"
    file.write_text(file.read_text() + "\nx: !!python/object/apply:os.system ['touch pwned']\n")
    with pytest.raises(BundleError, match="is damaged"):
        load_agent(agent_folder)


def test_a_foreign_folder_is_not_overwritten(tiny_model, agent_folder, tmp_path):
    agent = load_agent(agent_folder)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("1")
    with pytest.raises(BundleError, match="exists and is no agent"):
        save_agent(tmp_path / "thesis", agent.policy, tiny_model, agent.manifest.config)
    assert [file.name for file in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


def test_a_write_that_fails_leaves_the_old_agent(tiny_model, agent_folder):
    agent = load_agent(agent_folder)
    with pytest.raises(ValueError, match="JSON"):
        save_agent(agent_folder, agent.policy, tiny_model, agent.manifest.config, {"score": float("nan")})
    assert load_agent(agent_folder).metrics == agent.metrics


def test_settings_in_the_manifest_are_the_resolved_ones(agent_folder, small_config, tiny_model):
    values = yaml.safe_load((agent_folder / "agent.yaml").read_text())
    assert values["config"] == resolve(small_config, tiny_model.simulator.action).model_dump(mode="json")
    assert values["provenance"]["packages"]["stable-baselines3"]


@pytest.fixture(params=[False, True], ids=["gaussian", "sde"])
def pixel_agent(request, driving_spec, tmp_path, rng):
    """The folder of an agent that sees pixels, and what its policy does for eight observations."""
    further = {"use_sde": request.param, "frame_stack": 3, "action": "steer_accel"}
    config = PixelAgentConfig(features_dim=16, net_arch=(8,), **further)
    space = PixelObserver(driving_spec, 3).space
    policy = rebuild_policy(config, space, driving_spec.action.space("steer_accel"))
    policy.set_training_mode(False)
    observations = rng.integers(0, 256, (8, 9, 64, 64), dtype=np.uint8)
    folder = save_pixel_agent(tmp_path / "pixels", policy, driving_spec, config, {"frames": 5})
    return folder, config, observations, policy.predict(observations, deterministic=True)[0]


def test_a_loaded_pixel_policy_acts_as_the_saved_one(pixel_agent, driving_spec):
    folder, config, observations, expected = pixel_agent
    agent = load_agent(folder)
    assert np.array_equal(agent.policy.predict(observations, deterministic=True)[0], expected)
    assert len(np.unique(expected[:, 0])) > 1
    assert (agent.manifest.config, agent.metrics, agent.observer.simulator) == (config, {"frames": 5}, driving_spec)
    assert agent_simulator(folder) == driving_spec
    assert not agent.policy.training
    files = sorted(file.name for file in folder.iterdir())
    assert files == ["README.md", "agent.yaml", "metrics.json", "policy.safetensors"]


def test_an_agent_of_either_kind_names_its_simulator(agent_folder, tiny_model):
    assert agent_simulator(agent_folder) == tiny_model.simulator


def test_a_pixel_agent_has_no_world_model_to_give(pixel_agent):
    folder = pixel_agent[0]
    with pytest.raises(BundleError, match="sees pixels and has no world model; give another one"):
        load_agent(folder).model  # noqa: B018 - a property that raises
    with pytest.raises(BundleError, match="sees pixels and has no world model"):
        agent_model_path(*read_agent_manifest(folder))
    with pytest.raises(BundleError, match="this agent sees pixels and has no world model"):
        Driver.load(folder).model  # noqa: B018


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda v: v.update(observation="radar"), "sees 'radar', but this wm_gym knows only latent, pixels"),
        (lambda v: v.update(observation="latent"), "is wrong at 'trained_in': input should be 'dream' or 'data'"),
        (lambda v: v["config"].update(frame_stack=2), "does not fit the ppo policy"),
        (lambda v: v["config"].update(frame_stack=99), "is wrong at 'config.frame_stack'"),
        (lambda v: v["config"].update(action="native"), "does not fit its simulator: .* not offered for driving"),
        (lambda v: v.pop("simulator"), "is wrong at 'simulator'"),
    ],
)
def test_damage_to_a_pixel_agent_gives_one_sentence(pixel_agent, change, sentence):
    replace_in_manifest(pixel_agent[0], change)
    with pytest.raises(BundleError, match=sentence) as raised:
        load_agent(pixel_agent[0])
    assert "\n" not in str(raised.value)
