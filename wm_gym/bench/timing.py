"""Time and memory of calls."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

_WARM_UP_CALLS = 3
_FEWEST_CALLS = 3


def median_seconds(call: Callable[[], object], seconds: float, device: str = "cpu") -> float:
    """The median time of a call, over at least three calls and about ``seconds`` in all; a few before do not count."""
    for _ in range(_WARM_UP_CALLS):
        started = time.perf_counter()
        call()
        _wait(device)
        if time.perf_counter() - started > seconds:
            break  # one call is longer than the measurement: it is warm enough
    times: list[float] = []
    while len(times) < _FEWEST_CALLS or sum(times) < seconds:
        started = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def steps_per_second(step: Callable[[], int], seconds: float) -> float:
    """Steps a second of ``step``, which says how many it took; ten calls before do not count."""
    for _ in range(10):
        step()
    steps = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        steps += step()
    return steps / (time.perf_counter() - started)


def peak_memory_mb(device: str) -> float | None:
    """The most memory that this process, or its GPU, has held until now, in MB; ``None`` where nobody tells."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.exists():  # getrusage of a process begins with what its parent had held
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return None


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
