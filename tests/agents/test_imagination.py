import copy
import itertools

import numpy as np
import pytest
import torch
from toy_world import REWARD, PointWorld

from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.policies.config import AgentConfig
from wm_gym.agents.training.imagination import ImaginationTrainer, measure_reward_scale
from wm_gym.envs.dream_vec_env import DreamVecEnv
from wm_gym.errors import ConfigError, TrainingError
from wm_gym.world_model import WorldModel

HORIZON = 16


def mean_dream_return(world, choose):
    """Unscaled return over dreams from every start state."""
    dreams = DreamVecEnv(64, world, horizon=HORIZON, action="steer_accel", termination="never")
    for slot in range(64):
        dreams._options[slot] = {"start_state": slot}
    observations, total = dreams.reset(), np.zeros(64)
    for _ in range(HORIZON):
        observations, rewards, _, infos = dreams.step(choose(observations))
        total += rewards
    assert np.allclose(total, [info["episode"]["r"] for info in infos], rtol=1e-4)
    return total.mean()


@pytest.mark.parametrize(
    ("algo", "steps", "further"),
    [
        ("ppo", 20_000, {"num_envs": 32, "batch_size": 128, "learning_rate": 2e-3, "target_kl": None}),
        pytest.param(
            "sac",
            8_192,
            {"num_envs": 32, "learning_rate": 3e-3, "algorithm": {"learning_starts": 256, "gradient_steps": 8}},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_learning_in_a_perfect_dream_beats_random_by_far(algo, steps, further):
    world = PointWorld()
    config = AgentConfig(algo=algo, steps=steps, horizon=HORIZON, net_arch=(32,), gamma=0.9, **further)
    with ImaginationTrainer(world, config) as trainer:
        reports = []
        while trainer.dream_steps < steps:
            reports.append(trainer.train_round())
    rng = np.random.default_rng(0)
    random = mean_dream_return(world, lambda observations: rng.uniform(-1, 1, (64, 2)))
    learned = mean_dream_return(world, lambda observations: trainer.policy.predict(observations, deterministic=True)[0])
    # By hand: the best policy steers as hard as it can (0.7 left, 0.3 right a step) until it can stay at zero.
    best = mean_dream_return(
        world,
        lambda observations: np.stack(
            (np.clip(-2 * (observations[:, 0] / 500 - 6 + 0.2), -1, 1), np.zeros(64)), axis=1
        ),
    )
    assert learned > random + 0.85 * (best - random)
    assert reports[-1]["ep_rew_mean"] > reports[0]["ep_rew_mean"]
    assert reports[-1]["ep_len_mean"] == HORIZON


def test_reported_returns_are_not_scaled_but_learning_targets_are():
    world = PointWorld()
    config = AgentConfig(num_envs=8, horizon=HORIZON, reward_scale=1e-3, batch_size=32, net_arch=(8,))
    with ImaginationTrainer(world, config) as trainer:
        report = trainer.train_round()
        learned_from = trainer._algorithm.rollout_buffer.rewards
    # 40 (1 - |x|) lies between -160 and 40 a step.
    assert abs(report["ep_rew_mean"]) > 10
    assert np.abs(learned_from).max() <= 160e-3 + 1.0  # the last step of a dream also holds its bootstrapped value


def test_reward_scale_brings_discounted_returns_to_size_one():
    class ConstantWorld(PointWorld):
        def imagine(self, state, action, noise=None):
            imagined = super().imagine(state, action)
            return imagined[0], torch.full_like(imagined[1], REWARD), imagined[2]

    dreams = DreamVecEnv(4, ConstantWorld(), horizon=3, termination="never")
    returns = np.array([40.0, 40 * 1.5, 40 * 1.75])
    assert measure_reward_scale(dreams, 0.5, 0) == pytest.approx(1 / np.sqrt((returns**2).mean()))


def test_equal_seeds_give_equal_policies_and_others_do_not(small_config):
    def train(seed):
        config = small_config.model_copy(update={"seed": seed})
        with ImaginationTrainer(PointWorld(), config) as trainer:
            torch.rand(seed + 3)  # what the program did before does not count
            while trainer.dream_steps < 96:
                trainer.train_round()
            return trainer.policy.state_dict()

    first, second, other = train(0), train(0), train(1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_average_is_that_of_the_rounds(small_config):
    """Early rounds count alike; the restored average is the same one."""
    config = small_config.model_copy(update={"policy_average": 0.6})
    with ImaginationTrainer(PointWorld(), config) as trainer:
        expected = None
        for number in range(1, 5):
            trainer.train_round()
            latest = trainer._learner.action_net.weight.detach().clone()
            share = max(0.4, 1 / number)
            expected = latest if expected is None else (1 - share) * expected + share * latest
        torch.testing.assert_close(trainer.policy.action_net.weight, expected)
        assert not torch.equal(expected, latest)
        snapshot = trainer.snapshot()
    with ImaginationTrainer(PointWorld(), config) as other:
        other.restore(snapshot)
        torch.testing.assert_close(other.policy.action_net.weight, expected)
        torch.testing.assert_close(other._learner.action_net.weight, latest)


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_the_critic_learns_alone_at_first(small_config, algo):
    """Neither the policy nor its optimiser moves; a restored trainer goes on to the same parameters."""
    config = small_config.model_copy(update={"critic_steps": 50, "algo": algo, "learning_rate": 1e-5})
    if algo == "a2c":
        config = AgentConfig(**config.model_dump(exclude={"batch_size", "n_epochs"}))
    with ImaginationTrainer(PointWorld(), config) as trainer:
        states = [trainer.snapshot()["parameters"]["policy"]]
        for _ in range(3):
            report = trainer.train_round()
            states.append(trainer.snapshot()["parameters"]["policy"])
            if trainer.dream_steps == 32:
                assert report["learning_rate"] == 1e-3
                snapshot = trainer.snapshot()
        assert report["learning_rate"] <= 1e-5
    changed = [
        {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
        for before, after in itertools.pairwise(states)
    ]
    critic = {name for name in states[0] if "value_net" in name}
    assert changed[0] == changed[1] == critic
    assert changed[2] > critic
    with ImaginationTrainer(PointWorld(), config) as other:
        other.restore(snapshot)
        other.train_round()
        other.train_round()
        assert all(torch.equal(other.policy.state_dict()[name], tensor) for name, tensor in states[-1].items())


@pytest.mark.parametrize(("name", "value"), [("critic_steps", 10), ("anchor", 10), ("policy_precision", "bf16")])
def test_settings_of_on_policy_algorithms_are_refused_for_others(name, value):
    with pytest.raises(ConfigError, match=f"sac has no setting '{name}'"):
        ImaginationTrainer(PointWorld(), AgentConfig(algo="sac", **{name: value}))


def test_an_anchor_takes_the_distance_of_the_means_from_the_reward_that_is_learned_from(small_config):
    plain = small_config.model_copy(update={"log_std_init": -1.0, "num_envs": 512})
    config = plain.model_copy(update={"anchor": 0.25})
    with ImaginationTrainer(PointWorld(), plain) as other:
        initial = other.policy
    with (
        ImaginationTrainer(PointWorld(), plain, initial=initial) as free,
        ImaginationTrainer(PointWorld(), config, initial=initial) as anchored,
    ):
        envs = [trainer._env for trainer in (free, anchored)]
        for env in envs:
            env.seed(1)
        observations = [env.reset() for env in envs][1]
        rng = np.random.default_rng(0)

        def taken(shift):
            """What a step of actions that are drawn about the learner's means loses in each dream."""
            mean = anchored.policy.predict(observations, deterministic=True)[0]
            actions = (mean + np.exp(-1.0) * rng.standard_normal(mean.shape)).astype(np.float32)
            rewards = [env.step(actions)[1] for env in envs]
            wanted = np.square((actions - mean + shift) / np.exp(-1.0)) - np.square((actions - mean) / np.exp(-1.0))
            loss = (rewards[0] - rewards[1]) / (0.25 * config.reward_scale)
            np.testing.assert_allclose(loss, wanted.mean(axis=-1), atol=1e-4)
            return loss

        assert not taken(0.0).any()  # the anchor itself loses nothing for its noise
        with torch.no_grad():
            anchored.policy.action_net.bias += 0.1
        observations = envs[1]._observations
        assert taken(0.1).mean() == pytest.approx((0.1 / np.exp(-1.0)) ** 2, abs=0.04)
    with pytest.raises(ConfigError, match="give --initial"):
        ImaginationTrainer(PointWorld(), config)


@pytest.mark.parametrize("anchor", [0.0, 300.0])
def test_a_policy_stays_near_a_strong_anchor(anchor):
    config = AgentConfig(
        steps=8_192, num_envs=32, horizon=HORIZON, net_arch=(32,), gamma=0.9, learning_rate=2e-3, reward_scale=0.02,
        target_kl=None, batch_size=128, anchor=anchor,
    )  # fmt: skip
    with ImaginationTrainer(PointWorld(), config.model_copy(update={"anchor": 0.0})) as other:
        initial = other.policy
    with ImaginationTrainer(PointWorld(), config, initial=initial) as trainer:
        while trainer.dream_steps < config.steps:
            trainer.train_round()
        states = trainer._algorithm.rollout_buffer.observations
    moved = np.abs(
        trainer.policy.predict(states, deterministic=True)[0] - initial.predict(states, deterministic=True)[0]
    )
    assert moved.mean() < 0.05 if anchor else moved.mean() > 0.2, moved.mean()


def test_a_reward_limit_bounds_what_is_learned_from_not_what_is_reported():
    config = AgentConfig(num_envs=8, horizon=HORIZON, reward_scale=0.5, reward_limit=3.0, batch_size=32, net_arch=(8,))
    unlimited = config.model_copy(update={"reward_limit": None})
    rewards, returns = [], []
    for settings in (config, unlimited):
        with ImaginationTrainer(PointWorld(), settings) as trainer:
            returns.append(trainer.train_round()["ep_rew_mean"])
            rewards.append(
                trainer._algorithm.rollout_buffer.rewards[:-1].copy()
            )  # the last ones hold bootstrapped values
    assert rewards[0].max() == 1.5 < rewards[1].max()
    np.testing.assert_allclose(rewards[0], np.minimum(rewards[1], 1.5))
    assert returns[0] == returns[1]


def test_a_snapshot_does_not_change_with_further_learning(small_config):
    with ImaginationTrainer(PointWorld(), small_config) as trainer:
        trainer.train_round()
        snapshot = trainer.snapshot()
        kept = {name: value.clone() for name, value in snapshot["parameters"]["policy"].items()}
        trainer.train_round()
    assert all(torch.equal(kept[name], snapshot["parameters"]["policy"][name]) for name in kept)
    assert snapshot["dream_steps"] == 32


def test_an_off_policy_snapshot_restores_entropy_and_replay():
    config = AgentConfig(
        algo="sac", num_envs=64, horizon=8, net_arch=(8,), batch_size=16, algorithm={"gradient_steps": 1}
    )
    with ImaginationTrainer(PointWorld(), config) as trainer:
        trainer.train_round()
        state = {**trainer.snapshot(), "replay": trainer.replay()}
        with ImaginationTrainer(PointWorld(), config) as other:
            other.restore(state)
            first, second = trainer._algorithm, other._algorithm
            assert torch.equal(first.log_ent_coef, second.log_ent_coef)
            assert not torch.equal(first.log_ent_coef, torch.zeros(1))
            assert second.replay_buffer.pos == first.replay_buffer.pos == 64
            assert np.array_equal(first.replay_buffer.rewards[:64], second.replay_buffer.rewards[:64])
            assert other.dream_steps == 4096
            other.train_round()
            assert other.dream_steps == 8192


def test_divergence_is_named(small_config):
    with ImaginationTrainer(PointWorld(), small_config) as trainer:
        trainer.train_round()
        with torch.no_grad():
            trainer.policy.action_net.weight[0, 0] = float("nan")
        with pytest.raises(TrainingError, match=r"no longer finite after 32 dream steps; the last good checkpoint"):
            trainer.train_round()


def test_a_driver_of_any_dream_model_acts_in_its_bounds(small_config):
    with ImaginationTrainer(PointWorld(), small_config) as trainer:
        driver = Driver(PointWorld(), trainer.policy, "steer_accel")
        action = driver.act(np.full((8, 8, 3), 255, np.uint8))
    assert action.shape == (4,)
    assert action[3] == 1
    assert action[1] * action[2] == 0


def test_an_accelerated_model_dreams_for_the_agent_where_it_is_asked_for(small_config):
    fast = small_config.model_copy(update={"model_precision": "bf16"})
    model = WorldModel.from_pretrained("bundled")
    with ImaginationTrainer(model, fast) as trainer, ImaginationTrainer(model, small_config) as plain:
        ours, theirs = trainer.train_round(), plain.train_round()
    assert ours["ep_rew_mean"] == pytest.approx(theirs["ep_rew_mean"], rel=0.3, abs=3)
    assert ours["ep_rew_mean"] != theirs["ep_rew_mean"]
    with pytest.raises(ConfigError, match="for a WorldModel, but a PointWorld was given"):
        ImaginationTrainer(PointWorld(), small_config.model_copy(update={"compile_model": True}))


def test_a_policy_that_learns_in_bfloat16_acts_in_float32_and_learns_the_same(small_config):
    policies = []
    for precision in ("fp32", "bf16"):
        with ImaginationTrainer(
            PointWorld(), small_config.model_copy(update={"policy_precision": precision})
        ) as trainer:
            before = copy.deepcopy(trainer.policy.state_dict())
            trainer.train_round()
            policies.append((trainer.policy, before))
    (plain, before), (halved, same) = policies
    assert before.keys() == same.keys()
    assert all(torch.equal(before[name], same[name]) for name in before)
    learnt, other = plain.state_dict(), halved.state_dict()
    assert any(not torch.equal(learnt[name], other[name]) for name in learnt)
    moved = [torch.cat([(after[name] - before[name]).flatten() for name in before]) for after in (learnt, other)]
    assert torch.cosine_similarity(*moved, dim=0) > 0.9
    features = torch.randn(5, *plain.observation_space.shape)
    plain.load_state_dict(other)
    for policy in (plain, halved):
        policy.set_training_mode(False)
    acting, expected = (torch.cat(policy.mlp_extractor(features)) for policy in (halved, plain))
    halved.set_training_mode(True)
    learning = torch.cat(halved.mlp_extractor(features))
    assert torch.equal(acting, expected)
    assert not torch.equal(learning, acting)
    torch.testing.assert_close(learning, acting, rtol=0, atol=0.02)
