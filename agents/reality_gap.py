"""The reality gap: what a world model imagines along a drive that was recorded."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from wm_gym.actions import FloatArray
from wm_gym.envs.dream_model import DreamModel
from wm_gym.errors import DatasetError
from wm_gym.frames import Frame, frames_to_tensor, tensor_to_frames

_GAP = 4  # pixels between two pictures
_CAPTION_HEIGHT = 18
_BACKGROUND = 24


class ImaginedDrive(NamedTuple):
    """A dream along the actions of a recorded drive; entry ``k`` belongs to recorded step ``context - 1 + k``.

    Attributes:
        rewards: ``(K,)`` float32, predicted.
        continuations: ``(K,)`` float32, predicted probability that the episode goes on.
        frames: ``(K, H, W, 3)`` uint8, decoded; they answer to ``recorded_frames[context:]``.
    """

    rewards: FloatArray
    continuations: FloatArray
    frames: NDArray[np.uint8]


@torch.no_grad()
def imagine_along(
    model: DreamModel, frames: NDArray[np.uint8], actions: FloatArray, *, context: int = 1, seed: int = 0
) -> ImaginedDrive:
    """Dream from a real state under the actions that were really taken.

    The model observes the first ``context`` frames and the actions between them; from there on it sees no frame.

    Args:
        model: The world model.
        frames: ``(T + 1, H, W, 3)`` uint8, recorded, in the model's frame size.
        actions: ``(T, A)`` float32 in the stored format.
        context: Frames that are observed, 1 to ``T``.
        seed: Of the model's noise, where its dynamics have some.

    Returns:
        The dream's ``K = T + 1 - context`` steps.

    Raises:
        DatasetError: The arrays do not fit each other, the model or the context.
    """
    steps = len(actions)
    height, width = model.config.frame_size
    if frames.shape != (steps + 1, height, width, 3) or frames.dtype != np.uint8:
        raise DatasetError(
            f"{steps} actions need {steps + 1} frames, uint8 {height}x{width} RGB, but {frames.dtype} of shape "
            f"{frames.shape} was given."
        )
    if not 1 <= context <= steps:
        raise DatasetError(f"context={context} must be 1 to {steps}, so that a step is left to imagine.")
    device = model.device
    stored = torch.from_numpy(np.asarray(actions, np.float32)).to(device)

    def image(index: int) -> torch.Tensor:
        return frames_to_tensor(torch.from_numpy(frames[index : index + 1]).to(device))

    generator = torch.Generator().manual_seed(seed)
    state = model.initial_state(image(0))
    for t in range(1, context):
        state = model.observe(state, stored[t - 1 : t], image(t))
    rewards, continuations, decoded = [], [], []
    for t in range(context - 1, steps):
        noise = torch.rand(1, model.noise_dim, generator=generator).to(device) if model.noise_dim else None
        state, reward, continuation = model.imagine(state, stored[t : t + 1], noise)
        rewards.append(reward)
        continuations.append(continuation)
        decoded.append(tensor_to_frames(model.decode(state)))
    return ImaginedDrive(
        torch.cat(rewards).float().cpu().numpy(),
        torch.cat(continuations).float().cpu().numpy(),
        torch.cat(decoded).contiguous().cpu().numpy(),
    )


def side_by_side(
    real_frames: NDArray[np.uint8],
    dream_frames: NDArray[np.uint8],
    *,
    captions: tuple[str, str] = ("simulator", "dream"),
    height: int = 192,
) -> list[Frame]:
    """Pictures of a recorded drive and its dream next to each other, with captions.

    Args:
        real_frames: ``(K, H, W, 3)`` uint8.
        dream_frames: ``(K, H, W, 3)`` uint8.
        captions: Above the left and the right picture.
        height: Pixels that each picture is enlarged to; its width follows.

    Returns:
        ``K`` frames, uint8 RGB, for :func:`wm_gym.agents.video.write_video`.

    Raises:
        DatasetError: The two have different shapes.
    """
    if real_frames.shape != dream_frames.shape:
        raise DatasetError(
            f"frames side by side must have one shape, but {real_frames.shape} and {dream_frames.shape} were given."
        )
    frame_height, frame_width = real_frames.shape[1:3]
    width = round(height * frame_width / frame_height)
    banner = np.full((_CAPTION_HEIGHT, 2 * width + _GAP, 3), _BACKGROUND, np.uint8)
    for caption, left in zip(captions, (0, width + _GAP), strict=True):
        cv2.putText(banner, caption, (left + 4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    gap = np.full((height, _GAP, 3), _BACKGROUND, np.uint8)
    pictures = []
    for pair in zip(real_frames, dream_frames, strict=True):
        # Nearest neighbour shows the pixels that the model sees, without inventing any.
        left, right = (cv2.resize(frame, (width, height), interpolation=cv2.INTER_NEAREST) for frame in pair)
        pictures.append(np.concatenate((banner, np.concatenate((left, gap, right), axis=1))).astype(np.uint8))
    return pictures
