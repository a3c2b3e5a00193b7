import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_world import PointWorld

from wm_gym.actions import ActionFormat
from wm_gym.agents.policies.algorithms import ALGORITHMS
from wm_gym.agents.policies.config import AgentConfig, make_agent_config
from wm_gym.agents.policies.from_config import resolve
from wm_gym.agents.policies.network import FeatureNormaliser, feature_statistics, set_normalisation
from wm_gym.agents.training.imagination import ImaginationTrainer
from wm_gym.errors import ConfigError, WMGymError
from wm_gym.state import LatentState

DRIVING = ActionFormat.driving()


def test_an_unknown_algorithm_names_the_nearest_one():
    with pytest.raises(ConfigError, match=r"no algorithm is called 'poo' \(did you mean 'ppo'\?\); use one of ppo,"):
        make_agent_config({"algo": "poo"})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"algorithm": {"vf_coeff": 1.0}}, r"ppo has no keyword argument 'vf_coeff'.*did you mean 'vf_coef'"),
        ({"algorithm": {"gamma": 0.9}}, r"algorithm\.gamma is a setting of its own; give it as gamma"),
        ({"algorithm": {"policy": "CnnPolicy"}}, r"no keyword argument 'policy'"),
        ({"algo": "sac", "clip_range": 0.2}, r"sac has no setting 'clip_range'"),
        ({"algo": "td3", "log_std_init": 0.2}, r"td3 has no setting 'log_std_init'"),
        ({"algo": "ppo", "exploration_noise": 0.2}, r"ppo explores by its own sampling"),
        ({"action": "native"}, r"action='native' is not offered for driving actions"),
    ],
)
def test_settings_that_do_not_fit_the_algorithm_are_refused(values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        resolve(make_agent_config(values), DRIVING)


@pytest.mark.parametrize(
    ("values", "changes", "sentence"),
    [
        ({"gama": 0.9}, (), r"unknown key 'gama'.*did you mean 'gamma'"),
        ({}, ["gamma=1.5"], r"wrong at 'gamma'.*less than or equal to 1 \(given: 1\.5\)"),
        ({}, ["net_arch=[0]"], r"every layer of net_arch needs 1 to 16,384 units"),
        ({}, ["reward_scale=-1.0"], r"reward_scale must be 'auto' or a number above 0"),
    ],
)
def test_a_wrong_setting_is_named(values, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make_agent_config(values, changes)


def test_a_value_that_stable_baselines_refuses_gives_one_sentence():
    config = AgentConfig(algo="sac", num_envs=2, algorithm={"train_freq": [1, "lap"]})
    with pytest.raises(ConfigError, match=r"^sac cannot be made with these settings: .*'lap'.*\.$"):
        ImaginationTrainer(PointWorld(), config)


def test_defaults_depend_on_the_algorithm_and_the_model():
    ppo = resolve(AgentConfig(horizon=30), DRIVING)
    assert (ppo.num_envs, ppo.n_steps, ppo.action, ppo.ent_coef) == (256, 30, "steer_accel", 0.001)
    assert (256 * 30) % ppo.batch_size == 0
    assert 512 <= ppo.batch_size <= 1024
    sac = resolve(AgentConfig(algo="SAC"), PointWorld(native=True).simulator.action)
    assert (sac.action, sac.n_steps, sac.ent_coef, sac.algorithm["buffer_size"]) == ("native", None, "auto", 100_000)
    assert resolve(sac, PointWorld(native=True).simulator.action) == sac


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_learns_a_round_with_its_settings(algo):
    further = {} if ALGORITHMS[algo].is_on_policy else {"batch_size": 16, "algorithm": {"gradient_steps": 1}}
    config = AgentConfig(algo=algo, num_envs=64, horizon=8, net_arch=(8,), final_learning_rate=0.5, **further)
    with ImaginationTrainer(PointWorld(native=True), config) as trainer:
        before = {name: value.clone() for name, value in trainer.policy.state_dict().items()}
        report = trainer.train_round()
        after = trainer.policy.state_dict()
    assert report["learning_rate"] < trainer.config.learning_rate
    assert report["ep_len_mean"] == 8
    assert any(not torch.equal(before[name], after[name]) for name in before)
    normalisers = [module for module in trainer.policy.modules() if isinstance(module, FeatureNormaliser)]
    mean, deviation = feature_statistics(PointWorld(), PointWorld().start_states)
    assert normalisers
    for normaliser in normalisers:
        assert torch.equal(normaliser.mean, mean)
        assert torch.equal(normaliser.deviation, deviation)


def test_statistics_of_features_are_those_of_the_start_states():
    world = PointWorld()
    features = 3000.0 + 500.0 * world.start_states.latent.double()
    mean, deviation = feature_statistics(world, world.start_states)
    assert mean.item() == pytest.approx(features.mean().item())
    assert deviation.item() == pytest.approx(features.std(unbiased=False).item(), rel=1e-5)
    single = LatentState(world.start_states.latent[:1], world.start_states.memory[:1])
    assert feature_statistics(world, single)[1].tolist() == [1.0]


def test_features_pass_a_normaliser_unchanged_until_it_is_set():
    normaliser = FeatureNormaliser(spaces.Box(-np.inf, np.inf, (2,)))
    features = torch.tensor([[3000.0, -7.0]])
    assert torch.equal(normaliser(features), features)
    set_normalisation(normaliser, torch.tensor([1000.0, -8.0]), torch.tensor([100.0, 4.0]))
    assert normaliser(features).tolist() == [[10.0, 0.25]]


def test_start_states_that_are_not_finite_are_refused():
    world = PointWorld()
    world.start_states.latent[3] = float("nan")
    with pytest.raises(WMGymError, match="features of the world model's start states are not finite"):
        ImaginationTrainer(world, AgentConfig(num_envs=2))
