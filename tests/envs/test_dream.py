import copy
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from toy_dream import FRAME_SIZE, LineModel, seen

import wm_gym  # noqa: F401  (registers the ids)
from wm_gym.envs import DreamDrivingEnv, DreamVectorEnv
from wm_gym.errors import BundleError, ConfigError, WMGymError
from wm_gym.state import LatentState
from wm_gym.world_model import WorldModel

FULL_THROTTLE = [0.0, 1.0, 0.0, 1.0]


def rollout(env, actions, **reset):
    """Observations, rewards and ends of a dream, as one flat list of numbers."""
    observation, info = env.reset(**reset)
    numbers = [*np.ravel(observation), info["start_state"]]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        numbers += [*np.ravel(observation), reward, terminated, truncated, info["continuation"]]
        if terminated or truncated:
            break
    return numbers


def test_dream_return_is_the_one_computed_by_hand():
    env = DreamDrivingEnv(LineModel(starts=(2.0,)), horizon=4)
    observation, info = env.reset(seed=0)
    assert observation.tolist() == [2.0, 0.0] and info == {"start_state": 0, "continuation": 1.0}
    # steering, throttle, brake, gear: velocity = throttle - brake, reward = velocity - |steering| / 2
    steps = [env.step(action) for action in ([0, 1, 0, 1], [0.5, 0.5, 0, 1], [-1, 0, 0.25, 1], [0, 0, 0, 0])]
    observations, rewards, terminated, truncated, infos = zip(*steps, strict=True)
    np.testing.assert_allclose(observations, [[3, 1], [3.5, 0.5], [3.25, -0.25], [3.25, 0]])
    np.testing.assert_allclose(rewards, [1.0, 0.25, -0.75, 0.0])
    assert terminated == (False,) * 4
    assert truncated == (False, False, False, True)
    assert all(info == {"start_state": 0, "continuation": 1.0} for info in infos)


def test_two_action_kinds_drive_the_same_dream():
    driving, steer_accel = (DreamDrivingEnv(LineModel(), action=action) for action in ("driving", "steer_accel"))
    driving.reset(seed=0), steer_accel.reset(seed=0)
    for pair, four in (([0.5, 0.75], [0.5, 0.75, 0, 1]), ([-0.25, -0.5], [-0.25, 0, 0.5, 1])):
        np.testing.assert_allclose(steer_accel.step(pair)[0], driving.step(four)[0])
    assert driving.metadata["driving"] and steer_accel.action_space.shape == (2,)


def test_native_model_offers_its_own_actions_only():
    env = DreamDrivingEnv(LineModel(native=True))
    env.reset(seed=0)
    assert env.step([-0.5])[1] == -0.5
    assert not env.metadata["driving"]
    with pytest.raises(ConfigError, match=r"'steer_accel' is not offered.*'native'"):
        DreamDrivingEnv(LineModel(native=True), action="steer_accel")


def test_actions_out_of_bounds_are_clipped():
    env = DreamDrivingEnv(LineModel())
    env.reset(seed=0)
    assert env.step([0.0, 7.0, -3.0, 1.0])[1] == 1.0


def test_termination_wins_over_truncation_and_comes_from_the_model():
    env = DreamDrivingEnv(LineModel(limit=2.0), horizon=2)
    env.reset(seed=0)
    assert env.step(FULL_THROTTLE)[2:4] == (False, False)
    assert env.step(FULL_THROTTLE)[2:4] == (True, False)


@pytest.mark.parametrize(("continuation", "terminates"), [(0.49, True), (0.5, False)])
def test_threshold_termination(continuation, terminates):
    env = DreamDrivingEnv(LineModel(continuation=continuation), termination="threshold")
    env.reset(seed=0)
    _, _, terminated, _, info = env.step(FULL_THROTTLE)
    assert terminated is terminates
    assert info["continuation"] == pytest.approx(continuation)


def test_never_leaves_the_horizon_as_the_only_end():
    env = DreamDrivingEnv(LineModel(continuation=0.0), termination="never", horizon=2)
    env.reset(seed=0)
    assert env.step(FULL_THROTTLE)[2:4] == (False, False)
    assert env.step(FULL_THROTTLE)[2:4] == (False, True)


def test_start_states_are_drawn_evenly_and_may_be_chosen():
    env = DreamDrivingEnv(LineModel(starts=(0.0, 5.0, -3.0)))
    env.reset(seed=0)
    starts = [env.reset()[1]["start_state"] for _ in range(300)]
    assert np.abs(np.bincount(starts, minlength=3) - 100).max() < 30
    observation, info = env.reset(options={"start_state": 2})
    assert observation[0] == -3.0 and info["start_state"] == 2


def test_given_start_states_replace_the_models():
    env = DreamDrivingEnv(LineModel(), start_states=LineModel.state(torch.tensor([4.0, 4.0]), torch.ones(2)))
    assert env.reset(seed=1)[0].tolist() == [4.0, 1.0]
    assert env.num_start_states == 2


def test_dreams_do_not_write_into_the_start_states():
    model = LineModel(starts=(0.0, 1.0))
    before = model.start_states.latent.clone()
    env = DreamDrivingEnv(model)
    for _ in range(3):
        rollout(env, [FULL_THROTTLE] * 3)
    assert torch.equal(model.start_states.latent, before)


@pytest.mark.parametrize("observation", ["latent", "image"])
def test_an_observation_is_the_users_to_write_into(observation):
    env = DreamDrivingEnv(LineModel(starts=(3.0,)), observation=observation)
    first, _ = env.reset(seed=0)
    first[:] = 99
    second = env.step([0, 0, 0, 1])[0]
    position = second[0] if observation == "latent" else seen(second)[0]
    assert position == pytest.approx(3.0, abs=0.1)


ACTIONS = np.random.default_rng(0).uniform(-1, 1, (12, 4))


@pytest.mark.parametrize("observation", ["latent", "image"])
def test_same_seed_and_actions_give_the_same_dreams(observation):
    def make():
        model = LineModel(starts=(0.0, 1.0, 2.0), continuation=0.9, jitter=1.0, noise_dim=3)
        return DreamDrivingEnv(model, horizon=8, observation=observation)

    first, second = make(), make()
    seeded = [rollout(env, ACTIONS, seed=5) for env in (first, second)]
    assert seeded[0] == seeded[1]
    # the dreams that follow without a seed go on with the stream, and differ from each other
    following = [[rollout(env, ACTIONS) for _ in range(3)] for env in (first, second)]
    assert following[0] == following[1]
    assert seeded[0] not in following[0] and following[0][0] != following[0][1]
    assert rollout(first, ACTIONS, seed=5) == seeded[0]
    assert rollout(first, ACTIONS, seed=6) != seeded[0]


def test_a_generator_set_by_the_user_starts_its_stream():
    first, second = (DreamDrivingEnv(LineModel(jitter=1.0, noise_dim=1)) for _ in range(2))
    first.reset(seed=1), second.reset(seed=2)
    for env in (first, second):
        env.np_random = np.random.default_rng(3)
    assert rollout(first, ACTIONS) == rollout(second, ACTIONS)


def test_unseeded_dreams_differ():
    envs = [DreamDrivingEnv(LineModel(jitter=1.0, noise_dim=1)) for _ in range(2)]
    assert rollout(envs[0], ACTIONS) != rollout(envs[1], ACTIONS)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_dreams_on_the_same(duplicate):
    env = DreamDrivingEnv(LineModel(jitter=1.0, noise_dim=1), render_mode="human")
    env.reset(seed=0)
    env.step(FULL_THROTTLE)
    other = duplicate(env)
    assert rollout(env, ACTIONS) == rollout(other, ACTIONS)
    env.close()
    other.close()


def test_sampled_termination_has_the_models_probability():
    env = DreamDrivingEnv(LineModel(continuation=0.8), horizon=1000)
    env.reset(seed=0)
    lengths = []
    for _ in range(400):
        env.reset()
        length, terminated = 0, False
        while not terminated:
            _, _, terminated, _, _ = env.step(FULL_THROTTLE)
            length += 1
        lengths.append(length)
    # geometric with p = 0.2: mean 5, standard error 0.22
    assert np.mean(lengths) == pytest.approx(5.0, abs=0.9)


@pytest.mark.parametrize("action", ["driving", "steer_accel"])
@pytest.mark.parametrize("observation", ["latent", "image"])
def test_both_env_checkers_pass(observation, action):
    # SB3's checker wants images of at least 36x36 for its CNNs and symmetric actions: advice, not part of the contract
    made = gym.make(
        "DreamDriving-v0",
        model=LineModel(starts=(0.0, 1.0), jitter=0.1, noise_dim=2),
        observation=observation,
        action=action,
        render_mode="rgb_array",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        check_env(made.unwrapped)
        sb3_check_env(made.unwrapped, skip_render_check=False)


def test_image_observation_is_the_decoded_state():
    env = DreamDrivingEnv(LineModel(), observation="image")
    env.reset(seed=0)
    frame = env.step([0, 0.5, 0, 1])[0]
    assert frame.shape == (*FRAME_SIZE, 3) and frame.dtype == np.uint8
    np.testing.assert_allclose(seen(frame), [0.5, 0.5], atol=0.1)


def test_nothing_is_decoded_before_it_is_looked_at_and_then_once():
    model = LineModel()
    env = DreamDrivingEnv(model, render_mode="rgb_array")
    env.reset(seed=0)
    env.step(FULL_THROTTLE)
    assert model.num_decoded == 0
    first, second = env.render(), env.render()
    assert model.num_decoded == 1
    np.testing.assert_array_equal(first, second)
    assert not np.shares_memory(first, second)
    env.step(FULL_THROTTLE)
    assert not np.array_equal(env.render(), first)


@pytest.mark.parametrize(("render_size", "shape"), [(None, (8, 12, 3)), (32, (32, 48, 3)), ((20, 10), (20, 10, 3))])
def test_render_size(render_size, shape):
    env = DreamDrivingEnv(LineModel(), render_mode="rgb_array", render_size=render_size)
    env.reset(seed=0)
    assert env.render().shape == shape


def test_human_mode_shows_each_step_and_close_frees_the_window():
    pygame = pytest.importorskip("pygame")
    model = LineModel()
    env = DreamDrivingEnv(model, render_mode="human", render_size=(40, 60))
    assert env.metadata["render_fps"] == 200.0  # the toy world has steps of 5 ms
    env.reset(seed=0)
    env.step(FULL_THROTTLE)
    assert model.num_decoded == 2
    assert pygame.display.get_surface().get_size() == (60, 40)
    shown = pygame.surfarray.array3d(pygame.display.get_surface())[0, 0]
    np.testing.assert_allclose(seen(np.broadcast_to(shown, (*FRAME_SIZE, 3)).copy()), [1.0, 1.0], atol=0.1)
    assert env.render() is None
    env.close()
    env.close()
    assert pygame.display.get_surface() is None


def test_model_is_put_in_evaluation_mode():
    model = LineModel().train()
    DreamDrivingEnv(model)
    assert not model.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"horizon": 0}, r"horizon=0 must be a whole number from 1 up"),
        ({"horizon": 2.5}, r"horizon=2.5"),
        ({"observation": "latents"}, r"observation='latents'.*did you mean 'latent'"),
        ({"termination": "always"}, r"termination='always'.*'sample', 'threshold', 'never'"),
        ({"render_mode": "ansi"}, r"render_mode='ansi'"),
        ({"render_size": 0}, r"render_size=0"),
        ({"render_size": "big"}, r"render_size takes .* 'big'"),
        ({"action": "drive"}, r"action='drive'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        DreamDrivingEnv(LineModel(), **arguments)


def test_unusable_models_are_named():
    model = LineModel()
    with pytest.raises(BundleError, match=r"device='cuda'"):
        DreamDrivingEnv(model, device="cuda")
    with pytest.raises(BundleError, match=r"start states have latent \(3,\).*model's states have \(2,\)"):
        DreamDrivingEnv(model, start_states=LatentState(torch.zeros(4, 3), torch.zeros(4, 1, 1)))
    with pytest.raises(BundleError, match=r"at least one row"):
        DreamDrivingEnv(model, start_states=LatentState(torch.zeros(0, 2), torch.zeros(0, 1, 1)))
    model.start_states = None
    with pytest.raises(BundleError, match=r"no start states.*start_states="):
        DreamDrivingEnv(model)
    with pytest.raises(BundleError, match=r"a Linear was given"):
        DreamDrivingEnv(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_state": 3}, r"'start_state' is 3.*0 to 2"),
        ({"start_state": -1}, r"'start_state' is -1"),
        ({"start_state": 0.5}, r"takes a whole number, but 0.5"),
        ({"start_state": [0, 1]}, r"takes a whole number, but \[0, 1\]"),
        ({"start": 0}, r"'start'.*did you mean 'start_state'"),
    ],
)
def test_bad_reset_options_are_named(options, message):
    env = DreamDrivingEnv(LineModel(starts=(0.0, 1.0, 2.0)))
    with pytest.raises(ConfigError, match=message):
        env.reset(options=options)


@pytest.mark.parametrize("action", [[0.0, 1.0], [[0.0, 1.0, 0.0, 1.0]], 0.5])
def test_an_action_of_the_wrong_shape_is_refused(action):
    env = DreamDrivingEnv(LineModel())
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"shape \(4,\) are needed"):
        env.step(action)


def test_an_action_that_is_not_finite_is_refused_and_changes_nothing():
    env = DreamDrivingEnv(LineModel())
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="finite"):
        env.step([0.0, np.nan, 0.0, 1.0])
    assert env.step(FULL_THROTTLE)[0].tolist() == [1.0, 1.0]


def test_step_needs_a_dream_under_way():
    env = DreamDrivingEnv(LineModel(), horizon=1)
    with pytest.raises(ResetNeeded):
        env.step(FULL_THROTTLE)
    env.reset(seed=0)
    env.step(FULL_THROTTLE)
    with pytest.raises(ResetNeeded):
        env.step(FULL_THROTTLE)


def test_a_model_that_diverges_is_named():
    model = LineModel()
    env = DreamDrivingEnv(model)
    env.reset(seed=0)
    model.continuation = float("nan")
    with pytest.raises(BundleError, match="not finite"):
        env.step(FULL_THROTTLE)


def make_single(**arguments):
    return DreamDrivingEnv(LineModel(), **arguments)


def make_batch(**arguments):
    return DreamVectorEnv(2, LineModel(), **arguments)


@pytest.mark.parametrize("make", [make_single, make_batch])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"horizon": 2.5}, "horizon=2.5 must be a whole number"),
        ({"horizon": "ten"}, "horizon='ten' must be a whole number"),
        ({"device": "gpu"}, "device='gpu' is not usable here"),
        ({"device": []}, r"device='\[\]' is not usable here"),
        ({"render_size": 8.5}, "render_size takes a height"),
        ({"render_size": (8, "x")}, "render_size='x' must be a whole number"),
        ({"termination": None}, "termination=None is not known"),
        ({"start_states": [1, 2]}, "start_states= takes a LatentState"),
    ],
)
def test_single_and_batch_refuse_arguments_alike(make, arguments, message):
    with pytest.raises(WMGymError, match=message):
        make(**arguments)


@pytest.mark.parametrize("make", [make_single, make_batch])
@pytest.mark.parametrize("seed", [-1, 1.5, "7", True, np.float32(3)])
def test_single_and_batch_refuse_seeds_alike(make, seed):
    with pytest.raises(ConfigError, match=r"seed=.* must be a whole number from 0 up, or None"):
        make().reset(seed=seed)


@pytest.mark.parametrize("make", [make_single, make_batch])
def test_numbers_of_numpy_are_numbers(make):
    env = make(horizon=np.int64(3), render_size=np.int32(16), render_mode="rgb_array")
    first = env.reset(seed=np.int64(5))[0]
    np.testing.assert_array_equal(first, env.reset(seed=5)[0])
    np.testing.assert_array_equal(first, env.reset(seed=np.uint8(5))[0])
    with pytest.raises(ConfigError, match="are a dictionary"):
        env.reset(options=[1])
    with pytest.raises(ConfigError, match="arrays of numbers"):
        env.step("left")


def test_a_limit_of_gymnasium_ends_single_and_batch_alike():
    single = gym.make("DreamDriving-v0", model=LineModel(), max_episode_steps=3, disable_env_checker=True)
    batch = gym.make_vec("DreamDriving-v0", 2, model=LineModel(), max_episode_steps=3, disable_env_checker=True)
    single.reset(seed=0), batch.reset(seed=0)
    for expected in (False, False, True):
        assert single.step(FULL_THROTTLE)[3] is expected
        assert batch.step([FULL_THROTTLE] * 2)[3].tolist() == [expected] * 2


def test_infos_of_reset_and_step_have_one_structure():
    env = make_single()
    _, first = env.reset(seed=0)
    *_, second = env.step(FULL_THROTTLE)
    assert {name: type(value) for name, value in first.items()} == {name: type(value) for name, value in second.items()}
    batch = make_batch()
    _, first = batch.reset(seed=0)
    *_, second = batch.step([FULL_THROTTLE] * 2)
    assert {name: value.dtype for name, value in first.items()} == {name: value.dtype for name, value in second.items()}


def test_the_default_precision_of_a_program_is_its_own(tiny_model):
    torch.set_default_dtype(torch.float64)
    try:
        assert WorldModel(tiny_model.config, tiny_model.simulator).reward_head.bins.dtype == torch.float32
        env = gym.make("DreamDriving-v0")
        assert env.reset(seed=0)[0].dtype == np.float32
        env.step(np.zeros(4))
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
