"""What a policy sees of a drive: the features of a world model's state, or the last frames as they are.

An observer turns each new frame, and the action before it, into the policy's observation. Training and driving use the
same one, so that a policy meets nothing on the road that it has not met in its training.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from wm_gym.actions import FloatArray
from wm_gym.envs.dream_model import DreamModel
from wm_gym.frames import Frame, frames_to_tensor, resize_frame
from wm_gym.simulator import SimulatorSpec
from wm_gym.state import LatentState

_CHANNELS = 3


class Observer(Protocol):
    """Turns the frames of a drive into a policy's observations."""

    @property
    def simulator(self) -> SimulatorSpec:
        """The simulator whose frames and actions it knows."""
        ...

    def observation(self, frame: Frame, last_action: FloatArray | None) -> NDArray[Any]:
        """The observation for the newest frame.

        Args:
            frame: ``(H, W, 3)`` uint8 RGB; one of another size is resized.
            last_action: ``(A,)`` float32 in the stored format, the action that led to the frame; ``None`` for the
                first frame of a drive, which makes the observer forget the drive before.

        Returns:
            What the policy takes, without a batch dimension; the caller may keep it.
        """
        ...


class LatentObserver:
    """Features of a world model's latent state, which every frame and action advances.

    Args:
        model: The world model.
    """

    def __init__(self, model: DreamModel) -> None:
        self.model = model
        self._state: LatentState | None = None

    @property
    def simulator(self) -> SimulatorSpec:
        """The simulator that the world model was trained on."""
        return self.model.simulator

    @torch.no_grad()
    def observation(self, frame: Frame, last_action: FloatArray | None) -> FloatArray:
        """The features ``(F,)`` float32 of the state after this frame."""
        device = self.model.device
        pixels = torch.from_numpy(resize_frame(frame, *self.model.config.frame_size)).to(device)
        image = frames_to_tensor(pixels)[None]
        if self._state is None or last_action is None:
            self._state = self.model.initial_state(image)
        else:
            self._state = self.model.observe(self._state, torch.from_numpy(last_action[None]).to(device), image)
        return np.asarray(self.model.features(self._state)[0].cpu().numpy(), np.float32)


class PixelObserver:
    """The last frames, one above the other as channels, the oldest first: speed shows in how they differ.

    The first frame of a drive stands in for those before it.

    Args:
        simulator: The simulator that the policy is trained on.
        frame_stack: ``K``, how many frames.
    """

    def __init__(self, simulator: SimulatorSpec, frame_stack: int) -> None:
        self._simulator = simulator
        self.frame_stack = frame_stack
        self._stack: Frame | None = None

    @property
    def simulator(self) -> SimulatorSpec:
        """The simulator that the policy is trained on."""
        return self._simulator

    @property
    def space(self) -> spaces.Box:
        """The observations: ``(3 K, H, W)`` uint8, channels first, as Stable-Baselines3's networks take them."""
        return spaces.Box(0, 255, (_CHANNELS * self.frame_stack, *self._simulator.frame_size), np.uint8)

    def observation(self, frame: Frame, last_action: FloatArray | None) -> Frame:
        """The last ``K`` frames ``(3 K, H, W)`` uint8 up to this one."""
        newest = resize_frame(frame, *self._simulator.frame_size).transpose(2, 0, 1)
        if self._stack is None or last_action is None:
            self._stack = np.tile(newest, (self.frame_stack, 1, 1))
        else:
            self._stack = np.concatenate((self._stack[_CHANNELS:], newest))
        return self._stack.copy()
