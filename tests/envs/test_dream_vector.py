import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from toy_dream import FRAME_SIZE, LineModel

import wm_gym  # noqa: F401  (registers the ids)
from wm_gym.envs import DreamDrivingEnv, DreamVectorEnv
from wm_gym.errors import ConfigError
from wm_gym.uncertainty import Uncertainty, VarianceNetwork

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]


def noisy_model():
    return LineModel(starts=(0.0, 1.0, 2.0, 3.0), continuation=0.8, jitter=1.0, noise_dim=5)


def assert_same_infos(actual, expected):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_same_infos(actual[key], value)
        elif value.dtype == object:
            for a, b in zip(actual[key], value, strict=True):
                assert (a is None) == (b is None)
                if b is not None:
                    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
        else:
            assert actual[key].dtype == value.dtype
            np.testing.assert_allclose(actual[key], value, rtol=1e-6)


@pytest.mark.parametrize("observation", ["latent", "image"])
@pytest.mark.parametrize("mode", MODES)
def test_n_dreams_are_n_single_dreams(mode, observation):
    """The batch answers step by step as Gymnasium's own vectorisation of single dreams does."""
    arguments = {"horizon": 6, "observation": observation, "action": "steer_accel"}
    batch = DreamVectorEnv(7, noisy_model(), autoreset_mode=mode, **arguments)
    singles = SyncVectorEnv([lambda: DreamDrivingEnv(noisy_model(), **arguments)] * 7, autoreset_mode=mode)
    assert batch.observation_space == singles.observation_space
    assert batch.action_space == singles.action_space
    for seed in (11, None, [3, 1, None, 4, 1, 5, 9]):
        observations, infos = batch.reset(seed=seed)
        expected, expected_infos = singles.reset(seed=seed)
        np.testing.assert_array_equal(observations, expected)
        assert_same_infos(infos, expected_infos)
        for _ in range(25):
            actions = singles.action_space.sample()
            results, expected = batch.step(actions), singles.step(actions)
            assert results[0] in batch.observation_space
            np.testing.assert_allclose(results[0], expected[0], rtol=1e-5, atol=1e-5 if observation == "latent" else 1)
            np.testing.assert_allclose(results[1], expected[1], rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(results[2], expected[2])
            np.testing.assert_array_equal(results[3], expected[3])
            assert results[1].dtype == expected[1].dtype and results[2].dtype == expected[2].dtype
            assert_same_infos(results[4], expected[4])


def doubting_model():
    model = noisy_model()
    torch.manual_seed(0)
    network = VarianceNetwork(model.feature_dim, model.simulator.action.dim, horizon=4, hidden_dim=8)
    network.multipliers.copy_(torch.tensor([1.0, 2.0, 0.5, 3.0]))
    model.uncertainty = Uncertainty(network)
    return model


@pytest.mark.parametrize("limit", [None, 3.0])
@pytest.mark.parametrize("mode", MODES)
def test_n_uncertainties_are_those_of_n_single_dreams(mode, limit):
    arguments = {"horizon": 6, "action": "steer_accel", "uncertainty_limit": limit}
    batch = DreamVectorEnv(5, doubting_model(), autoreset_mode=mode, **arguments)
    singles = SyncVectorEnv([lambda: DreamDrivingEnv(doubting_model(), **arguments)] * 5, autoreset_mode=mode)
    _, infos = batch.reset(seed=11)
    assert_same_infos(infos, singles.reset(seed=11)[1])
    assert infos["uncertainty"].tolist() == [0.0] * 5
    early = 0
    for _ in range(25):
        actions = singles.action_space.sample()
        results, expected = batch.step(actions), singles.step(actions)
        np.testing.assert_array_equal(results[2], expected[2])
        np.testing.assert_array_equal(results[3], expected[3])
        assert_same_infos(results[4], expected[4])
        if limit is not None and mode is AutoresetMode.NEXT_STEP:
            np.testing.assert_array_equal(
                results[3][~results[2]] & (batch._rollouts.elapsed < 6)[~results[2]],
                (results[4]["uncertainty"] > limit)[~results[2]],
            )
            early += int(((batch._rollouts.elapsed < 6) & results[3]).sum())
    assert (early > 0) == (limit is not None and mode is AutoresetMode.NEXT_STEP)


def test_uncertainty_is_the_root_of_what_the_steps_add():
    model = doubting_model()
    env = DreamDrivingEnv(model, horizon=6, termination="never")
    env.reset(seed=3)
    total = 0.0
    for multiplier in (1.0, 2.0, 0.5, 3.0, 3.0):  # beyond its horizon the last one goes on
        action = env.action_space.sample()
        stored = torch.from_numpy(model.simulator.action.to_stored(action, "driving"))[None]
        total += model.uncertainty.step_variance(model.features(env.state), stored).item()
        assert env.step(action)[4]["uncertainty"] == pytest.approx(multiplier * total**0.5, rel=1e-5)
    assert env.reset()[1]["uncertainty"] == 0.0


def test_a_model_that_tells_no_uncertainty_gives_none_and_takes_no_limit():
    env = DreamVectorEnv(2, noisy_model())
    assert env.reset(seed=0)[1].keys() == {"start_state", "_start_state", "continuation", "_continuation"}
    assert "uncertainty" not in env.step(env.action_space.sample())[4]
    for make in (DreamDrivingEnv, lambda model, **further: DreamVectorEnv(2, model, **further)):
        with pytest.raises(ConfigError, match="needs a world model that tells its uncertainty; add one with"):
            make(noisy_model(), uncertainty_limit=3.0)
        with pytest.raises(ConfigError, match="must be a number above 0"):
            make(doubting_model(), uncertainty_limit=0)


def test_rewards_and_ends_do_not_depend_on_the_uncertainty():
    runs = []
    for model in (noisy_model(), doubting_model()):
        env = DreamVectorEnv(4, model, horizon=5)
        env.action_space.seed(0)
        env.reset(seed=1)
        runs.append([env.step(env.action_space.sample())[:4] for _ in range(12)])
    for plain, doubting in zip(*runs, strict=True):
        for part, other in zip(plain, doubting, strict=True):
            np.testing.assert_array_equal(part, other)


def test_one_model_call_a_step_whatever_the_number_of_dreams():
    model = LineModel()
    env = DreamVectorEnv(256, model, horizon=10)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert model.num_imagined == [256]


def test_dreams_that_only_begin_anew_cost_no_model_call():
    model = LineModel()
    env = DreamVectorEnv(3, model, horizon=1)
    env.reset(seed=0)
    assert env.step(env.action_space.sample())[3].all()
    _, rewards, terminated, truncated, infos = env.step(env.action_space.sample())
    assert model.num_imagined == [3]
    assert not rewards.any() and not terminated.any() and not truncated.any()
    assert infos["_start_state"].all() and infos["continuation"].tolist() == [1.0, 1.0, 1.0]


def test_gym_make_vec_gives_the_batch_and_declares_its_autoreset_mode():
    model = LineModel()
    env = gym.make_vec("DreamDriving-v0", num_envs=3, model=model, horizon=5)
    assert isinstance(env, DreamVectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert env.model is model and env.horizon == 5
    same = gym.make_vec("DreamDriving-v0", num_envs=3, model=model, autoreset_mode="SameStep")
    assert same.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert same.metadata["driving"]


@pytest.mark.parametrize("mode", MODES)
def test_gymnasiums_episode_statistics_fit(mode):
    env = RecordEpisodeStatistics(DreamVectorEnv(2, LineModel(limit=3.0), horizon=10, autoreset_mode=mode))
    env.reset(seed=0)
    for _ in range(9):
        env.step(np.array([[0.0, 1.0, 0.0, 1.0], [0.0, 0.5, 0.0, 1.0]], np.float32))
    assert env.return_queue[0] == 3.0 and env.length_queue[0] == 3
    assert 6 in env.length_queue


def test_final_observation_survives_the_steps_that_follow():
    env = DreamVectorEnv(2, LineModel(), horizon=1, autoreset_mode=AutoresetMode.SAME_STEP)
    env.reset(seed=0)
    throttle = np.array([[0, 1, 0, 1], [0, 0.5, 0, 1]], np.float32)
    observations, _, _, _, infos = env.step(throttle)
    final = infos["final_obs"]
    env.step(throttle * 0)
    assert final[0].tolist() == [1.0, 1.0] and final[1].tolist() == [0.5, 0.5]
    assert observations.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_start_states_may_be_chosen_for_each_dream():
    env = DreamVectorEnv(3, LineModel(starts=(0.0, 5.0, 9.0)))
    observations, infos = env.reset(options={"start_state": np.array([2, 0, 1])})
    assert observations[:, 0].tolist() == [9.0, 0.0, 5.0]
    assert infos["start_state"].tolist() == [2, 0, 1]
    assert env.reset(options={"start_state": 1})[0][:, 0].tolist() == [5.0] * 3


def test_disabled_mode_is_reset_by_mask():
    env = DreamVectorEnv(3, LineModel(limit=2.0), autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0)
    actions = np.array([[0, 1, 0, 1], [0, 0.5, 0, 1], [0, 1, 0, 1]], np.float32)
    env.step(actions)
    assert env.step(actions)[2].tolist() == [True, False, True]
    with pytest.raises(ResetNeeded):
        env.step(actions)
    observations, infos = env.reset(options={"reset_mask": np.array([True, False, True])})
    assert observations.tolist() == [[0.0, 0.0], [1.0, 0.5], [0.0, 0.0]]
    assert infos["_start_state"].tolist() == [True, False, True]
    assert env.step(actions)[0][:, 0].tolist() == [1.0, 1.5, 1.0]


def test_a_masked_reset_leaves_the_streams_of_the_others():
    envs = [DreamVectorEnv(2, noisy_model(), termination="never", horizon=100) for _ in range(2)]
    for env in envs:
        env.reset(seed=3)
    envs[1].reset(seed=50, options={"reset_mask": np.array([True, False])})
    actions = np.zeros((2, 4), np.float32)
    first, second = (env.step(actions)[0] for env in envs)
    np.testing.assert_array_equal(first[1], second[1])
    assert not np.array_equal(first[0], second[0])


def test_render_gives_a_picture_for_each_dream():
    env = DreamVectorEnv(70, LineModel(starts=(-16.0, 16.0)), render_mode="rgb_array", render_size=16)
    env.reset(options={"start_state": np.arange(70) % 2})
    images = env.render()
    assert len(images) == 70 and images[0].shape == (16, 24, 3)
    assert [int(image[0, 0, 0]) for image in images[-2:]] == [0, 255]


def test_human_mode_shows_the_dreams_in_a_grid():
    pygame = pytest.importorskip("pygame")
    env = DreamVectorEnv(3, LineModel(), render_mode="human", render_size=FRAME_SIZE)
    env.reset(seed=0)
    assert pygame.display.get_surface().get_size() == (2 * FRAME_SIZE[1], 2 * FRAME_SIZE[0])
    env.close()
    assert pygame.display.get_surface() is None


def test_step_needs_a_reset_first():
    env = DreamVectorEnv(2, LineModel())
    with pytest.raises(ResetNeeded):
        env.step(np.zeros((2, 4), np.float32))
    env.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(ResetNeeded):
        env.step(np.zeros((2, 4), np.float32))


def test_gradients_are_not_recorded():
    env = DreamVectorEnv(2, LineModel(starts=(0.0,)), horizon=3)
    env.model.start_states.latent.requires_grad_()
    env.reset(seed=0)
    assert isinstance(env.step(np.zeros((2, 4), np.float32))[0], np.ndarray)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda env: env.reset(seed=[1]), r"each of 2 dreams, but 1 were given"),
        (lambda env: env.reset(options={"start_state": [0, 1, 0]}), r"a whole number or 2 of them"),
        (lambda env: env.reset(options={"start_state": [0, 9]}), r"0 to 0"),
        (lambda env: env.reset(options={"reset_mask": [True, False]}), r"bool array of shape \(2,\)"),
        (lambda env: env.reset(options={"reset_mask": np.zeros(2, np.bool_)}), r"chooses no dream"),
        (lambda env: env.step(np.zeros((3, 4))), r"shape \(2, 4\) are needed, but \(3, 4\)"),
        (lambda env: env.step(np.full((2, 4), np.inf)), r"finite"),
        (lambda env: DreamVectorEnv(0, LineModel()), r"num_envs=0"),
        (lambda env: DreamVectorEnv(2, LineModel(), autoreset_mode="Later"), r"autoreset_mode='Later'"),
    ],
)
def test_bad_calls_are_named(call, message):
    env = DreamVectorEnv(2, LineModel())
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=message):
        call(env)
