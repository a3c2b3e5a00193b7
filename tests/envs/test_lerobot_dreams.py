"""Dreams under the names that LeRobot's policies know."""

import numpy as np
import pytest
import torch

from wm_gym.config import load_config
from wm_gym.envs.lerobot_dreams import make_lerobot_dreams
from wm_gym.errors import ConfigError
from wm_gym.observation import Observation
from wm_gym.vector import VectorField
from wm_gym.world_model import WorldModel


def test_a_dream_that_reaches_its_horizon_is_a_success(tiny_model):
    env = make_lerobot_dreams(tiny_model, 2, horizon=3, task="follow the road")
    observation, info = env.reset(seed=[0, 1])
    assert env.observation_space.contains(observation) and "agent_pos" not in observation
    assert not info["is_success"].any() and env.call("task") == ("follow the road",) * 2
    done = np.zeros(2, bool)
    for _ in range(3):
        observation, _, terminated, truncated, info = env.step(env.action_space.sample())
        ended = terminated | truncated
        if ended.any():
            np.testing.assert_array_equal(info["final_info"]["is_success"][ended], (truncated & ~terminated)[ended])
        done |= ended
    assert done.all()
    assert env.envs[0].render().shape == (*tiny_model.config.frame_size, 3)
    with pytest.raises(ConfigError, match="horizon"):
        make_lerobot_dreams(tiny_model, horizon=0)


def test_a_vector_is_the_state(driving_spec):
    fields = (VectorField(name="speed", low=0, high=9),)
    model = WorldModel(load_config("debug").model, driving_spec.model_copy(update={"vector": fields})).eval()
    with torch.no_grad():
        model.start_states = model.initial_state(Observation(torch.zeros(2, 3, 64, 64), torch.zeros(2, 1)))
    observation, _ = make_lerobot_dreams(model, 2).reset(seed=[0, 1])
    assert observation["agent_pos"].shape == (2, 1)
