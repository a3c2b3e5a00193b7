import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan
from toy_dream import FRAME_SIZE, LineModel

from wm_gym.envs import DreamDrivingEnv, DreamVecEnv
from wm_gym.errors import ConfigError
from wm_gym.uncertainty import Uncertainty, VarianceNetwork

THROTTLE = np.array([[0.0, 1.0]], np.float32)


class DriftModel(LineModel):
    """Moves by 1 and earns 1 a step, whatever the action."""

    def velocity(self, action):
        return torch.ones(len(action))

    def imagine(self, state, action, noise=None):
        return super().imagine(state, action * 0, noise)


def noisy_model():
    return LineModel(starts=(0.0, 1.0, 2.0, 3.0), continuation=0.8, jitter=1.0, noise_dim=5)


@pytest.mark.parametrize("observation", ["latent", "image"])
def test_n_dreams_are_n_monitored_dreams_under_sb3s_own_vectorisation(observation):
    arguments = {"horizon": 6, "observation": observation, "action": "steer_accel"}
    batch = DreamVecEnv(7, noisy_model(), **arguments)
    singles = DummyVecEnv([lambda: Monitor(DreamDrivingEnv(noisy_model(), **arguments))] * 7)
    assert batch.observation_space == singles.observation_space and batch.action_space == singles.action_space
    tolerance = {"rtol": 1e-5, "atol": 1e-5 if observation == "latent" else 1}
    for seed in (11, None):
        if seed is not None:
            assert batch.seed(seed) == singles.seed(seed)
        np.testing.assert_array_equal(batch.reset(), singles.reset())
        assert batch.reset_infos == singles.reset_infos
        for _ in range(25):
            actions = np.stack([batch.action_space.sample() for _ in range(7)])
            observations, rewards, dones, infos = batch.step(actions)
            expected, expected_rewards, expected_dones, expected_infos = singles.step(actions)
            np.testing.assert_allclose(observations, expected, **tolerance)
            np.testing.assert_allclose(rewards, expected_rewards, rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(dones, expected_dones)
            assert rewards.dtype == np.float32 and observations.dtype == batch.observation_space.dtype
            assert batch.reset_infos == singles.reset_infos
            for done, info, expected_info in zip(dones, infos, expected_infos, strict=True):
                if not done:
                    assert info == {}
                    continue
                assert info["TimeLimit.truncated"] == expected_info["TimeLimit.truncated"]
                np.testing.assert_allclose(
                    info["terminal_observation"], expected_info["terminal_observation"], **tolerance
                )
                assert info["episode"]["l"] == expected_info["episode"]["l"]
                assert info["episode"]["r"] == pytest.approx(expected_info["episode"]["r"], abs=1e-4)


def doubting_model():
    model = noisy_model()
    torch.manual_seed(0)
    model.uncertainty = Uncertainty(VarianceNetwork(model.feature_dim, model.simulator.action.dim, 4, hidden_dim=8))
    return model


def test_every_info_has_the_uncertainty_of_its_dream():
    arguments = {"horizon": 6, "action": "steer_accel", "uncertainty_limit": 1.5}
    batch = DreamVecEnv(7, doubting_model(), **arguments)
    singles = DummyVecEnv([lambda: Monitor(DreamDrivingEnv(doubting_model(), **arguments))] * 7)
    for envs in (batch, singles):
        envs.seed(11)
        envs.reset()
    assert batch.reset_infos == singles.reset_infos
    early = 0
    for _ in range(25):
        actions = np.stack([batch.action_space.sample() for _ in range(7)])
        (*_, dones, infos), (*_, expected_dones, expected) = batch.step(actions), singles.step(actions)
        np.testing.assert_array_equal(dones, expected_dones)
        told, single = ([info["uncertainty"] for info in each] for each in (infos, expected))
        np.testing.assert_allclose(told, single, rtol=1e-5)
        for done, info in zip(dones, infos, strict=True):
            if done and info["episode"]["l"] < 6 and info["uncertainty"] > 1.5:
                early += info["TimeLimit.truncated"]
    assert early > 0


def collect_with_value_of_five(model, gamma):
    """One PPO rollout of 4 steps through two-step dreams, by a critic that says 5 everywhere."""
    env = DreamVecEnv(2, model, horizon=2, action="steer_accel")
    ppo = PPO("MlpPolicy", env, n_steps=4, batch_size=8, gamma=gamma, gae_lambda=1.0, seed=0, device="cpu")
    with torch.no_grad():
        ppo.policy.value_net.weight.zero_()
        ppo.policy.value_net.bias.fill_(5.0)
    _, callback = ppo._setup_learn(8, None)
    assert ppo.collect_rollouts(env, callback, ppo.rollout_buffer, 4)
    return ppo.rollout_buffer


def test_ppo_bootstraps_at_the_horizon():
    buffer = collect_with_value_of_five(DriftModel(), gamma=0.9)
    # last step: 1 + 0.9 * 5 = 5.5; the one before: 1 + 0.9 * 5.5 = 5.95
    np.testing.assert_allclose(buffer.rewards, [[1.0, 1.0], [5.5, 5.5]] * 2, rtol=1e-6)
    np.testing.assert_allclose(buffer.returns, [[5.95, 5.95], [5.5, 5.5]] * 2, rtol=1e-6)
    np.testing.assert_allclose(buffer.advantages, [[0.95, 0.95], [0.5, 0.5]] * 2, atol=1e-5)


def test_ppo_does_not_bootstrap_where_the_model_ends_the_task():
    buffer = collect_with_value_of_five(DriftModel(limit=2.0), gamma=0.9)
    # the dream ends for good after two steps: 1 and 1 + 0.9 * 1 = 1.9
    np.testing.assert_allclose(buffer.rewards, np.ones((4, 2)), rtol=1e-6)
    np.testing.assert_allclose(buffer.returns, [[1.9, 1.9], [1.0, 1.0]] * 2, rtol=1e-6)


def test_terminal_observation_is_the_end_of_the_old_dream_and_stays_so():
    env = DreamVecEnv(1, LineModel(starts=(3.0,)), horizon=2, action="steer_accel")
    env.reset()
    env.step(THROTTLE)
    observation, _, dones, infos = env.step(THROTTLE)
    assert dones.tolist() == [True] and observation.tolist() == [[3.0, 0.0]]
    env.step(THROTTLE)
    assert infos[0]["terminal_observation"].tolist() == [5.0, 1.0]
    assert infos[0]["TimeLimit.truncated"] is True
    assert infos[0]["episode"] == {"r": 2.0, "l": 2}


def test_ppo_in_the_perfect_dream_learns_to_drive_on():
    """Full throttle earns 20 in 20 steps; an untrained policy about 0."""
    env = DreamVecEnv(16, LineModel(starts=tuple(np.linspace(-2, 2, 9))), horizon=20, action="steer_accel")
    ppo = PPO("MlpPolicy", env, n_steps=32, batch_size=128, learning_rate=3e-3, gamma=0.9, seed=0, device="cpu")
    ppo.learn(10_000)
    mean_return, _ = evaluate_policy(ppo, DreamVecEnv(8, LineModel(), horizon=20, action="steer_accel"), 8)
    assert mean_return > 12


class ReturnsLogged(BaseCallback):
    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.returns = [episode["r"] for episode in self.model.ep_info_buffer]


def test_ppo_sees_the_dream_returns():
    callback = ReturnsLogged()
    PPO("MlpPolicy", DreamVecEnv(2, DriftModel(), horizon=4), n_steps=8, batch_size=16, device="cpu").learn(
        16, callback
    )
    assert callback.returns == [4.0] * 4


def test_image_observations_and_off_policy_algorithms_fit():
    env = DreamVecEnv(2, LineModel(), horizon=3, observation="image", action="steer_accel")
    PPO("MlpPolicy", env, n_steps=4, batch_size=8, n_epochs=1, device="cpu").learn(8)
    latent = DreamVecEnv(2, LineModel(), horizon=3, action="steer_accel")
    SAC("MlpPolicy", latent, learning_starts=4, buffer_size=50, device="cpu").learn(12)


def test_seeded_training_repeats():
    def train():
        env = VecCheckNan(DreamVecEnv(4, noisy_model(), horizon=5, action="steer_accel"), raise_exception=True)
        ppo = PPO("MlpPolicy", env, n_steps=8, batch_size=16, n_epochs=1, seed=3, device="cpu").learn(64)
        return torch.cat([parameter.detach().flatten() for parameter in ppo.policy.parameters()])

    assert torch.equal(train(), train())


def test_options_choose_start_states_once():
    env = DreamVecEnv(3, LineModel(starts=(0.0, 5.0, 9.0)))
    env.set_options([{"start_state": 2}, {"start_state": 1}, {}])
    assert env.reset()[:2, 0].tolist() == [9.0, 5.0]
    assert [info["start_state"] for info in env.reset_infos[:2]] == [2, 1]
    starts = {env.reset_infos[0]["start_state"] for _ in range(50) if env.reset() is not None}
    assert starts == {0, 1, 2}
    env.set_options({"start_state": 3})
    with pytest.raises(ConfigError, match="0 to 2"):
        env.reset()


def test_attributes_are_shared_by_all_dreams():
    env = DreamVecEnv(3, LineModel(), horizon=4)
    assert env.get_attr("horizon") == [4, 4, 4] and env.get_attr("horizon", indices=[0, 2]) == [4, 4]
    assert env.has_attr("model") and not env.has_attr("speed")
    env.set_attr("horizon", 2)
    env.reset()
    env.step(np.zeros((3, 4)))
    assert env.step(np.zeros((3, 4)))[2].all()
    with pytest.raises(AttributeError, match=r"share 'horizon'.*indices=None"):
        env.set_attr("horizon", 2, indices=1)
    with pytest.raises(ConfigError, match="horizon=0"):
        env.set_attr("horizon", 0)
    with pytest.raises(AttributeError, match="no method 'reset'"):
        env.env_method("reset")


def test_wrappers_it_is_taken_for():
    env = DreamVecEnv(2, LineModel())
    assert env.env_is_wrapped(Monitor) == [True, True]
    assert env.env_is_wrapped(TimeLimit, indices=0) == [False]


def test_rendering():
    env = DreamVecEnv(3, LineModel(starts=(-16.0, 16.0)), render_mode="rgb_array", render_size=FRAME_SIZE)
    env.set_options([{"start_state": 0}, {"start_state": 1}, {"start_state": 1}])
    env.reset()
    height, width = FRAME_SIZE
    grid = env.render()
    assert grid.shape == (2 * height, 2 * width, 3)
    reds = grid[height // 2 :: height, width // 2 :: width, 0]
    assert reds.tolist() == [[0, 255], [255, 0]]
    assert [image.shape for image in env.get_images()] == [(*FRAME_SIZE, 3)] * 3
    assert len(env.env_method("render", indices=[1])) == 1


def test_human_mode_and_close():
    pygame = pytest.importorskip("pygame")
    env = DreamVecEnv(2, LineModel(), render_mode="human", render_size=FRAME_SIZE)
    env.reset()
    env.render()
    assert pygame.display.get_surface().get_size() == (2 * FRAME_SIZE[1], FRAME_SIZE[0])
    env.close()
    assert pygame.display.get_surface() is None


def test_step_wait_needs_actions():
    env = DreamVecEnv(2, LineModel())
    env.reset()
    with pytest.raises(RuntimeError, match="step_async"):
        env.step_wait()
    with pytest.raises(ConfigError, match=r"shape \(2, 4\)"):
        env.step_async(np.zeros((2, 2)))
