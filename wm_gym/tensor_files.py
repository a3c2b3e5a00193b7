"""The one way in which tensors come from files: what a header declares is compared before any tensor is made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from wm_gym.errors import WMGymError, reason_of
from wm_gym.plain_files import check_tensor_file

_NAMES_OF_TYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_shapes(path: Path, *, error: type[WMGymError], remedy: str) -> dict[str, Tensor]:
    """What a safetensors file declares: tensors without contents (on the device ``meta``), by name.

    Raises:
        WMGymError: ``error``, where the file cannot be read.
    """
    with _opened(path, error, remedy) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
        return {
            name: torch.empty(part.get_shape(), dtype=_NAMES_OF_TYPES[part.get_dtype()], device="meta")
            for name, part in slices.items()
        }


def read_tensors(path: Path, *, error: type[WMGymError], remedy: str) -> dict[str, Tensor]:
    """All tensors of a safetensors file, by name; see :func:`check_fit` for what to compare first.

    Raises:
        WMGymError: ``error``, where the file cannot be read.
    """
    with _opened(path, error, remedy) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping


@contextmanager
def _opened(path: Path, error: type[WMGymError], remedy: str) -> Iterator[Any]:
    try:
        check_tensor_file(path)
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, ValueError, KeyError, RuntimeError, OverflowError, SafetensorError) as problem:
        raise error(f"{str(path)!r} is missing or damaged ({reason_of(problem)}); {remedy}.") from problem


def check_fit(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, error: type[WMGymError], file: Path, owner: str
) -> None:
    """Compare names, shapes and dtypes; floating-point tensors are saved in single precision.

    Args:
        found: Tensors, with contents or without.
        wanted: What they have to be like.
        error: What to raise.
        file: Where ``found`` comes from.
        owner: What says how they have to be, for example ``"its config.yaml"``.

    Raises:
        WMGymError: ``error``, where they differ.
    """
    if found.keys() != wanted.keys():
        name = sorted(found.keys() ^ wanted.keys())[0]
        raise error(
            f"{str(file)!r} does not fit {owner}: {name!r} is {'unknown' if name in found else 'missing'}; the two "
            "come from different trainings."
        )
    for name, tensor in wanted.items():
        # PyTorch's default may be another one in this process.
        dtype = torch.float32 if tensor.dtype == torch.float64 else tensor.dtype
        if found[name].shape != tensor.shape or found[name].dtype != dtype:
            raise error(
                f"{str(file)!r} does not fit {owner}: {name!r} has shape {tuple(found[name].shape)} and type "
                f"{found[name].dtype}, but {tuple(tensor.shape)} and {dtype} are needed."
            )


def load_parameters(
    module: nn.Module, tensors: Mapping[str, Tensor], *, error: type[WMGymError], file: Path, owner: str
) -> None:
    """Let a module take over saved parameters, which must be numbers and fit as for :func:`check_fit`.

    Raises:
        WMGymError: ``error``, where they do not; the module is left as it was.
    """
    check_fit(tensors, module.state_dict(), error=error, file=file, owner=owner)
    learned = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, tensor in tensors.items():
        if not holds_numbers(tensor, infinite=name not in learned):  # a buffer may say "without limit"
            raise error(f"{str(file)!r} is damaged: {name!r} holds values that are no numbers; restore it from a copy.")
    module.load_state_dict(dict(tensors))


def holds_numbers(tensor: Tensor, *, infinite: bool = False) -> bool:
    """Whether no value is NaN, nor infinite unless that is allowed."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    bounds = [float(bound) for bound in tensor.aminmax()]  # both are NaN where a value is
    return not any(math.isnan(bound) or (math.isinf(bound) and not infinite) for bound in bounds)
