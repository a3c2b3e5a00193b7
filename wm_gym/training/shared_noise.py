"""Random draws of stochastic dynamics that do not depend on the number of processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from wm_gym.models.dynamics.rssm import CategoricalDraw


class SharedNoise:
    """Gives each clip of a batch the random numbers that it would get from a single process.

    Every process draws the numbers of the whole batch, and keeps the rows of its own clips
    (``rank, rank + world_size, ...``, as :class:`wm_gym.training.clips.ClipLoader` shares them out).

    Args:
        model: The model in training; hooks on its draws give them their numbers until :meth:`close`.
        rank: This process.
        world_size: Number of processes; with one there is nothing to do.
        device: The model's.
    """

    def __init__(self, model: nn.Module, rank: int, world_size: int, device: torch.device) -> None:
        self.rank = rank
        self.world_size = world_size
        self._generator = torch.Generator(device)
        draws = [module for module in model.modules() if isinstance(module, CategoricalDraw)] if world_size > 1 else []
        self._hooks = [draw.register_forward_pre_hook(self._with_noise) for draw in draws]

    def manual_seed(self, seed: int) -> None:
        """Begin the numbers of an update."""
        self._generator.manual_seed(seed)

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def _with_noise(self, draw: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        probabilities, noise = (*arguments, None)[:2]
        if noise is not None or not draw.training:
            return None
        batch, groups = probabilities.shape[:2]
        whole = torch.rand((batch * self.world_size, groups), generator=self._generator, device=self._generator.device)
        return probabilities, whole[self.rank :: self.world_size]
