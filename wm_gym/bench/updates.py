"""Updates of a training on clips that are made up: the arithmetic of training without its data."""

from __future__ import annotations

from collections.abc import Callable

import torch

from wm_gym.bench.random_models import random_model
from wm_gym.clips import Clips
from wm_gym.config import Config
from wm_gym.training.captured import clear_gradients
from wm_gym.training.trainer import Objective, make_fabric, make_gradients, make_loss, make_optimizer


class SyntheticTraining:
    """An untrained world model, its loss and its optimiser, as a training's first phase has them.

    Args:
        config: The whole configuration.
        device: ``"cpu"``, ``"cuda"``, ….
        devices: Processes; under ``torchrun`` they are taken from there.
    """

    def __init__(self, config: Config, device: str, devices: int = 1) -> None:
        self.fabric, scaler = make_fabric(config.training.precision, device, devices)
        self.fabric.launch()
        model = random_model(config.model, "cpu").train()  # fabric moves it
        self._loss = make_loss(config, None)
        objective = Objective(model, self._loss)
        optimizer = make_optimizer(self.fabric, objective, config.training, scaler)
        wrapped, self._optimizer = self.fabric.setup(objective, optimizer)
        self._gradients = make_gradients(self.fabric, wrapped, config.training, scaler)
        self._config = config
        self._generator = torch.Generator().manual_seed(0)

    def update_of(self, batch: int, frames: int = 10) -> Callable[[], None]:
        """One update on ``batch`` clips of so many frames, of this process alone."""
        clips = self._clips(batch, frames)
        return lambda: self.update_on(clips)

    def update_on(self, clips: Clips[torch.Tensor]) -> None:
        """One update on these clips."""
        self._gradients(clips, self._loss.draw(clips, self._generator).to(self.fabric.device))
        self._optimizer.step()
        clear_gradients(self._optimizer, self._gradients)

    def _clips(self, batch: int, frames: int) -> Clips[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        device = self.fabric.device
        return Clips(
            (torch.rand(batch, frames, 3, *self._config.model.frame_size, generator=generator) * 2 - 1).to(device),
            torch.rand(batch, frames - 1, 4, generator=generator).to(device),
            torch.rand(batch, frames - 1, generator=generator).to(device),
            torch.zeros(batch, frames - 1, dtype=torch.bool, device=device),
            torch.zeros(batch, frames, 0, device=device),
        )
