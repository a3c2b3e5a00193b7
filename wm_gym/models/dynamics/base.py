"""What every latent dynamics offers to the world model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from wm_gym.config import DynamicsConfig
from wm_gym.state import LatentState


class Divergence(NamedTuple):
    """Kullback-Leibler divergence of the posterior from the prior, in nats: one number, two paths for the gradient.

    Attributes:
        dynamics: ``(B,)``; its gradient moves the prior (the prediction) towards the posterior, not the posterior.
        representation: ``(B,)``; its gradient moves the posterior (the observation) towards the prior, not the prior.
    """

    dynamics: Tensor
    representation: Tensor


class Filtered(NamedTuple):
    """The states of ``B`` clips of ``T`` frames, every one of which was observed.

    Attributes:
        states: ``T * B`` rows: all clips after their first frame, all after their second, ….
        divergence: Of each step, ``(T - 1, B)``; ``None`` where the dynamics are deterministic.
        vector_loss: How badly each step's vector was predicted, ``(T - 1, B)`` in nats; ``None`` where the dynamics do
            not carry it.
    """

    states: LatentState
    divergence: Divergence | None
    vector_loss: Tensor | None = None


class Dynamics(nn.Module, ABC):
    """How the latent state moves under an action.

    Deterministic dynamics predict one next state. Stochastic dynamics (``noise_dim > 0``) draw it from a distribution,
    the prior, and correct it by drawing from another one that has seen the frame, the posterior. They take their
    random numbers from ``noise``; without it they draw from torch's global generator in training mode, and take the
    most probable state in evaluation mode.

    Args:
        config: Kind and sizes.
        latent_dim: ``Z``, size of the encoded latent vector.
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

    def carry(self, vectors: Tensor) -> Tensor:
        """What of an observed vector ``(..., V)`` is a part of the state, at the end of its latent: ``(..., D)``."""
        return vectors[..., :0]

    reads_latent: bool = True
    """Whether the next state depends on the latent; where it does not, the memory alone tells it (:meth:`shown`)."""

    @property
    def is_stochastic(self) -> bool:
        """Whether the next state is drawn; such dynamics are trained by filtering and :meth:`divergence`."""
        return self.noise_dim > 0

    def set_temperature(self, temperature: float) -> None:
        """Let draws by given noise be more random (above 1) or less (below 1); nothing where nothing is drawn."""

    @abstractmethod
    def initial(self, latent: Tensor) -> LatentState:
        """The state after the first frame of an episode, from its encoded latent ``(B, Z)``."""

    @abstractmethod
    def imagine(self, state: LatentState, action: Tensor, noise: Tensor | None = None) -> LatentState:
        """The next state, predicted: ``action`` ``(B, A)``, ``noise`` ``(B, noise_dim)`` in [0, 1)."""

    def correct(self, predicted: LatentState, latent: Tensor) -> LatentState:
        """A predicted state corrected with the encoded latent ``(B, Z)`` of the frame that was then seen.

        It takes the place of the predicted one, unless the dynamics do more; the memory holds the action's effect.
        """
        return LatentState(latent, predicted.memory)

    def observe(self, state: LatentState, action: Tensor, latent: Tensor) -> LatentState:
        """:meth:`imagine`, then :meth:`correct`: the state after ``action`` and the frame that was then seen."""
        return self.correct(self.imagine(state, action), latent)

    def filter(self, latents: Tensor, actions: Tensor) -> Filtered:
        """Follow whole clips with :meth:`observe`.

        Args:
            latents: ``(B, T, Z)``, encoded from the frames.
            actions: ``(B, T - 1, A)``, scaled to [-1, 1].
        """
        states = [self.initial(latents[:, 0])]
        for t in range(actions.shape[1]):
            states.append(self.observe(states[-1], actions[:, t], latents[:, t + 1]))
        if not self.is_stochastic:
            return Filtered(LatentState.cat(states), None)
        # Without a past there is no prediction of the first frame, and so no divergence.
        steps = actions.shape[1]
        parts = self.divergence(LatentState.cat(states[1:]), latents[:, 1:].transpose(0, 1).flatten(0, 1))
        return Filtered(LatentState.cat(states), Divergence(*(part.unflatten(0, (steps, -1)) for part in parts)))

    def divergence(self, observed: LatentState, latent: Tensor) -> Divergence:
        """How far the posterior lay from the prior in the step that led to ``observed``; stochastic dynamics only.

        Args:
            observed: A state that :meth:`observe` gave.
            latent: ``(B, Z)``, the encoded latent that it was given.
        """
        raise NotImplementedError(f"{type(self).__name__} is deterministic: it has no posterior")

    def shown(self, state: LatentState) -> Tensor:
        """``(B, Z)``: the latent for the decoder; made from the memory where the memory tells it."""
        return state.latent

    @abstractmethod
    def features(self, state: LatentState) -> Tensor:
        """``(B, F)``: what of the state the policy, the heads and the decoder see."""
