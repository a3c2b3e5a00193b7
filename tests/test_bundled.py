"""What the package ships works at once, offline."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import wm_gym
from wm_gym.agents import Driver
from wm_gym.envs import LatentObservation, make_simulator


def test_the_dream_runs_from_another_folder_without_network(tmp_path):
    code = (
        "import socket\n"
        "def refuse(*_): raise OSError('no network')\n"
        "socket.socket.connect = refuse\n"
        "import gymnasium as gym, wm_gym; gym.make('DreamDriving-v0').reset(seed=0)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)


def test_the_id_works_without_the_import(tmp_path):
    code = "import gymnasium as gym; gym.make('wm_gym:DreamDriving-v0').reset(seed=0)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)


@pytest.mark.parametrize("action", ["driving", "steer_accel"])
@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("DreamDriving-v0", {"observation": "latent"}),
        ("DreamDriving-v0", {"observation": "image"}),
        ("CarRacingDriving-v0", {}),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_both_checkers_pass_on_every_registered_id(env_id, kwargs, action):
    env = gym.make(env_id, action=action, **kwargs).unwrapped
    check_env(env, skip_render_check=True)
    sb3_check_env(env)
    env.close()


@pytest.mark.parametrize("action", ["driving", "steer_accel"])
def test_dream_and_wrapped_simulator_have_equal_spaces(action):
    dream = gym.make("DreamDriving-v0", action=action)
    simulator = LatentObservation(make_simulator("car-racing", action=action), "bundled")
    assert dream.observation_space == simulator.observation_space
    assert dream.action_space == simulator.action_space
    seen = gym.make("DreamDriving-v0", action=action, observation="image")
    assert seen.observation_space == gym.make("CarRacingDriving-v0", action=action).observation_space


def test_same_seed_and_actions_same_dream():
    dreams = []
    for _ in range(2):
        env = gym.make("DreamDriving-v0", horizon=10)
        env.action_space.seed(3)
        observations = [env.reset(seed=5)[0]]
        for _ in range(10):
            observation, reward, _, truncated, _ = env.step(env.action_space.sample())
            observations.append(np.append(observation, reward))
        assert truncated
        dreams.append(np.concatenate(observations))
    np.testing.assert_array_equal(*dreams)


def test_the_vector_dream_is_one_batch():
    venv = gym.make_vec("DreamDriving-v0", num_envs=256)
    observations, _ = venv.reset(seed=0)
    assert observations.shape == (256, venv.single_observation_space.shape[0])
    _, rewards, *_ = venv.step(venv.action_space.sample())
    assert rewards.shape == (256,)


def test_the_driver_drives_outside_gymnasium():
    driver = Driver.load("bundled")
    action = driver.act(np.zeros((64, 64, 3), np.uint8))
    assert action.shape == (4,)
    assert action.dtype == np.float32


def test_the_model_loads_by_name():
    model = wm_gym.WorldModel.from_pretrained("bundled")
    assert model.metrics["psnr"]["1"] > 15
    assert model.start_states.batch_size >= 1024
