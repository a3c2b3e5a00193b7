"""What every latent dynamics offers to the world model."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from wm_gym.config import DynamicsConfig
from wm_gym.state import LatentState


class Dynamics(nn.Module, ABC):
    """How the latent state moves under an action.

    Args:
        config: Kind and sizes.
        latent_dim: ``Z``, size of the latent vector.
        action_dim: ``A``, size of an action vector, scaled to [-1, 1].
    """

    feature_dim: int
    """``F``: size of the vector that policy, heads and decoder see."""
    noise_dim: int = 0
    """Uniform random numbers that one imagined step needs; 0 for deterministic dynamics."""

    def __init__(self, config: DynamicsConfig, latent_dim: int, action_dim: int) -> None:
        super().__init__()
        self.config = config
        self.latent_dim = latent_dim
        self.action_dim = action_dim

    @abstractmethod
    def initial(self, latent: Tensor) -> LatentState:
        """The state after the first frame of an episode, from its encoded latent ``(B, Z)``."""

    @abstractmethod
    def imagine(self, state: LatentState, action: Tensor, noise: Tensor | None = None) -> LatentState:
        """The next state, predicted: ``action`` ``(B, A)``, ``noise`` ``(B, noise_dim)`` in [0, 1)."""

    @abstractmethod
    def correct(self, predicted: LatentState, latent: Tensor) -> LatentState:
        """A predicted state corrected with the encoded latent ``(B, Z)`` of the frame that was then seen."""

    @abstractmethod
    def features(self, state: LatentState) -> Tensor:
        """``(B, F)``: what of the state the policy, the heads and the decoder see."""
