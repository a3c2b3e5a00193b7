"""A world whose best policy is plain: keep a drifting point at zero by steering."""

import torch
from gymnasium import spaces
from torch import nn

from wm_gym.actions import ActionFormat
from wm_gym.simulator import SimulatorSpec
from wm_gym.state import LatentState

FEATURE_SCALE, FEATURE_OFFSET = 500.0, 3000.0
REWARD = 40.0


class PointConfig:
    frame_size = (8, 8)


class PointWorld(nn.Module):
    """The latent is the position x; x' = x + 0.5 steering + drift, and the reward is 40 (1 - |x'|).

    Features are far from 0 and wide, and rewards are large, so that learning needs the normalisation and the scale.
    """

    feature_dim, noise_dim = 1, 0

    def __init__(self, drift=0.2, *, native=False):
        super().__init__()
        self.config, self.device = PointConfig(), torch.device("cpu")
        action = ActionFormat.native(spaces.Box(-1, 1, (1,))) if native else ActionFormat.driving()
        self.simulator = SimulatorSpec(id="Point-v0", frame_size=(8, 8), action=action)
        self.drift = drift
        self.start_states = LatentState(torch.linspace(-2, 2, 64)[:, None], torch.zeros(64, 1))

    def imagine(self, state, action, noise=None):
        latent = (state.latent + 0.5 * action[:, :1] + self.drift).clamp(-5, 5)
        reward = REWARD * (1 - latent[:, 0].abs())
        return LatentState(latent, state.memory), reward, torch.ones(len(latent))

    def features(self, state):
        return FEATURE_OFFSET + FEATURE_SCALE * state.latent

    def decode(self, state):
        return state.latent[:, :, None, None].expand(-1, 3, 8, 8).clamp(-1, 1)

    def initial_state(self, frame):
        return LatentState(frame.mean(dim=(-1, -2))[:, :1], torch.zeros(len(frame), 1))

    def observe(self, state, action, frame):
        return self.initial_state(frame)
