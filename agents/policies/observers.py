"""What a policy sees of an episode: the features of a world model's state, or the last frames as they are.

An observer turns each new observation, and the action before it, into the policy's. Training and driving use the
same one, so that a policy meets nothing on the road that it has not met in its training.
"""

from __future__ import annotations

from copy import copy
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from wm_gym.actions import FloatArray
from wm_gym.envs.dream_model import DreamModel
from wm_gym.frames import Frame, resize_frame
from wm_gym.models.vector import VectorFields
from wm_gym.observation import Observation, join_observation, split_observation
from wm_gym.rollouts import LatentFilter, latent_features
from wm_gym.simulator import SimulatorSpec
from wm_gym.state import LatentState

_CHANNELS = 3


class Observer(Protocol):
    """Turns what a simulator shows into a policy's observations."""

    @property
    def simulator(self) -> SimulatorSpec:
        """The simulator whose observations and actions it knows."""
        ...

    def observation(self, observed: Any, last_action: FloatArray | None) -> Any:
        """The policy's observation for what was seen last.

        Args:
            observed: What the simulator gives: a frame ``(H, W, 3)`` uint8 RGB, of any size, or with a vector ``(V,)``
                float32.
            last_action: ``(A,)`` float32 in the stored format, the action that led there; ``None`` for the first
                observation of an episode, which makes the observer forget the one before.

        Returns:
            What the policy takes, without a batch dimension; the caller may keep it.
        """
        ...


class LatentObserver:
    """Features of a world model's latent state, which every observation and action advances.

    Args:
        model: The world model.
    """

    def __init__(self, model: DreamModel) -> None:
        self.model = model
        self._filter = LatentFilter(model)

    @property
    def simulator(self) -> SimulatorSpec:
        """The simulator that the world model was trained on."""
        return self.model.simulator

    @property
    def state(self) -> LatentState | None:
        """The latent state after the last observation, a batch of one; ``None`` before the first."""
        return self._filter.state

    def observation(self, observed: Any, last_action: FloatArray | None) -> FloatArray:
        """The features ``(F,)`` float32 of the state after this observation."""
        return latent_features(self._filter, split_observation(observed), last_action)


class PixelObserver:
    """The last frames, one above the other as channels, the oldest first: speed shows in how they differ.

    Where the simulator gives a vector too, the newest one stands beside them, scaled to [-1, 1] and with a number for
    each class, and the observations are a ``Dict``.
    The first frame of an episode stands in for those before it.

    Args:
        simulator: The simulator that the policy is trained on.
        frame_stack: ``K``, how many frames.
    """

    def __init__(self, simulator: SimulatorSpec, frame_stack: int) -> None:
        self._simulator = simulator
        self.frame_stack = frame_stack
        self._vector_fields = VectorFields(simulator.vector)
        self._stack: Frame | None = None

    @property
    def simulator(self) -> SimulatorSpec:
        """The simulator that the policy is trained on."""
        return self._simulator

    @property
    def space(self) -> spaces.Space[Any]:
        """The observations: ``(3 K, H, W)`` uint8, channels first, as Stable-Baselines3's networks take them."""
        stack = spaces.Box(0, 255, (_CHANNELS * self.frame_stack, *self._simulator.frame_size), np.uint8)
        if self._vector_fields.dim == 0:
            return stack
        return spaces.Dict({"image": stack, "vector": spaces.Box(-1.0, 1.0, (self._vector_fields.dim,), np.float32)})

    def observation(self, observed: Any, last_action: FloatArray | None) -> Any:
        """The last ``K`` frames ``(3 K, H, W)`` uint8 up to this one, with the vector where there is one."""
        seen = split_observation(observed)
        newest = resize_frame(seen.image, *self._simulator.frame_size).transpose(2, 0, 1)
        if self._stack is None or last_action is None:
            self._stack = np.tile(newest, (self.frame_stack, 1, 1))
        else:
            self._stack = np.concatenate((self._stack[_CHANNELS:], newest))
        vector = self._vector_fields.expand(torch.from_numpy(seen.vector)).numpy()
        return join_observation(Observation(self._stack.copy(), vector))


class ObserversSideBySide:
    """What policies see of ``N`` episodes that go on side by side, each with an observer of its own.

    Args:
        observer: What kind of observer; it is not touched itself.
        count: ``N``.
    """

    def __init__(self, observer: Observer, count: int) -> None:
        self._filter = LatentFilter(observer.model) if isinstance(observer, LatentObserver) else None
        self._each = [] if self._filter is not None else [copy(observer) for _ in range(count)]

    def observations(self, observed: Observation[NDArray[Any]], last_actions: FloatArray | None) -> Any:
        """The policies' observations ``(N, ...)`` for what was seen last.

        Args:
            observed: ``(N, H, W, 3)`` uint8 and ``(N, V)`` float32.
            last_actions: ``(N, A)`` float32 in the stored format; ``None`` for the first observation of the episodes.
        """
        if self._filter is not None:
            state = self._filter.observe(observed, last_actions)
            with torch.no_grad():
                return self._filter.model.features(state).cpu().numpy()
        seen = [
            split_observation(
                one.observation(
                    Observation(observed.image[row], observed.vector[row]),
                    None if last_actions is None else last_actions[row],
                )
            )
            for row, one in enumerate(self._each)
        ]
        return join_observation(Observation(*map(np.stack, zip(*seen, strict=True))))
