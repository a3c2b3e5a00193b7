"""Camera frames: uint8 ``(H, W, 3)`` RGB outside the model, float ``(3, H, W)`` in [-1, 1] inside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Frame = NDArray[np.uint8]


def resize_frame(frame: Frame, height: int, width: int) -> Frame:
    """Resize one frame ``(H, W, 3)`` uint8; area averaging when shrinking, so that thin lines stay visible."""
    if frame.shape[:2] == (height, width):
        return np.ascontiguousarray(frame)
    shrinks = height <= frame.shape[0] and width <= frame.shape[1]
    resized = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


def frames_to_tensor(frames: Tensor) -> Tensor:
    """``(..., H, W, 3)`` uint8 to ``(..., 3, H, W)`` float32 in [-1, 1]."""
    return frames.movedim(-1, -3).float().div_(127.5).sub_(1.0)


def tensor_to_frames(images: Tensor) -> Tensor:
    """``(..., 3, H, W)`` float in [-1, 1] to ``(..., H, W, 3)`` uint8, rounded to the nearest level."""
    import torch

    levels = images.float().add(1.0).mul(127.5).round_().clamp_(0, 255)
    return levels.to(torch.uint8).movedim(-3, -1)
