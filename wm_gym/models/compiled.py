"""The C++ kernels of layers, compiled within a second where a processor first needs them."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor


@functools.cache
def compiled(source: Path) -> ctypes.CDLL | None:
    """The compiled source; ``None`` where there is no compiler, or where its threads would not be PyTorch's own.

    Two pools of threads that take turns wait for each other's cores.
    """
    if sys.platform != "linux" or not (Path(torch.__file__).parent / "lib" / "libgomp.so.1").exists():
        return None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        library = Path(folder) / f"{source.stem}.so"
        options = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-o", str(library))
        try:
            subprocess.run(
                [os.environ.get("CXX", "c++"), str(source), *options], check=True, capture_output=True, timeout=60.0
            )
            return ctypes.CDLL(str(library))
        except (OSError, subprocess.SubprocessError):
            return None


def at(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    """Where their numbers lie, for a call of a kernel; ``None`` is a null pointer."""
    return [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]
