"""Single precision, whatever a program or the device has made PyTorch's default."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def single_precision() -> Iterator[None]:
    """Make new tensors float32 within, as models are stored and trained; also a decorator."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Keep convolutions on CUDA from rounding their inputs to 10 bits, as they do unless told otherwise.

    A traced convolution keeps what held when it was traced.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
