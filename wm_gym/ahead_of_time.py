"""Modules compiled ahead of time for the CPU, by PyTorch's AOTInductor.

The outcome is one library that takes tensors and gives tensors: no Python between its kernels and no guards before
them. A step of a few hundred microseconds takes up to twice as long under ``torch.compile``.
"""

from __future__ import annotations

import getpass
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from wm_gym.lock import exclusive_lock

_EXAMPLE_BATCH = 256
"""Batch that is compiled for, where any is to work: PyTorch chooses by it what two threads share."""


class OtherInputsError(ValueError):
    """Inputs of another kind than what was compiled."""


class AheadOfTime:
    """A module without gradients, compiled for inputs like the given ones; it takes and gives tensors.

    It is compiled for as many threads as PyTorch has now. The module's parameters become part of it.

    Args:
        module: On the CPU; its outputs are a tuple of tensors.
        inputs: ``(B, ...)`` each.
        any_rows: Whether it is to take any ``B`` from two up, or this one alone.

    Raises:
        RuntimeError: PyTorch is older than 2.6. What PyTorch raises where it cannot compile is passed on.
    """

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor], *, any_rows: bool) -> None:
        if not hasattr(torch._inductor, "aoti_compile_and_package"):
            raise RuntimeError("compiling for a CPU needs PyTorch 2.6 or later")
        self._rows = None if any_rows else len(inputs[0])
        self._expected = [(tensor.dtype, tensor.shape[1:]) for tensor in inputs]
        rows = self._rows or _EXAMPLE_BATCH
        # Dreams step in inference mode, whose tensors cannot be exported.
        with torch.inference_mode(False), torch.no_grad():
            example = tuple(torch.zeros(rows, *shape, dtype=dtype) for dtype, shape in self._expected)
            batch = torch.export.Dim("batch", min=2)
            shapes = tuple({0: batch} for _ in example) if any_rows else None
            exported = torch.export.export(module, example, dynamic_shapes=shapes)
            with tempfile.TemporaryDirectory() as folder, exclusive_lock(_lock_path(), wait=True):
                package = torch._inductor.aoti_compile_and_package(
                    exported, package_path=str(Path(folder) / "step.pt2"), inductor_configs=_options()
                )
                self._library = torch._inductor.aoti_load_package(package).loader

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The module's outputs.

        Raises:
            OtherInputsError: They are not of the kind that it was compiled for.
        """
        # The library reads memory without looking at what is there.
        rows = len(inputs[0])
        if (
            len(inputs) != len(self._expected)
            or (rows < 2 if self._rows is None else rows != self._rows)
            or any(
                tensor.dtype != dtype or tensor.shape != (rows, *shape) or tensor.device.type != "cpu"
                for tensor, (dtype, shape) in zip(inputs, self._expected, strict=True)
            )
        ):
            kinds = ", ".join(f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}" for tensor in inputs)
            raise OtherInputsError(f"compiled for other inputs than {kinds}.")
        outputs: list[Tensor] = self._library.run([tensor.contiguous() for tensor in inputs])
        return outputs


def _options() -> dict[str, bool]:
    """PyTorch's own, chosen for speed."""
    options = {"freezing": True}
    if hasattr(torch._inductor.config.cpp, "use_decompose_tanh"):
        # By way of exp, which is 2 % of a step of GRUs faster, and off by 1e-7.
        options["cpp.use_decompose_tanh"] = True
    return options


def _lock_path() -> Path:
    """PyTorch names what it compiles by the code, whatever the parameters: two processes would write the same file."""
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    return folder / f"wm_gym_{user}.lock"
