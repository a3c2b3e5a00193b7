"""Untrained world models, and what they are called with: speed does not depend on the weights."""

from __future__ import annotations

import torch

from wm_gym.actions import ActionFormat
from wm_gym.config import ModelConfig
from wm_gym.simulator import SimulatorSpec
from wm_gym.state import LatentState
from wm_gym.world_model import WorldModel


def random_model(config: ModelConfig, device: str) -> WorldModel:
    """An untrained world model of driving, ready to be called."""
    torch.manual_seed(0)
    simulator = SimulatorSpec(id="benchmark", frame_size=config.frame_size, action=ActionFormat.driving())
    model = WorldModel(config, simulator)
    model.encoder.to(memory_format=torch.channels_last)
    model.decoder.to(memory_format=torch.channels_last)
    return model.to(device).eval()


def random_step(model: WorldModel, batch: int) -> tuple[LatentState, torch.Tensor, torch.Tensor | None]:
    """States, stored actions and noise ``(batch, ...)`` for one imagined step."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(batch, model.dynamics.latent_dim, generator=generator)
    action = torch.rand(batch, model.simulator.action.dim, generator=generator)
    noise = torch.rand(batch, model.noise_dim, generator=generator).to(model.device) if model.noise_dim else None
    with torch.no_grad():
        return model.dynamics.initial(latent.to(model.device)), action.to(model.device), noise
