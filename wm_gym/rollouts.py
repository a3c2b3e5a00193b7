"""Following what a simulator shows, and dreaming ahead under given actions: the two loops over time of a world model.

Both know a model by its five verbs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm_gym.frames import frames_to_tensor, resize_frame
from wm_gym.observation import Observation
from wm_gym.state import LatentState


class FrameConfig(Protocol):
    """The part of a model's configuration that rollouts read."""

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of the frames, in pixels."""
        ...


class RolloutModel(Protocol):
    """The part of :class:`~wm_gym.envs.dream_model.DreamModel` that rollouts need."""

    @property
    def config(self) -> FrameConfig:
        """Configuration of the model."""
        ...

    @property
    def noise_dim(self) -> int:
        """Uniform random numbers that one imagined step takes; 0 for deterministic dynamics."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        ...

    def initial_state(self, observed: Any, /) -> LatentState:
        """The state after the first observation of an episode.

        It is an image ``(B, 3, H, W)`` float in [-1, 1]; where the simulator gives vectors, an ``Observation`` of it
        and of the vector ``(B, V)``.
        """
        ...

    def observe(self, state: LatentState, action: Tensor, observed: Any, /) -> LatentState:
        """The state after ``action`` ``(B, A)`` float32 (stored format) and the observation that followed it."""
        ...

    def imagine(
        self, state: LatentState, action: Tensor, noise: Tensor | None = None
    ) -> tuple[LatentState, Tensor, Tensor]:
        """Predicted next state, reward ``(B,)`` and continuation probability ``(B,)``.

        ``action`` is ``(B, A)`` float32 (stored format). ``noise`` is ``(B, noise_dim)`` float32 of uniform numbers in
        [0, 1), or ``None`` where ``noise_dim`` is 0. Both belong to the caller, who writes the next step's into them.
        """
        ...

    def features(self, state: LatentState) -> Tensor:
        """``(B, F)`` float32: what a policy sees."""
        ...


class LatentFilter:
    """The latent states of ``B`` episodes side by side, which every observation and action advances.

    Args:
        model: The world model.
    """

    def __init__(self, model: RolloutModel) -> None:
        self.model = model
        self.state: LatentState | None = None

    @torch.no_grad()
    def observe(self, observed: Observation[NDArray[Any]], last_action: NDArray[np.float32] | None) -> LatentState:
        """The states after the newest observations.

        Args:
            observed: ``(B, H, W, 3)`` uint8 and ``(B, V)`` float32; frames of another size than the model's are
                resized.
            last_action: ``(B, A)`` float32 in the stored format, what led there; ``None`` begins new episodes.
        """
        model = self.model
        size = model.config.frame_size
        image = observed.image
        if image.shape[1:3] != tuple(size):
            image = np.stack([resize_frame(frame, *size) for frame in image])
        images = frames_to_tensor(torch.from_numpy(np.ascontiguousarray(image)).to(model.device))
        tensors = Observation(
            images.contiguous(),  # one layout, and so one rounding, however many there are and whatever their size was
            torch.from_numpy(observed.vector).to(model.device),
        )
        if self.state is None or last_action is None:
            self.state = model.initial_state(tensors.given)
        else:
            action = torch.from_numpy(last_action).to(model.device)
            self.state = model.observe(self.state, action, tensors.given)
        return self.state

    def keep(self, count: int) -> None:
        """Go on with the first ``count`` episodes alone."""
        if self.state is not None and self.state.batch_size > count:
            self.state = self.state.first(count)


def latent_features(
    latent: LatentFilter, observed: Observation[NDArray[Any]], last_action: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Let a filter of one episode observe, and give the features ``(F,)`` float32 that a policy sees.

    Args:
        latent: The filter.
        observed: ``(H, W, 3)`` uint8 and ``(V,)`` float32, without a batch dimension.
        last_action: ``(A,)`` float32 in the stored format, or ``None`` for the first observation of an episode.
    """
    batch = Observation(observed.image[None], observed.vector[None])
    state = latent.observe(batch, None if last_action is None else last_action[None])
    with torch.no_grad():
        return np.array(latent.model.features(state)[0].cpu().numpy(), np.float32)


def follow(model: RolloutModel, observed: Observation[NDArray[Any]], actions: NDArray[np.float32]) -> list[LatentState]:
    """The state, a batch of one, at each of ``T`` observations of one episode.

    Args:
        model: The world model.
        observed: ``(T, H, W, 3)`` uint8 and ``(T, V)`` float32.
        actions: ``(T - 1, A)`` float32 or more rows, stored format, between them.
    """
    latent = LatentFilter(model)
    return [
        latent.observe(
            Observation(observed.image[t : t + 1], observed.vector[t : t + 1]), actions[t - 1 : t] if t else None
        )
        for t in range(len(observed.image))
    ]


class Dreamt(NamedTuple):
    """What a dream of ``K`` steps gave.

    Attributes:
        states: After each step, ``K`` batches of ``B`` states.
        rewards: ``(B, K)`` float32.
        continuations: ``(B, K)`` float32.
    """

    states: list[LatentState]
    rewards: Tensor
    continuations: Tensor


@torch.no_grad()
def dream(model: RolloutModel, state: LatentState, actions: Tensor, generator: torch.Generator | None = None) -> Dreamt:
    """Imagine under given actions, without observations.

    Args:
        model: The world model.
        state: ``B`` states to begin with.
        actions: ``(B, K, A)``, stored format.
        generator: Draws the noise of stochastic dynamics, on the CPU.
    """
    states: list[LatentState] = []
    numbers: Sequence[list[Tensor]] = ([], [])
    for t in range(actions.shape[1]):
        state, *predicted = imagine_step(model, state, actions[:, t], generator)
        states.append(state)
        for kept, number in zip(numbers, predicted, strict=True):
            kept.append(number)
    return Dreamt(states, *(torch.stack(kept, 1) for kept in numbers))


def imagine_step(
    model: RolloutModel, state: LatentState, action: Tensor, generator: torch.Generator | None
) -> tuple[LatentState, Tensor, Tensor]:
    """One imagined step ``(B, ...)`` with noise from a generator on the CPU; see :func:`dream`."""
    shape = (action.shape[0], model.noise_dim)
    noise = None
    if model.noise_dim:
        noise = torch.rand(shape, generator=generator, dtype=torch.float32).to(model.device)
    state, reward, continuation = model.imagine(state, action, noise)
    return state, reward, continuation
