"""How much of the machine's matrix multiplication an imagined step reaches.

An imagined step is matrix products with little between them: what the machine can do of these, measured in the same
run, is what a dream can be held against.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from wm_gym.acceleration import AcceleratedModel, Precision
from wm_gym.bench.components import random_model, random_step
from wm_gym.bench.table import Table
from wm_gym.bench.timing import median_seconds
from wm_gym.config import load_config
from wm_gym.world_model import WorldModel

_PEAK_SIZE = 2048
_PEAK_TRIALS = 3


def matmul_peak(dtype: torch.dtype, device: str, seconds: float) -> float:
    """The best rate, in floating-point operations a second, of a large square matrix product."""
    a, b = (torch.randn(_PEAK_SIZE, _PEAK_SIZE, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    times = [
        median_seconds(lambda: torch.mm(a, b, out=out), seconds / _PEAK_TRIALS, device) for _ in range(_PEAK_TRIALS)
    ]
    return float(2 * _PEAK_SIZE**3 / min(times))


def measure_peak(configs: Sequence[str], batches: Sequence[int], seconds: float, *, device: str) -> Table:
    """Imagined steps a second of the model alone, and the share of the matrix-product peak that they reach.

    Measured are the model as it is and :class:`wm_gym.acceleration.AcceleratedModel` in fp32 and bf16. Only the
    operations of matrix products that a step carries out are counted: an accelerated ``rssm`` has fewer, because it
    makes no latent until a picture is wanted. All shares are of the fp32 peak, as measured before and after the step.

    Args:
        configs: Presets, or paths of YAML files; the models have random weights.
        batches: Dreams side by side.
        seconds: Time for each measurement.
        device: Where the models compute.
    """
    peaks: dict[str, list[float]] = {name: [matmul_peak(dtype, device, seconds)] for name, dtype in _DTYPES.items()}
    rows: list[dict[str, Any]] = []
    for config in configs:
        model = random_model(load_config(config).model, device)
        for kind, precision in _KINDS:
            for batch in batches:
                time, operations = _time_of_a_step(model, precision, batch, seconds, device)
                # Processors change their clock, and virtual ones share it with strangers: before and after each row.
                peaks["fp32"].append(matmul_peak(torch.float32, device, seconds / 2))
                rows.append(
                    {
                        "config": config,
                        "step": kind,
                        "precision": precision or "fp32",
                        "batch": batch,
                        "steps_per_s": batch / time,
                        "mflop_per_step": operations / batch / 1e6,
                        "share": operations / time / statistics.fmean(peaks["fp32"][-2:]),
                    }
                )
    described = ", ".join(f"{name} {_range(found)} GFLOP/s" for name, found in peaks.items())
    return Table(
        "peak",
        "Imagined steps of the model alone, and the share of the fp32 matrix-product peak",
        (
            ("config", "config", ""),
            ("step", "step", ""),
            ("precision", "precision", ""),
            ("batch", "dreams", ","),
            ("steps_per_s", "steps/s", ",.0f"),
            ("mflop_per_step", "MFLOP/step", ".2f"),
            ("share", "share of the peak", ".2f"),
        ),
        rows,
        (f"Peak of a {_PEAK_SIZE} x {_PEAK_SIZE} product in this run: {described}.",),
    )


def _range(rates: Sequence[float]) -> str:
    """In 1e9 operations a second."""
    least, most = min(rates) / 1e9, max(rates) / 1e9
    return f"{least:,.0f}" if f"{least:,.0f}" == f"{most:,.0f}" else f"{least:,.0f} to {most:,.0f}"


_KINDS: tuple[tuple[str, Precision | None], ...] = (
    ("as it is", None),
    ("accelerated", "fp32"),
    ("accelerated", "bf16"),
)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _time_of_a_step(
    model: WorldModel, precision: Precision | None, batch: int, seconds: float, device: str
) -> tuple[float, int]:
    """Seconds of one call for ``batch`` dreams, and its operations in matrix products."""
    state, action, noise = random_step(model, batch)
    dream = model if precision is None else AcceleratedModel(model, precision)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            model.imagine(state, action, noise)
        operations = counter.get_total_flops()
        if precision is not None and not model.dynamics.reads_latent:
            with FlopCounterMode(display=False) as left_out:
                model.dynamics.shown(state)
            operations -= left_out.get_total_flops()
        return median_seconds(lambda: dream.imagine(state, action, noise), seconds, device), operations
