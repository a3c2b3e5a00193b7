"""How much of the machine's matrix multiplication an imagined step reaches.

An imagined step is matrix products with little between them: what the machine can do of these, measured in the same
run, is what a dream can be held against.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from wm_gym.bench.kinds import KINDS, DreamedModel, model_of_kind
from wm_gym.bench.random_models import random_model, random_step
from wm_gym.bench.table import Table
from wm_gym.bench.timing import median_seconds
from wm_gym.config import load_config
from wm_gym.world_model import WorldModel

_PEAK_SIZE = 2048
_TURNS = 8


def matmul_peak(dtype: torch.dtype, device: str, seconds: float) -> float:
    """The rate, in floating-point operations a second, of a large square matrix product."""
    return _rate(_large_product(dtype, device), seconds, device)


def measure_peak(configs: Sequence[str], batches: Sequence[int], seconds: float, *, device: str) -> Table:
    """Imagined steps a second of the model alone, and the share of the matrix-product peak that they reach.

    Measured are the model as it is and :class:`wm_gym.acceleration.AcceleratedModel` in fp32 and bf16. Only the
    operations of matrix products that a step carries out are counted: an accelerated ``rssm`` has fewer, because it
    makes no latent until a frame is wanted. The share of the fp32 peak is measured in turns with the step, that of
    the bf16 peak against one measurement at the beginning.

    Args:
        configs: Presets, or paths of YAML files; the models have random weights.
        batches: Dreams side by side.
        seconds: Time for each measurement.
        device: Where the models compute.
    """
    peaks: dict[str, list[float]] = {"fp32": [], "bf16": [matmul_peak(torch.bfloat16, device, seconds)]}
    rows: list[dict[str, Any]] = []
    product = _large_product(torch.float32, device)
    for config in configs:
        model = random_model(load_config(config).model, device)
        for precision in KINDS:
            dream = model_of_kind(model, precision)
            for batch in batches:
                step, operations = _step_and_operations(model, dream, batch)
                times, beside = _in_turns(step, product, seconds, device)
                peaks["fp32"].extend(beside)
                shares = [operations / time / peak for time, peak in zip(times, beside, strict=True)]
                rows.append(
                    {
                        "config": config,
                        "step": "accelerated" if precision else "as it is",
                        "precision": precision or "fp32",
                        "batch": batch,
                        "steps_per_s": batch / statistics.median(times),
                        "mflop_per_step": operations / batch / 1e6,
                        "share": statistics.median(shares),
                        "bf16_share": operations / statistics.median(times) / peaks["bf16"][0],
                    }
                )
    described = ", ".join(f"{name} {_range(found)} GFLOP/s" for name, found in peaks.items())
    return Table(
        "peak",
        "Imagined steps of the model alone, and the share of the matrix-product peak",
        (
            ("config", "config", ""),
            ("step", "step", ""),
            ("precision", "precision", ""),
            ("batch", "dreams", ","),
            ("steps_per_s", "steps/s", ",.0f"),
            ("mflop_per_step", "MFLOP/step", ".2f"),
            ("share", "share of the fp32 peak", ".2f"),
            ("bf16_share", "share of the bf16 peak", ".2f"),
        ),
        rows,
        (f"Peak of a {_PEAK_SIZE} x {_PEAK_SIZE} product in this run: {described}.",),
    )


def _range(rates: Sequence[float]) -> str:
    """In 1e9 operations a second."""
    least, most = min(rates) / 1e9, max(rates) / 1e9
    return f"{least:,.0f}" if f"{least:,.0f}" == f"{most:,.0f}" else f"{least:,.0f} to {most:,.0f}"


def _large_product(dtype: torch.dtype, device: str) -> Callable[[], object]:
    a, b = (torch.randn(_PEAK_SIZE, _PEAK_SIZE, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def _rate(product: Callable[[], object], seconds: float, device: str) -> float:
    return float(2 * _PEAK_SIZE**3 / median_seconds(product, seconds, device))


def _in_turns(
    step: Callable[[], object], product: Callable[[], object], seconds: float, device: str
) -> tuple[list[float], list[float]]:
    """Seconds of a step, and the rate of the large product beside them, in each of a few turns.

    Processors change their clock, and virtual ones share it with strangers: what is compared is measured side by side.
    """
    times, peaks = [], []
    for _ in range(_TURNS):
        times.append(median_seconds(step, seconds / _TURNS, device))
        peaks.append(_rate(product, seconds / _TURNS, device))
    return times, peaks


def _step_and_operations(model: WorldModel, dream: DreamedModel, batch: int) -> tuple[Callable[[], object], int]:
    """The imagined step of ``batch`` dreams of one kind of the model, and its operations in matrix products."""
    state, action, noise = random_step(model, batch)

    @torch.inference_mode()
    def step() -> object:
        return dream.imagine(state, action, noise)

    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            model.imagine(state, action, noise)
        operations = counter.get_total_flops()
        if dream is not model and not model.dynamics.reads_latent:
            with FlopCounterMode(display=False) as left_out:
                model.dynamics.shown(state)
            operations -= left_out.get_total_flops()
    return step, operations
