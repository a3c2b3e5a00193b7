"""CarRacingDriving-v0 against the CarRacing-v3 that it is made of."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import wm_gym  # noqa: F401 - registers the environments
from wm_gym.envs.car_racing import CarRacingDrivingEnv, CarRacingSimulation
from wm_gym.errors import ConfigError
from wm_gym.frames import resize_frame

# Before, it wrote its reward into the picture in another way: cut off instead of rounded.
needs_equal_text = pytest.mark.skipif(
    tuple(int(part) for part in gym.__version__.split(".")[:2]) < (1, 4), reason="Gymnasium's picture is another one"
)
INFO_KEYS = {"speed", "off_road", "progress", "lateral_offset", "lap_finished", "frames", "num_tiles"}


def stock(**kwargs):
    return gym.make("CarRacing-v3", disable_env_checker=True, max_episode_steps=-1, **kwargs).unwrapped


def wild_actions(seed, count):
    """CarRacing's own 3 values: hard turns, full throttle, and now and then the brake."""
    rng = np.random.default_rng(seed)
    bends = np.repeat(rng.uniform((-1, 0, 0), 1, (count // 15 + 1, 3)), 15, axis=0)[:count]
    bends[:, 2] *= bends[:, 2] > 0.7
    return bends.astype(np.float32)


def as_driving(native):
    return np.array([*native, 1.0], np.float32)


@needs_equal_text
@pytest.mark.parametrize(("seed", "domain_randomize"), [(0, False), (7, False), (3, True)])
def test_pixels_and_rewards_equal_stock_car_racing(seed, domain_randomize):
    """Through the first second, when the camera closes in, and after it, on road and grass."""
    theirs = stock(render_mode="rgb_array", domain_randomize=domain_randomize)
    ours = CarRacingSimulation("rgb_array", domain_randomize=domain_randomize)
    frame, _ = theirs.reset(seed=seed)
    ours.reset(seed=seed)
    np.testing.assert_array_equal(ours.draw_observation(), frame)
    for step, action in enumerate(wild_actions(seed, 120)):
        frame, reward, terminated, _, _ = theirs.step(action)
        _, our_reward, our_terminated, _, _ = ours.step(action)
        assert (our_reward, our_terminated) == (reward, terminated)
        if step % 3 == 0:
            np.testing.assert_array_equal(ours.draw_observation(), frame)
        if step % 20 == 0:
            np.testing.assert_array_equal(ours.render(), theirs.render())


def test_pixels_equal_stock_where_the_playfield_ends():
    """The void around the playfield is black; the fast path fills the screen only where it is not in sight."""
    theirs, ours = stock(), CarRacingSimulation()
    theirs.reset(seed=1)
    ours.reset(seed=1)
    for env in (theirs, ours):
        env.t = 2.0  # the camera is close
        for body in (env.car.hull, *env.car.wheels):
            body.position += (325.0 - env.car.hull.position[0], 0.0)
    action = np.zeros(3, np.float32)
    frame = theirs.step(action)[0]
    ours.step(action)
    assert (frame[:60] == 0).all(axis=-1).mean() > 0.05
    np.testing.assert_array_equal(ours.draw_observation(), frame)


@needs_equal_text
def test_one_action_is_four_frames_of_stock_car_racing():
    theirs = stock()
    ours = gym.make("CarRacingDriving-v0", frame_size=96)
    frame, _ = theirs.reset(seed=5)
    our_frame, info = ours.reset(seed=5)
    np.testing.assert_array_equal(our_frame, frame)
    for count, action in enumerate(wild_actions(5, 30), start=1):
        rewards = []
        for _ in range(4):
            frame, reward, *_ = theirs.step(action)
            rewards.append(reward)
        our_frame, our_reward, _, _, info = ours.step(as_driving(action))
        np.testing.assert_array_equal(our_frame, frame)
        assert our_reward == pytest.approx(sum(rewards))
        assert info["frames"] == 4 * count
        assert info["speed"] == pytest.approx(np.hypot(*theirs.car.hull.linearVelocity))
        assert info["progress"] == theirs.tile_visited_count / len(theirs.track)


def test_frame_size_averages_the_native_frame():
    native = gym.make("CarRacingDriving-v0", frame_size=96).reset(seed=2)[0]
    small, _ = gym.make("CarRacingDriving-v0", frame_size=(48, 64)).reset(seed=2)
    assert small.shape == (48, 64, 3)
    np.testing.assert_array_equal(small, resize_frame(native, 48, 64))


def test_steer_accel_is_driving_in_other_words():
    driving = gym.make("CarRacingDriving-v0")
    steer_accel = gym.make("CarRacingDriving-v0", action="steer_accel")
    driving.reset(seed=3)
    steer_accel.reset(seed=3)
    for steering, acceleration in [(0.0, 1.0), (0.0, 1.0), (-0.2, 0.4), (0.3, -0.5), (0.1, 0.0)]:
        stored = np.array([steering, max(acceleration, 0), max(-acceleration, 0), 1], np.float32)
        frame, reward, *_ = driving.step(stored)
        other_frame, other_reward, *_ = steer_accel.step(np.array([steering, acceleration], np.float32))
        np.testing.assert_array_equal(frame, other_frame)
        assert reward == other_reward


def test_positive_steering_turns_right_and_brake_stops():
    env = gym.make("CarRacingDriving-v0")
    env.reset(seed=0)
    for _ in range(8):
        env.step(np.array([0, 0.5, 0, 1], np.float32))
    before = env.unwrapped.simulation.car.hull.angle
    for _ in range(4):
        *_, info = env.step(np.array([0.3, 0, 0, 1], np.float32))
    assert env.unwrapped.simulation.car.hull.angle < before - 0.1  # Box2D's angles grow to the left
    assert info["speed"] > 5
    for _ in range(20):
        *_, info = env.step(np.array([0, 0, 1, 1], np.float32))
    assert info["speed"] < 0.5


@pytest.mark.parametrize("gear", [-1, 0])
def test_throttle_has_no_effect_out_of_forward_gear(gear):
    env = gym.make("CarRacingDriving-v0")
    env.reset(seed=0)
    for _ in range(5):
        *_, info = env.step(np.array([0, 1, 0, gear], np.float32))
    assert info["speed"] < 0.01


def test_lateral_offset_is_positive_to_the_right_and_off_road_counts_wheels():
    env = gym.make("CarRacingDriving-v0", frame_size=16)
    _, info = env.reset(seed=0)
    assert abs(info["lateral_offset"]) < 0.01
    assert info["off_road"] == 0
    for _ in range(6):
        env.step(np.array([0, 0.6, 0, 1], np.float32))
    for _ in range(9):
        *_, info = env.step(np.array([0.4, 0.1, 0, 1], np.float32))
    assert info["lateral_offset"] > 7  # the road reaches 6.7 to each side
    assert info["off_road"] == 1


@pytest.mark.parametrize("action_repeat", [1, 4, 7])
def test_truncation_counts_simulator_frames(action_repeat):
    env = gym.make("CarRacingDriving-v0", action_repeat=action_repeat, max_frames=30, frame_size=16)
    env.reset(seed=0)
    truncated, total = False, 0.0
    while not truncated:
        _, reward, terminated, truncated, info = env.step(np.array([0, 0, 0, 1], np.float32))
        total += reward
        assert not terminated
    assert info["frames"] == 30
    tiles_at_start = info["progress"] * 1000
    assert total == pytest.approx(tiles_at_start - 3.0)


def test_finished_lap_and_lost_car_terminate_within_the_repeat():
    env = gym.make("CarRacingDriving-v0", frame_size=16)
    env.reset(seed=0)
    simulation = env.unwrapped.simulation
    for tile in simulation.road[:-1]:
        tile.road_visited = True
    simulation.tile_visited_count = len(simulation.track)
    _, _, terminated, truncated, info = env.step(np.array([0, 0, 0, 1], np.float32))
    assert (terminated, truncated) == (True, False)
    assert info["lap_finished"] is True
    assert info["frames"] == 1  # the other three frames of the action are not run

    _, info = env.reset(seed=0)
    assert info["lap_finished"] is False
    env.unwrapped.simulation.car.hull.position = (400.0, 0.0)
    _, reward, terminated, _, info = env.step(np.array([0, 0, 0, 1], np.float32))
    assert terminated
    assert reward == -100
    assert info["lap_finished"] is False


def test_same_seed_and_actions_give_same_bytes_whatever_ran_before():
    def rollout(env):
        frames = [env.reset(seed=11)[0]]
        rewards = []
        for action in wild_actions(11, 40):
            frame, reward, *_ = env.step(as_driving(action))
            frames.append(frame)
            rewards.append(reward)
        return np.stack(frames).tobytes(), rewards

    fresh = gym.make("CarRacingDriving-v0")
    used = gym.make("CarRacingDriving-v0")
    for seed in range(3):
        used.reset(seed=seed)
        for action in wild_actions(seed, 10):
            used.step(as_driving(action))
    assert rollout(fresh) == rollout(used)


def test_info_has_the_same_plain_values_at_reset_and_step():
    env = gym.make("CarRacingDriving-v0", frame_size=16)
    _, at_reset = env.reset(seed=1)
    *_, at_step = env.step(env.action_space.sample())
    for info in (at_reset, at_step):
        assert set(info) == INFO_KEYS
        assert {key: type(value) for key, value in info.items()} == {
            key: bool if key == "lap_finished" else float for key in INFO_KEYS
        }


def test_episodes_leave_no_bodies_behind():
    env = gym.make("CarRacingDriving-v0", frame_size=16)
    env.reset(seed=4)
    count = len(env.unwrapped.simulation.world.bodies)
    for _ in range(3):
        env.reset(seed=4)
    assert len(env.unwrapped.simulation.world.bodies) == count


def test_pickles_with_its_arguments():
    env = CarRacingDrivingEnv(action="steer_accel", frame_size=(32, 48), action_repeat=2, max_frames=200)
    copy = pickle.loads(pickle.dumps(env))
    assert copy.observation_space == env.observation_space
    assert copy.action_space == env.action_space
    assert (copy.action_repeat, copy.max_frames, copy.step_s) == (2, 200, 0.04)
    np.testing.assert_array_equal(copy.reset(seed=1)[0], env.reset(seed=1)[0])


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized Box.*:UserWarning")
@pytest.mark.parametrize("action", ["driving", "steer_accel"])
def test_passes_both_env_checkers(action, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = gym.make("CarRacingDriving-v0", action=action, render_mode="rgb_array").unwrapped
    check_env(env)
    check_env_sb3(env)
    env.close()


def test_renders_videos_at_true_speed():
    env = gym.make("CarRacingDriving-v0", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (400, 600, 3)
    assert env.metadata["render_fps"] == 12.5
    assert env.metadata["driving"] is True


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"frame_size": 4}, "frame_size=4"),
        ({"frame_size": (64, 64, 3)}, "frame_size"),
        ({"action_repeat": 0}, "action_repeat=0"),
        ({"max_frames": 0}, "max_frames=0"),
        ({"lap_complete_percent": 95}, "lap_complete_percent=95"),
        ({"render_mode": "state_pixels"}, "render_mode='state_pixels'"),
        ({"action": "steer_acel"}, "did you mean 'steer_accel'"),
    ],
)
def test_refuses_arguments_out_of_range(kwargs, told):
    with pytest.raises(ConfigError, match=told):
        CarRacingDrivingEnv(**kwargs)


def test_refuses_an_action_that_is_not_finite():
    env = CarRacingDrivingEnv(frame_size=16)
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="not finite"):
        env.step(np.array([np.nan, 0, 0, 1], np.float32))
