"""Parameters, time and memory of a world model's parts, and of whole clips.

The tables are those of the architecture guide (docs/guide.md).
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from wm_gym.bench.random_models import random_model, random_step
from wm_gym.bench.table import Table
from wm_gym.bench.timing import median_seconds, peak_memory_mb
from wm_gym.config import ModelConfig, load_config
from wm_gym.world_model import WorldModel

GUIDE_BATCH = 16
"""Batch of the guide's table of components."""
GUIDE_BATCHES = (1, 4, 8, 16, 32)
"""Batches of the guide's table of throughput."""
GUIDE_FRAMES = 10
"""Frames in a clip of that table."""
GUIDE_DEVICES = (1, 2, 4, 8)
"""Devices of the guide's table of scaling."""


def measure_components(configs: Sequence[str], seconds: float, *, device: str, limit_s: float) -> Table:
    """Parameters, time of one call and memory of encoder, dynamics and decoder, at the guide's batch of 16.

    Args:
        configs: Presets, or paths of YAML files.
        seconds: Time for each measurement.
        device: Where the models compute.
        limit_s: A call that takes longer is measured once instead of several times.
    """
    rows = [row for name in configs for row in _in_own_process(_component_rows, name, seconds, device, limit_s)]
    return Table(
        "components",
        f"Components at batch {GUIDE_BATCH}",
        (
            ("config", "config", ""),
            ("component", "component", ""),
            ("parameters", "parameters", ","),
            ("latency_ms", "time of a call (ms)", ",.1f"),
            ("memory_mb", "memory until then (MB)", ",.0f"),
        ),
        rows,
        ("The dynamics' call is an imagined step with its heads.", _MEMORY_NOTE),
    )


def measure_sequences(
    configs: Sequence[str], seconds: float, *, device: str, limit_s: float, batches: Sequence[int] = GUIDE_BATCHES
) -> Table:
    """Clips of ten frames a second, forward as in the guide's table and as updates of a training, and the memory.

    Args:
        configs: Presets, or paths of YAML files.
        seconds: Time for each measurement.
        device: Where the models compute.
        limit_s: A batch is left out where, from the one before, a call of it would take longer.
        batches: Clips side by side.
    """
    rows = [row for name in configs for row in _in_own_process(_sequence_rows, name, seconds, device, limit_s, batches)]
    return Table(
        "sequences",
        f"Clips of {GUIDE_FRAMES} frames",
        (
            ("config", "config", ""),
            ("batch", "batch", ","),
            ("sequences_per_s", "forward (clips/s)", ",.2f"),
            ("memory_mb", "memory (MB)", ",.0f"),
            ("bf16_sequences_per_s", "forward in bf16 (clips/s)", ",.2f"),
            ("updates_sequences_per_s", "training (clips/s)", ",.2f"),
            ("updates_memory_mb", "memory in training (MB)", ",.0f"),
        ),
        rows,
        (
            "Forward: ten frames encoded, nine steps followed with their heads, ten decoded, in fp32 and under "
            "autocast to bf16. Training: the configuration's loss without LPIPS, its gradient and an update by "
            "AdamW, in the precision that training takes here.",
            _MEMORY_NOTE,
            f"A dash: a call would take more than {limit_s:g} s, or does not fit in the GPU's memory.",
        ),
    )


_MEMORY_NOTE = (
    "Memory is the most that the process held until then, less what it held before the model was made; on a GPU "
    "the most that was allocated."
)


def _in_own_process(function: Callable[..., list[dict[str, Any]]], *arguments: Any) -> list[dict[str, Any]]:
    """Run where no earlier measurement has left memory behind."""
    context = multiprocessing.get_context("spawn")
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(1, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        return pool.submit(function, *arguments).result()


def _component_rows(name: str, seconds: float, device: str, limit_s: float) -> list[dict[str, Any]]:
    memory = _Memory(device)
    config = load_config(name).model
    model = random_model(config, device)
    counts = model.num_parameters()
    frames = _random_frames(config, (GUIDE_BATCH,), device)
    state, action, noise = random_step(model, GUIDE_BATCH)
    calls: dict[str, Callable[[], object]] = {
        "encoder": lambda: model.encode(frames),
        "dynamics": lambda: model.imagine(state, action, noise),
        "decoder": lambda: model.decode(state),
    }
    heads = counts["reward_head"] + counts["continuation_head"]
    rows = []
    with torch.inference_mode():
        for component, call in calls.items():
            latency = median_seconds(call, min(seconds, limit_s), device)
            parameters = counts[component] + (heads if component == "dynamics" else 0)
            rows.append(_row(name, memory, component=component, parameters=parameters, latency_ms=1000 * latency))
    total = sum(row["latency_ms"] for row in rows)
    rows.append(_row(name, memory, component="total", parameters=counts["total"], latency_ms=total))
    return rows


def _sequence_rows(
    name: str, seconds: float, device: str, limit_s: float, batches: Sequence[int]
) -> list[dict[str, Any]]:
    memory = _Memory(device)
    config = load_config(name, ("loss.perceptual=0",))
    model = random_model(config.model, device)
    rows: list[dict[str, Any]] = [{"config": name, "batch": batch} for batch in batches]
    for row, latency, held in _while_fast_enough(rows, lambda batch: _forward(model, batch), seconds, limit_s, memory):
        row.update(sequences_per_s=row["batch"] / latency, memory_mb=held)
    for row, latency, _ in _while_fast_enough(
        rows, lambda batch: _forward(model, batch, in_bf16=True), seconds, limit_s, memory
    ):
        row.update(bf16_sequences_per_s=row["batch"] / latency)

    # What this imports is memory that a training holds, and a forward pass does not.
    from wm_gym.bench.updates import SyntheticTraining

    training = SyntheticTraining(config, device)
    memory = _Memory(device, memory)
    for row, latency, held in _while_fast_enough(rows, training.update_of, seconds, limit_s, memory):
        row.update(updates_sequences_per_s=row["batch"] / latency, updates_memory_mb=held)
    return rows


def _while_fast_enough(
    rows: list[dict[str, Any]],
    call_of: Callable[[int], Callable[[], object]],
    seconds: float,
    limit_s: float,
    memory: _Memory,
) -> Iterator[tuple[dict[str, Any], float, float | None]]:
    """Time and memory of the call for each row's batch, until one takes longer than ``limit_s`` or does not fit."""
    latency_of_one = 0.0
    for row in rows:
        if latency_of_one * row["batch"] > limit_s:
            return
        try:
            latency = median_seconds(call_of(row["batch"]), seconds, memory.device)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()  # what the other measurements need
            return
        latency_of_one = latency / row["batch"]
        yield row, latency, memory.held_mb()


def _forward(model: WorldModel, batch: int, *, in_bf16: bool = False) -> Callable[[], object]:
    frames = _random_frames(model.config, (batch, GUIDE_FRAMES), str(model.device))
    actions = torch.zeros(batch, GUIDE_FRAMES - 1, model.simulator.action.dim, device=model.device)

    @torch.inference_mode()
    @torch.autocast(model.device.type, torch.bfloat16, enabled=in_bf16)
    def forward() -> None:
        states = model.filter(model.encode(frames), actions).states
        features = model.features(states)
        model.reward_head.mean(features)
        model.continuation_head.probability(features)
        model.decode(states)

    return forward


def _random_frames(config: ModelConfig, shape: tuple[int, ...], device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(*shape, 3, *config.frame_size, generator=generator).to(device) * 2 - 1


class _Memory:
    """What was held beyond what the process, or the GPU, held at the beginning."""

    def __init__(self, device: str, since: _Memory | None = None) -> None:
        self.device = device
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(device)
            self._before: float | None = 0.0
        else:
            self._before = peak_memory_mb(device) if since is None else since._before

    def held_mb(self) -> float | None:
        peak = peak_memory_mb(self.device)
        return None if peak is None or self._before is None else peak - self._before


def _row(config: str, memory: _Memory, **values: Any) -> dict[str, Any]:
    return {"config": config, **values, "memory_mb": memory.held_mb()}
