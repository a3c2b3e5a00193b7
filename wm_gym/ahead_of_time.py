"""Modules compiled ahead of time for the CPU, by PyTorch's AOTInductor.

The outcome is one library that takes tensors and gives tensors: no Python between its kernels and no guards before
them. A step of a few hundred microseconds takes up to twice as long under ``torch.compile``.
"""

from __future__ import annotations

import getpass
import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from wm_gym.by_rows import ByRows
from wm_gym.lock import exclusive_lock
from wm_gym.precision import single_precision

_EXAMPLE_BATCH = 128
"""Batch that is compiled for, where any is to work: PyTorch chooses its loops by it."""


class OtherInputsError(ValueError):
    """Inputs of another kind than what was compiled."""


class AheadOfTime:
    """A module without gradients, compiled for inputs like the given ones; it takes and gives float32 tensors.

    One row is computed by all threads together, more are shared out among them. It uses as many threads as PyTorch has
    now, or fewer where PyTorch has fewer at a call. The module's parameters become part of it.

    Args:
        module: On the CPU; its outputs are a tuple of tensors ``(B, ...)``.
        inputs: ``(B, ...)`` each.

    Raises:
        OtherInputsError: An input is not float32 on the CPU.
        RuntimeError: PyTorch is older than 2.6. What PyTorch raises where it cannot compile is passed on.
    """

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor]) -> None:
        if not hasattr(torch._inductor, "aoti_compile_and_package"):
            raise RuntimeError("compiling for a CPU needs PyTorch 2.6 or later")
        self._row_shapes = [tensor.shape[1:] for tensor in inputs]
        self._is_one_row = len(inputs[0]) == 1
        self._check(inputs)
        self._run: Callable[[list[Tensor]], list[Tensor]]
        rows = 1 if self._is_one_row else _EXAMPLE_BATCH
        # Dreams step in inference mode, whose tensors cannot be exported.
        with torch.inference_mode(False), torch.no_grad(), single_precision():
            example = tuple(torch.zeros(rows, *shape) for shape in self._row_shapes)
            batch = torch.export.Dim("batch", min=2)
            shapes = None if self._is_one_row else tuple({0: batch} for _ in example)
            exported = torch.export.export(_Contiguous(module), (example,), dynamic_shapes=shapes and (shapes,))
            with (
                tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
                exclusive_lock(_lock_path(), wait=True),
            ):
                package = torch._inductor.aoti_compile_and_package(
                    exported, package_path=str(Path(folder) / "step.pt2"), inductor_configs=self._options()
                )
                if self._is_one_row:
                    self._run = torch._inductor.aoti_load_package(package).loader.run
                else:
                    outputs = exported.module()(example)
                    self._run = ByRows(_unpacked(package, folder), example, outputs, torch.get_num_threads())

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The module's outputs.

        Raises:
            OtherInputsError: They are not of the kind that it was compiled for.
        """
        # The library reads memory without looking at what is there.
        self._check(inputs)
        return self._run([tensor.contiguous() for tensor in inputs])

    def _check(self, inputs: Sequence[Tensor]) -> None:
        rows = len(inputs[0])
        if (
            len(inputs) != len(self._row_shapes)
            or rows == 0
            or (rows == 1) != self._is_one_row
            or any(
                tensor.dtype != torch.float32 or tensor.shape != (rows, *shape) or tensor.device.type != "cpu"
                for tensor, shape in zip(inputs, self._row_shapes, strict=True)
            )
        ):
            kinds = ", ".join(f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}" for tensor in inputs)
            raise OtherInputsError(f"compiled for other inputs than {kinds}.")

    def _options(self) -> dict[str, bool | int]:
        """PyTorch's own, chosen for speed."""
        options: dict[str, bool | int] = {"freezing": True}
        if not self._is_one_row:
            options["cpp.threads"] = 1
        if hasattr(torch._inductor.config.cpp, "use_decompose_tanh"):
            # By way of exp, which is 2 % of a step of GRUs faster, and off by 1e-7.
            options["cpp.use_decompose_tanh"] = True
        return options


class _Contiguous(nn.Module):
    """Makes every output contiguous.

    Args:
        module: Takes tensors, and gives a sequence of tensors.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        return [output.contiguous() for output in self.module(*inputs)]


def _unpacked(package: str, folder: str) -> Path:
    """The library in a package, as a file of its own: one name would be loaded once, whatever model it is of."""
    with zipfile.ZipFile(package) as archive:
        (library,) = (name for name in archive.namelist() if name.endswith((".so", ".dylib", ".pyd")))
        return Path(archive.extract(library, folder))


def _lock_path() -> Path:
    """PyTorch names what it compiles by the code, whatever the parameters: two processes would write the same file."""
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    return folder / f"wm_gym_{user}.lock"
