"""Progress bars on standard error; where that is no terminal, a line now and then."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from tqdm import tqdm

LINE_INTERVAL_S = 30.0
"""Seconds between two lines where standard error is no terminal, as in a log file."""


class _Lines(tqdm):
    """Writes lines instead of a bar that moves: at most one in :data:`LINE_INTERVAL_S`, and one at the end."""

    _last_line = -math.inf

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write a line, if it is time."""
        now = time.monotonic()
        if now - self._last_line >= LINE_INTERVAL_S:
            self._last_line = now
            self.fp.write(f"{self if msg is None else msg}\n")
            self.fp.flush()

    def close(self) -> None:
        """Write the last line."""
        if not self.disable and self._last_line > -math.inf:
            self._last_line = -math.inf
            self.display()
        self.leave = False
        self.disable = True
        super().close()


def progress_bar(total: int, unit: str, description: str, *, enabled: bool = True, **further: Any) -> Any:
    """A bar of tqdm that counts to ``total``.

    Args:
        total: What it counts to.
        unit: What it counts.
        description: Written before it.
        enabled: Whether anything is shown.
        further: Arguments of tqdm, such as ``initial`` and ``unit_scale``.
    """
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    interval_s = 0.1 if is_terminal else LINE_INTERVAL_S
    return (tqdm if is_terminal else _Lines)(
        total=total,
        unit=unit,
        desc=description,
        disable=not enabled or sys.stderr is None,
        mininterval=interval_s,
        maxinterval=max(10.0, interval_s),
        **further,
    )
