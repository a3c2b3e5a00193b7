"""A world small enough to compute by hand: a point on a line, its world model without error, and its simulator."""

from typing import ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from wm_gym.actions import ActionFormat
from wm_gym.frames import frames_to_tensor, tensor_to_frames
from wm_gym.simulator import SimulatorSpec
from wm_gym.state import LatentState

FRAME_SIZE = (8, 12)
POSITION_SCALE, VELOCITY_SCALE = 16.0, 2.0


class LineConfig:
    frame_size = FRAME_SIZE


class LineModel(nn.Module):
    """The latent is (position, velocity), the memory counts the steps.

    velocity' = throttle - brake (+ jitter), position' = position + velocity',
    reward = velocity' - |steering| / 2; a position of ``limit`` or more ends the episode for sure, any other goes on
    with probability ``continuation``. The frame shows the position in red and the velocity in green.
    """

    feature_dim = 2

    def __init__(self, starts=(0.0,), *, limit=1e9, continuation=1.0, jitter=0.0, noise_dim=0, native=False):
        super().__init__()
        self.config = LineConfig()
        action = ActionFormat.native(spaces.Box(-1, 1, (1,))) if native else ActionFormat.driving()
        self.simulator = SimulatorSpec(id="Line-v0", frame_size=FRAME_SIZE, action=action, step_s=0.005)
        self.noise_dim = noise_dim
        self.limit, self.continuation, self.jitter = limit, continuation, jitter
        position = torch.tensor(starts)
        self.start_states = self.state(position, torch.zeros_like(position))
        self.device = torch.device("cpu")
        self.num_imagined = []
        self.num_decoded = 0

    @staticmethod
    def state(position, velocity):
        return LatentState(torch.stack((position, velocity), dim=-1), torch.zeros(len(position), 1, 1))

    def velocity(self, action):
        return action[:, 0] if self.simulator.action.kind == "native" else action[:, 1] - action[:, 2]

    def advance(self, state, velocity):
        latent = torch.stack((state.latent[:, 0] + velocity, velocity), dim=-1)
        return LatentState(latent, state.memory + 1)

    def imagine(self, state, action, noise=None):
        self.num_imagined.append(state.batch_size)
        velocity = self.velocity(action)
        if self.noise_dim:
            assert noise.shape == (state.batch_size, self.noise_dim)
            velocity = velocity + self.jitter * (noise.mean(dim=1) - 0.5)
        following = self.advance(state, velocity)
        reward = velocity if self.simulator.action.kind == "native" else velocity - action[:, 0].abs() / 2
        ended = following.latent[:, 0] >= self.limit
        return following, reward, torch.where(ended, 0.0, self.continuation)

    def features(self, state):
        return state.latent

    def decode(self, state):
        self.num_decoded += state.batch_size
        position, velocity = state.latent[:, 0] / POSITION_SCALE, state.latent[:, 1] / VELOCITY_SCALE
        channels = torch.stack((position, velocity, torch.full_like(position, -1.0)), dim=1)
        return channels[:, :, None, None].expand(-1, -1, *FRAME_SIZE)

    def encode(self, frame):
        scale = torch.tensor((POSITION_SCALE, VELOCITY_SCALE))
        return frame[:, :2].mean(dim=(-1, -2)) * scale

    def initial_state(self, frame):
        latent = self.encode(frame)
        return LatentState(latent, torch.zeros(len(latent), 1, 1))

    def observe(self, state, action, frame):
        predicted = self.advance(state, self.velocity(action))
        return LatentState(self.encode(frame), predicted.memory)


class LineSimulator(gym.Env):
    """The same point on a line, in frames; any of the model's action spaces."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, action="driving", frame_size=FRAME_SIZE, length=20):
        self.format = ActionFormat.driving()
        self.action_name, self.length, self.render_mode = action, length, "rgb_array"
        self.action_space = self.format.space(action)
        self.observation_space = spaces.Box(0, 255, (*frame_size, 3), np.uint8)
        self.model = LineModel()

    def frame(self):
        return tensor_to_frames(self.model.decode(self.state))[0].contiguous().numpy()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        start = float(self.np_random.uniform(-1, 1))
        self.state, self.elapsed = LineModel.state(torch.tensor([start]), torch.zeros(1)), 0
        return self.frame(), {"start": start}

    def step(self, action):
        stored = torch.from_numpy(self.format.to_stored(action, self.action_name))[None]
        self.state, reward, _ = self.model.imagine(self.state, stored)
        self.elapsed += 1
        return self.frame(), float(reward[0]), False, self.elapsed >= self.length, {"position": self.state.latent[0, 0]}

    def render(self):
        return self.frame()


def seen(frame):
    """Position and velocity as they are read off a frame."""
    return LineModel().encode(frames_to_tensor(torch.from_numpy(frame))[None])[0].numpy()
