"""Whether an exported file computes what its part computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wm_gym.errors import ExportError
from wm_gym.export.back_ends import LoadedFile
from wm_gym.export.parts import Part, Tensors
from wm_gym.models.dynamics.rssm import CategoricalDraw
from wm_gym.precision import without_tf32

TOLERANCE = 1e-4
"""Largest absolute difference of any output, in float32."""
DRAW_MARGIN = 1e-5
"""A draw that is nearer than this to another class may fall on either: rounding moves a probability by about 1e-6."""
BATCH_SIZES = (1, 5)
ROWS = 10
"""Rows of each batch size that are compared."""
_MOST_ROWS = 1000


@dataclass(frozen=True)
class CheckResult:
    """What the comparison with the eager part found.

    Attributes:
        max_difference: Largest absolute difference of any output, over the compared rows.
        compared: Rows whose outputs were compared, over all batch sizes.
        undecided: Further rows in which a categorical draw lay within ``DRAW_MARGIN`` of another class.
        undecided_other: How many of these rows came out as another class, or differ by more than the tolerance.
        batch_sizes: What was tried.
        seed: Of the inputs.
    """

    max_difference: float
    compared: int
    undecided: int
    undecided_other: int
    batch_sizes: tuple[int, ...]
    seed: int

    def describe(self) -> dict[str, Any]:
        """As a record of JSON values."""
        return {**asdict(self), "tolerance": TOLERANCE, "draw_margin": DRAW_MARGIN}


@torch.inference_mode()
def check_file(part: Part, loaded: LoadedFile, seed: int, *, label: str) -> CheckResult:
    """Compare a loaded file with its part on seeded random inputs, for several batch sizes.

    Stochastic dynamics draw classes, and where a draw lies on the bound between two, rounding decides. Such rows are
    told by the eager part's own probabilities, and counted instead of compared. In all others every draw must be the
    same: another class would change outputs by about 1.

    Args:
        part: What was exported.
        loaded: The file, loaded again.
        seed: Of the inputs.
        label: What to call the file in an error.

    Raises:
        ExportError: An output has another shape or dtype, or differs by more than ``TOLERANCE``.
    """
    generator = torch.Generator().manual_seed(seed)
    worst, compared, undecided, undecided_other = 0.0, 0, 0, 0
    for size in BATCH_SIZES:
        rows = drawn = 0
        while rows < ROWS:
            if drawn >= _MOST_ROWS:
                raise ExportError(
                    f"{label} cannot be checked: of {drawn} random inputs, {drawn - rows} led to draws between two "
                    "classes; train the model before exporting it."
                )
            inputs = part.draw_inputs(size, generator)
            with without_tf32():
                expected, margins = _run_eagerly(part, inputs)
                outputs = loaded(inputs)
            differences = _differences(part, expected, outputs, label)  # (B,)
            decided = margins >= DRAW_MARGIN
            differs = ~(differences <= TOLERANCE)  # true for NaN too
            if (differs & decided).any():
                _refuse(part, expected, outputs, decided, label)
            worst = max([worst, *differences[decided].tolist()])
            undecided += int((~decided).sum())
            undecided_other += int((differs & ~decided).sum())
            rows += int(decided.sum())
            drawn += size
        compared += rows
    return CheckResult(worst, compared, undecided, undecided_other, BATCH_SIZES, seed)


def _run_eagerly(part: Part, inputs: Tensors) -> tuple[Tensors, Tensor]:
    """The part's outputs on the CPU, and for each row the smallest margin of any draw ``(B,)`` (infinite without)."""
    margins = [torch.full((inputs[0].shape[0],), torch.inf)]
    with _margins_recorded(part.module, margins):
        outputs = part.module(*inputs)
    return tuple(output.cpu() for output in outputs), torch.stack(margins).amin(0)


@contextmanager
def _margins_recorded(module: nn.Module, margins: list[Tensor]) -> Iterator[None]:
    def record(draw: nn.Module, given: tuple[Any, ...], _: Any) -> None:
        margins.append(CategoricalDraw.margin(*given).amin(-1).cpu())

    draws = [inner for inner in module.modules() if isinstance(inner, CategoricalDraw)]
    hooks = [draw.register_forward_hook(record) for draw in draws]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _differences(part: Part, expected: Tensors, outputs: Tensors, label: str) -> Tensor:
    """Largest absolute difference of any output in each row ``(B,)``."""
    if len(outputs) != len(expected):
        raise ExportError(f"{label} gives {len(outputs)} outputs instead of {len(expected)}; please report this.")
    differences = []
    for spec, wanted, given in zip(part.outputs, expected, outputs, strict=True):
        if given.shape != wanted.shape or given.dtype != wanted.dtype:
            raise ExportError(
                f"{label} gives {spec.name!r} as {given.dtype} of shape {tuple(given.shape)} instead of {wanted.dtype} "
                f"of shape {tuple(wanted.shape)}; please report this."
            )
        differences.append((given - wanted).abs().flatten(1).amax(1) if given.dim() > 1 else (given - wanted).abs())
    return torch.stack(differences).amax(0)


def _refuse(part: Part, expected: Tensors, outputs: Tensors, decided: Tensor, label: str) -> None:
    """Name the output that differs most."""
    worst = {
        spec.name: float((given - wanted)[decided].abs().max())
        for spec, wanted, given in zip(part.outputs, expected, outputs, strict=True)
    }
    name = max(worst, key=lambda key: worst[key] if worst[key] == worst[key] else float("inf"))
    raise ExportError(
        f"{label} differs from the model by {worst[name]:.2g} in {name!r}, but at most {TOLERANCE:g} is allowed, so it "
        "was not kept; try another version of its back end, or another --format."
    )
