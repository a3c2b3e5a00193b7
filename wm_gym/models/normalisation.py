"""Group normalisation, a sum with a shortcut and SiLU: in one pass where a processor trains in bfloat16.

PyTorch makes three passes over maps that no longer fit the cache, and has no fast kernel of the first for bfloat16 maps
whose channels lie together. In the first phase of a training they took a third of an update (docs/scaling.md).
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

from wm_gym.models.compiled import at, compiled

_SOURCE = Path(__file__).with_suffix(".cpp")
_GROUP = 8
"""Channels of a group, which the compiled kernel takes at once."""


class NormSiLU(nn.GroupNorm):
    """Group normalisation with 8 channels a group where that divides evenly, else one group; then SiLU.

    Unlike batch normalisation it treats every frame alone, so a clip's frames do not see each other through it and
    a batch of one behaves as in training.

    Args:
        channels: Channels of the maps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels // _GROUP if channels % _GROUP == 0 else 1, channels)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``silu(normalised(x) + shortcut)``, both ``(B, C, H, W)``."""
        if self._is_for_kernel(x) and (shortcut is None or shortcut.dtype == x.dtype):
            if shortcut is not None:
                shortcut = shortcut.contiguous(memory_format=torch.channels_last)
            out: Tensor = _NormSiLU.apply(x, shortcut, self.weight, self.bias, self.eps)
            return out
        normalised = super().forward(x)
        return F.silu(normalised if shortcut is None else normalised + shortcut)

    def _is_for_kernel(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.dtype == torch.bfloat16
            and self.weight.dtype == torch.float32
            and x.shape[1] % _GROUP == 0
            and x.is_contiguous(memory_format=torch.channels_last)
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
            and compiled(_SOURCE) is not None
        )


class _NormSiLU(torch.autograd.Function):
    """By the compiled kernel; maps are bfloat16 with channels last, parameters float32."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes them by their places
        ctx: Any, x: Tensor, shortcut: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        out = torch.empty_like(x)
        moments = torch.empty(2, len(x), x.shape[1] // _GROUP)
        kernel = compiled(_SOURCE)
        assert kernel is not None
        kernel.norm_silu(*_sizes(x), ctypes.c_float(eps), *at(x, shortcut, weight, bias, out, moments))
        ctx.save_for_backward(x, shortcut, weight, bias, moments)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, shortcut, weight, bias, moments = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x = torch.empty_like(x)
        of_shortcut = of_x if shortcut is None else torch.empty_like(x)
        sums = torch.empty(len(x), 2, x.shape[1])
        kernel = compiled(_SOURCE)
        assert kernel is not None
        given = at(x, shortcut, weight, bias, moments, gradient)
        kernel.norm_silu_backward(*_sizes(x), *given, *at(of_x, of_shortcut, sums))
        of_bias, of_weight = sums.sum(0)
        return of_x, None if shortcut is None else of_shortcut, of_weight, of_bias, None


def _sizes(x: Tensor) -> list[ctypes.c_int64]:
    batch, channels, height, width = x.shape
    return [ctypes.c_int64(n) for n in (torch.get_num_threads(), batch, height * width, channels)]
