import warnings

import numpy as np
import pytest
import torch

from wm_gym.agents.behaviours import make_behaviour
from wm_gym.agents.bundles.driver import Driver, check_simulator_fits
from wm_gym.agents.bundles.folder import load_agent
from wm_gym.agents.policies.network import rebuild_policy
from wm_gym.agents.policies.observers import PixelObserver
from wm_gym.agents.policies.pixel_config import PixelAgentConfig
from wm_gym.envs.dream import DreamDrivingEnv
from wm_gym.envs.latent_observation import LatentObservation
from wm_gym.envs.simulators import make_simulator
from wm_gym.errors import BundleError, ConfigError, SimulatorError
from wm_gym.frames import resize_frame


@pytest.fixture
def driver(agent_folder) -> Driver:
    return Driver.load(agent_folder)


@pytest.fixture
def frames(rng):
    return rng.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


def test_a_driver_sees_and_does_what_the_policy_does_behind_latent_observation(agent_folder, driver):
    agent = load_agent(agent_folder)
    raw = make_simulator("car-racing", max_frames=40)
    latent = LatentObservation(make_simulator("car-racing", max_frames=40, action="steer_accel"), agent.model)
    frame, _ = raw.reset(seed=3)
    observation, _ = latent.reset(seed=3)
    truncated = False
    while not truncated:
        chosen, _ = agent.policy.predict(observation, deterministic=True)
        observation, expected, _, truncated, _ = latent.step(chosen)
        action = driver.act(frame)
        assert np.array_equal(action, agent.model.simulator.action.to_stored(chosen, "steer_accel"))
        frame, reward, *_ = raw.step(action)
        assert reward == expected


def test_reset_forgets_the_drive(driver, frames):
    driver.reset()
    first = [driver.act(frame) for frame in frames]
    assert not np.array_equal(driver.act(frames[0]), first[0])
    driver.reset()
    again = [driver.act(frame) for frame in frames]
    assert np.array_equal(first, again)
    assert first[0].dtype == np.float32
    assert first[0].shape == (4,)


def test_the_returned_action_may_be_changed_by_the_caller(driver, frames):
    driver.reset()
    expected = [driver.act(frame) for frame in frames]
    driver.reset()
    for frame, action in zip(frames, expected, strict=True):
        given = driver.act(frame)
        assert np.array_equal(given, action)
        given[:] = 0


def test_what_was_carried_out_instead_counts(driver, frames):
    """The next state follows from the action that the car really took."""
    driver.act(frames[0])
    plain = driver.act(frames[1])
    driver.reset()
    driver.act(frames[0])
    driver.carried_out(np.array((1.0, 0.0, 1.0, 1.0), np.float32))
    assert not np.array_equal(driver.act(frames[1]), plain)


def test_a_driver_acts_on_the_features_of_an_imagined_state(driver):
    env = DreamDrivingEnv(driver.model, termination="never")
    features, _ = env.reset(seed=0)
    with torch.no_grad():
        np.testing.assert_array_equal(driver.model.features(env.state)[0].numpy(), features)
    action = driver.act_on_features(features)
    chosen, _ = driver.policy.predict(features, deterministic=True)
    np.testing.assert_array_equal(action, driver.simulator.action.to_stored(chosen, driver.action))


def test_a_pixel_driver_takes_no_features(pixel_driver):
    with pytest.raises(BundleError, match="sees pixels"):
        pixel_driver.act_on_features(np.zeros(8, np.float32))


def test_sampled_agents_draw_their_actions(agent_folder, driver, frames):
    sampled = make_behaviour(f"sampled({agent_folder})", driver.simulator)
    noisy = make_behaviour(f"noisy({agent_folder})", driver.simulator)
    sampled.reset(None, 0)
    first = sampled.act(frames[0])
    driver.reset(None, 0)
    np.testing.assert_array_equal(sampled.intended_action, driver.act(frames[0]))
    assert not np.array_equal(sampled.intended_action, first)
    sampled.reset(None, 1)
    assert not np.array_equal(sampled.act(frames[0]), first)
    assert noisy.name.startswith("noisy(")
    with pytest.raises(ConfigError, match="neither an agent's folder"):
        make_behaviour("sampled(nobody)", driver.simulator)


def test_draws_repeat_with_the_seed_and_leave_the_global_generator_alone(driver, frames):
    def drive(seed):
        driver.reset(seed=seed)
        return np.stack([driver.act(frame, deterministic=False) for frame in frames])

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = drive(0)
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(first, drive(0))
    assert not np.array_equal(first, drive(1))
    assert len({float(action[0]) for action in first}) == len(first)


def test_frames_of_another_size_are_resized(driver, rng):
    large = rng.integers(0, 256, (128, 160, 3), dtype=np.uint8)
    driver.reset()
    action = driver.act(large)
    driver.reset()
    assert np.array_equal(action, driver.act(resize_frame(large, 64, 64)))


@pytest.mark.parametrize(
    "frame",
    [np.zeros((64, 64, 3), np.float32), np.zeros((64, 64), np.uint8), np.zeros((64, 64, 4), np.uint8)],
)
def test_what_is_no_frame_is_refused(driver, frame):
    with pytest.raises(SimulatorError, match=r"a frame must be uint8 of shape \(H, W, 3\), RGB, but "):
        driver.act(frame)


def test_simulators_that_do_not_fit_are_refused(driver):
    spec = driver.simulator
    driver.check_simulator(spec)
    with pytest.raises(SimulatorError, match=r"are 96x96, but .* trained with 64x64; .*frame_size=\(64, 64\)"):
        driver.check_simulator(spec.model_copy(update={"frame_size": (96, 96)}))
    native = make_simulator("CarRacing-v3", frame_size=64)
    with pytest.raises(SimulatorError, match=r"takes 3 native values .* with 4 driving ones"):
        driver.check_simulator(native.simulator)


def test_another_rhythm_is_warned_of(driving_spec):
    with pytest.warns(UserWarning, match=r"an action lasts 0\.02 s in .*, but 0\.08 s"):
        check_simulator_fits(driving_spec, driving_spec.model_copy(update={"step_s": 0.02}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_simulator_fits(driving_spec, driving_spec.model_copy(update={"step_s": 0.0}))


def test_unusable_devices_and_agents_are_named(agent_folder, tmp_path):
    with pytest.raises(ConfigError, match="device='gpu' is not usable here"):
        Driver.load(agent_folder, device="gpu")
    with pytest.raises(BundleError, match="there is no agent at"):
        Driver.load(tmp_path / "nothing")


@pytest.fixture
def pixel_driver(driving_spec):
    config = PixelAgentConfig(features_dim=16, net_arch=(8,), frame_stack=2, action="steer_accel")
    observer = PixelObserver(driving_spec, 2)
    policy = rebuild_policy(config, observer.space, driving_spec.action.space("steer_accel"))
    policy.set_training_mode(False)
    return Driver(observer, policy, "steer_accel")


def test_a_pixel_driver_acts_by_its_last_frames(pixel_driver, frames):
    pixel_driver.reset()
    actions = [pixel_driver.act(frame) for frame in frames]
    assert (actions[0].shape, actions[0].dtype) == ((4,), np.float32)
    pixel_driver.reset()
    again = [pixel_driver.act(frame) for frame in frames[-2:]]
    # The second action of the second drive follows from the same two frames as the last of the first drive.
    assert np.array_equal(again[1], actions[-1])
    assert not np.array_equal(again[0], actions[-2])


def test_stacked_frames_begin_with_the_first_one_repeated(driving_spec, frames):
    observer = PixelObserver(driving_spec, 3)
    action = np.zeros(4, np.float32)
    first = observer.observation(frames[0], None)
    assert np.array_equal(first, np.concatenate([frames[0].transpose(2, 0, 1)] * 3))
    second = observer.observation(frames[1], action)
    assert np.array_equal(second, np.concatenate([frames[index].transpose(2, 0, 1) for index in (0, 0, 1)]))
    second[:] = 0  # belongs to the caller
    third = observer.observation(frames[2], action)
    assert np.array_equal(third, np.concatenate([frames[index].transpose(2, 0, 1) for index in (0, 1, 2)]))
    assert observer.space.contains(third)
    assert np.array_equal(observer.observation(frames[0], None), first)


def test_a_pixel_driver_resizes_frames_and_checks_simulators(pixel_driver, driving_spec, rng):
    large = rng.integers(0, 256, (128, 160, 3), dtype=np.uint8)
    pixel_driver.reset()
    action = pixel_driver.act(large)
    pixel_driver.reset()
    assert np.array_equal(action, pixel_driver.act(resize_frame(large, 64, 64)))
    pixel_driver.check_simulator(driving_spec)
    with pytest.raises(SimulatorError, match="are 96x96, but the agent was trained with 64x64"):
        pixel_driver.check_simulator(driving_spec.model_copy(update={"frame_size": (96, 96)}))
