"""How long one call of a part takes: eager, and from each of its files."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from wm_gym.export.back_ends import LoadedFile
from wm_gym.export.parts import Part

EAGER = "eager"
_TURNS = 10
_SETTLING_CALLS = 3
_WARM_UP_CALLS = 20
_LONGEST_S = 20.0
"""Time for the measured calls of one runner and batch size: of slow parts there are fewer calls."""


def measure_part(
    part: Part, runners: Mapping[str, LoadedFile], batch_sizes: Iterable[int], *, repeats: int, seed: int
) -> list[dict[str, Any]]:
    """Measure one part.

    The runners take turns, ten turns each, so that what else the machine does meets all of them; the first calls of a
    turn are not counted. Inputs lie ready in the form that the runner takes, and a call ends when its outputs are
    there, on the runner's own device.

    Args:
        part: Gives the inputs.
        runners: Back end to what it runs; ``"eager"`` among them.
        batch_sizes: Rows in one call.
        repeats: Measured calls of each runner and batch size, rounded up to whole turns; fewer, though at least one in
            each turn, where they would take longer than 20 seconds.
        seed: Of the inputs.

    Returns:
        One row for each batch size and runner: ``part``, ``batch``, ``back_end``, ``median_ms``, ``low_ms`` and
        ``high_ms`` (quartiles), ``calls``, and ``speedup``, the eager median over its own.
    """
    rows = []
    for size in batch_sizes:
        with torch.inference_mode():
            inputs = part.draw_inputs(size, torch.Generator().manual_seed(seed))
        times = _times({name: (runner, runner.prepare(inputs)) for name, runner in runners.items()}, repeats)
        medians = {name: statistics.median(values) for name, values in times.items()}
        for name, values in times.items():
            low, _, high = statistics.quantiles(values, n=4)
            rows.append(
                {
                    "part": part.name,
                    "batch": size,
                    "back_end": name,
                    "median_ms": 1000 * medians[name],
                    "low_ms": 1000 * low,
                    "high_ms": 1000 * high,
                    "calls": len(values),
                    "speedup": medians[EAGER] / medians[name],
                }
            )
    return rows


def render_markdown(result: Mapping[str, Any]) -> str:
    """The measurements as a Markdown table with machine, versions and settings below."""
    rows = result["rows"]
    back_ends = list(dict.fromkeys(row["back_end"] for row in rows))
    heads = [EAGER if name == EAGER else f"{name} (times eager)" for name in back_ends]
    lines = [
        "| part | batch | " + " | ".join(f"{head}, ms" for head in heads) + " |",
        "| --- | ---: |" + " ---: |" * len(back_ends),
    ]
    for part, size in dict.fromkeys((row["part"], row["batch"]) for row in rows):
        found = {row["back_end"]: row for row in rows if (row["part"], row["batch"]) == (part, size)}
        cells = [_cell(found[name]) for name in back_ends]
        lines.append(f"| {part} | {size} | " + " | ".join(cells) + " |")
    lines += ["", "Median milliseconds of one call in float32; in brackets, how many times as fast as eager.", ""]
    for title in ("settings", "machine", "versions"):
        lines.append(f"{title.capitalize()}: {', '.join(f'{name} {value}' for name, value in result[title].items())}.")
    return "\n".join(lines)


def _times(runners: Mapping[str, tuple[LoadedFile, Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, by runner."""
    per_turn = {}
    for name, (runner, prepared) in runners.items():
        warm_s = [_seconds(runner, prepared)]
        while len(warm_s) < _WARM_UP_CALLS and sum(warm_s) < _LONGEST_S / _TURNS:
            warm_s.append(_seconds(runner, prepared))
        affordable = int(_LONGEST_S / _TURNS / max(min(warm_s), 1e-9))
        per_turn[name] = max(1, min(-(-repeats // _TURNS), affordable))
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(_TURNS):
        for name, (runner, prepared) in runners.items():
            for _ in range(min(_SETTLING_CALLS, per_turn[name])):
                runner.call(prepared)
            times[name] += [_seconds(runner, prepared) for _ in range(per_turn[name])]
    return times


def _seconds(runner: LoadedFile, prepared: Any) -> float:
    started = time.perf_counter()
    runner.call(prepared)
    return time.perf_counter() - started


def _cell(row: Mapping[str, Any]) -> str:
    time_ms = f"{row['median_ms']:.3f}"
    return time_ms if row["back_end"] == EAGER else f"{time_ms} ({row['speedup']:.2f})"
