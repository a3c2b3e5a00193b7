"""A step compiled ahead of time, run on blocks of rows: each thread has dreams of its own.

Threads that share every product of a step wait for each other after each, and read what the others wrote from caches
that may not be theirs. A thread that takes some of the rows through the whole step waits once, at the end.
"""

from __future__ import annotations

import ctypes
import functools
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("by_rows.cpp")
_FEWEST_ROWS = 4
"""Of a block; with fewer a second thread costs more than it brings."""


class _Rows(ctypes.Structure):
    """As in the C++ source."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dimensions", ctypes.c_int64),
        ("sizes", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
    )


class ByRows:
    """A compiled step of float32 tensors ``(B, ...)`` on the CPU.

    Args:
        library: The shared library that AOTInductor has made of the step.
        inputs: Examples, contiguous; their ``B`` does not matter.
        outputs: Likewise. The step makes them contiguous.
        threads: The most that take part; fewer do where PyTorch has fewer at a call, or rows are few.

    Raises:
        RuntimeError: The library refuses to be set up. What the C++ compiler says is passed on.
    """

    def __init__(self, library: Path, inputs: Sequence[Tensor], outputs: Sequence[Tensor], threads: int) -> None:
        self._threads = threads
        self._run = _runner()
        step = ctypes.CDLL(str(library))
        self._step_function = ctypes.cast(step.AOTInductorModelContainerRun, ctypes.c_void_p)
        self._step = ctypes.c_void_p()
        made = step.AOTInductorModelContainerCreateWithDevice(
            ctypes.byref(self._step), ctypes.c_size_t(threads), b"cpu", None
        )
        if made != 0:
            raise RuntimeError("the compiled step could not be set up")
        weakref.finalize(self, step.AOTInductorModelContainerDelete, self._step)
        self._inputs, self._outputs = _described(inputs), _described(outputs)
        self._row_shapes = [output.shape[1:] for output in outputs]
        # Python's lock is not held while the step runs; the descriptions are one call's at a time.
        self._lock = threading.Lock()

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs for contiguous ``inputs``.

        Raises:
            RuntimeError: A block failed; PyTorch has written the reason to the standard error stream.
        """
        rows = len(inputs[0])
        blocks = max(1, min(self._threads, torch.get_num_threads(), rows // _FEWEST_ROWS))
        outputs = [torch.empty(rows, *shape, dtype=torch.float32) for shape in self._row_shapes]
        with self._lock:
            for described, tensors in ((self._inputs, inputs), (self._outputs, outputs)):
                for rows_of, tensor in zip(described, tensors, strict=True):
                    rows_of.data = tensor.data_ptr()
            failed = self._run(
                self._step_function, self._step, blocks, rows, len(inputs), self._inputs, len(outputs), self._outputs
            )
        if failed:
            raise RuntimeError("the compiled step failed")
        return outputs


def _described(tensors: Sequence[Tensor]) -> ctypes.Array[_Rows]:
    described = (_Rows * len(tensors))()
    for rows_of, tensor in zip(described, tensors, strict=True):
        numbers = ctypes.c_int64 * tensor.dim()
        rows_of.dimensions = tensor.dim()
        rows_of.sizes, rows_of.strides = numbers(*tensor.shape), numbers(*tensor.stride())
    return described


@functools.cache
def _runner() -> ctypes._NamedFuncPointer:
    """The compiled C++ source, by the compiler and with the options that PyTorch takes for the step itself."""
    from torch._inductor.cpp_builder import CppBuilder, CppTorchOptions

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        builder = CppBuilder(_SOURCE.stem, str(_SOURCE), CppTorchOptions(), output_dir=folder)
        builder.build()
        function = ctypes.CDLL(builder.get_target_file_path()).run_by_rows
    pointer, count = ctypes.c_void_p, ctypes.c_int
    function.argtypes = (pointer, pointer, count, ctypes.c_int64, count, pointer, count, pointer)
    return function
