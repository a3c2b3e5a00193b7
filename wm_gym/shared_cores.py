"""Company on the machine: fewer threads while other processes compute, too.

Every operation of a small model is shared out over PyTorch's threads, which wait for each other after each. Where
another process keeps a core busy, each of these waits lasts until the scheduler gives that thread its core again, and
the others spin meanwhile: two trainings side by side on two cores then go at a fifth of their speed each. On one thread
each they keep two thirds. To let the waiting threads sleep (``OMP_WAIT_POLICY=passive``) does not mend it: alone, 256
dreams are then as slow as on one thread, since waking a thread takes as long as an operation.
"""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path

import torch

SWITCH = "WM_GYM_SHARE_CORES"
"""An environment variable: ``0`` keeps the number of threads as it is."""
_FIXED_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables by which a user says how many threads there are to be."""
_INTERVAL_S = 1.0
_BUSY_SHARE = 0.5
"""A core that others use for more than this share of the time is theirs."""


class SharedCores:
    """Adapts PyTorch's number of threads to the cores that other processes leave.

    It is never more than at the beginning. What the user has set is left alone: a number of threads by
    ``OMP_NUM_THREADS`` or ``MKL_NUM_THREADS``, or another one than was set here, by ``torch.set_num_threads``. So it is
    where the system does not tell what its cores do (``/proc/stat``, on Linux).
    """

    def __init__(self) -> None:
        self._most = self._threads = torch.get_num_threads()
        self._cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        self._before = (time.monotonic(), _busy_seconds(self._cores), time.process_time())
        is_fixed = os.environ.get(SWITCH) == "0" or any(name in os.environ for name in _FIXED_BY)
        self._is_adaptive = self._most > 1 and not is_fixed and self._before[1] is not None

    def adapt(self) -> None:
        """Look, once in a while, what others do, and set the number of threads."""
        if not self._is_adaptive or time.monotonic() - self._before[0] < _INTERVAL_S:
            return
        now = (time.monotonic(), _busy_seconds(self._cores), time.process_time())
        passed, busy, own = ((new or 0.0) - (old or 0.0) for new, old in zip(now, self._before, strict=True))
        self._before = now
        if torch.get_num_threads() == self._threads:
            self._threads = threads_beside(max(0.0, busy - own) / passed, len(self._cores), self._most)
            torch.set_num_threads(self._threads)


@cache
def _shared() -> SharedCores:
    return SharedCores()


def adapt_threads() -> None:
    """Leave cores to other processes that compute; what computes for long calls it between pieces of work.

    It costs nothing but a look at the clock, as a rule. Dreams are the same to the last bit with any number of threads,
    trainings may differ in theirs; ``WM_GYM_SHARE_CORES=0`` keeps the number as it is. See :class:`SharedCores`.
    """
    _shared().adapt()


def threads_beside(others: float, cores: int, most: int) -> int:
    """Threads to take, of at most ``most``, where others keep so many of the cores busy, in the mean."""
    taken = int(others) + (others % 1 > _BUSY_SHARE)
    return most if taken == 0 else max(1, min(most, cores - taken))


def _busy_seconds(cores: set[int]) -> float | None:
    """Seconds for which the cores have computed since the system's start; ``None`` where it does not tell."""
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    total = 0
    for line in lines:
        name, *fields = line.split()
        if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _, _, irq, softirq = map(int, fields[:7])
            total += user + nice + system + irq + softirq
    return total / float(os.sysconf("SC_CLK_TCK"))
