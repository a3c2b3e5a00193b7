"""Clips of episodes: the one carrier from the disk to the loss."""

from __future__ import annotations

from typing import Any, Generic

from typing_extensions import NamedTuple  # Python 3.10 has no generic ones

from wm_gym.observation import ArrayT, Observation


class Clips(NamedTuple, Generic[ArrayT]):
    """Clips of ``T`` frames with the ``T - 1`` steps between them, as arrays or, on a model's device, as tensors.

    ``actions[:, t]`` leads from frame ``t`` to frame ``t + 1``. A single clip has no batch dimension ``B``.

    Attributes:
        frames: ``(B, T, H, W, 3)`` uint8 as arrays, ``(B, T, 3, H, W)`` float in [-1, 1] as tensors; ``S`` of the ``T``
            where only some are ``shown``.
        actions: ``(B, T - 1, A)`` float32, stored format.
        rewards: ``(B, T - 1)`` float32.
        terminated: ``(B, T - 1)`` bool.
        vectors: ``(B, T, V)`` float32.
        latents: ``(B, T, Z)`` float32, encoded before; ``None`` leaves that to the model.
        shown: ``(S,)`` int64 in rising order, the time steps of ``frames``; ``None``: all.
        is_real: ``(B, T - 1)`` bool: false for the steps after the end of an episode, which fill up a clip with its
            last frame: they are no steps of the simulator; ``None``: all are real.
    """

    frames: ArrayT
    actions: ArrayT
    rewards: ArrayT
    terminated: ArrayT
    vectors: ArrayT
    latents: Any = None
    shown: Any = None
    is_real: Any = None

    @property
    def observations(self) -> Observation[ArrayT]:
        """What was seen at each time step, where all frames are there."""
        return Observation(self.frames, self.vectors)
