"""Random draws of stochastic dynamics that do not depend on the number of processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wm_gym.models.dynamics.rssm import CategoricalDraw, uniform


class SharedNoise:
    """Gives each clip of a batch the random numbers that it would get from a single process.

    Every process draws the numbers of the whole batch, and keeps the rows of its own clips
    (``rank, rank + world_size, ...``, as :class:`wm_gym.training.clips.ClipLoader` shares them out).

    Args:
        model: The model in training; its draws get their numbers here until :meth:`close`.
        rank: This process.
        world_size: Number of processes; with one there is nothing to do.
        device: The model's.
    """

    def __init__(self, model: nn.Module, rank: int, world_size: int, device: torch.device) -> None:
        self.rank = rank
        self.world_size = world_size
        self._generator = torch.Generator(device)
        draws = [module for module in model.modules() if isinstance(module, CategoricalDraw)]
        self._draws = draws if world_size > 1 else []
        for draw in self._draws:
            draw.uniform = self._uniform

    def manual_seed(self, seed: int) -> None:
        """Begin the numbers of an update."""
        self._generator.manual_seed(seed)

    def close(self) -> None:
        """Let the model draw its own again."""
        for draw in self._draws:
            draw.uniform = uniform

    def _uniform(self, shape: Sequence[int], device: torch.device) -> Tensor:
        *steps, batch, groups = shape
        whole = torch.rand(
            (*steps, batch * self.world_size, groups), generator=self._generator, device=self._generator.device
        )
        return whole[..., self.rank :: self.world_size, :].to(device)
