"""The report of a run that may still go on: what its record says so far, made anew when the record has changed.

No model computes here and nothing drives, so that a training beside it loses little.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from wm_gym.agents.bundles.folder import MANIFEST
from wm_gym.agents.reports.page import NOTHING, Html, paragraph, section, table
from wm_gym.agents.reports.run_files import METRICS, PARTS, Run, read_record, state_of_record
from wm_gym.agents.reports.sections import (
    carla_section,
    curves_section,
    judge_section,
    provenance_section,
    returns_section,
    time_section,
)
from wm_gym.bundle import MANIFEST as MODEL_MANIFEST
from wm_gym.errors import BundleError, WMGymError

MOST_OF_THE_TIME = 0.05
"""Share of the time that drawing may take of one core."""


class LivePage(NamedTuple):
    """A report as it is now.

    Attributes:
        stamp: Of the record that it was made of; another one means another page.
        html: The last one that could be made.
        problem: Why it could not be made of this record, as a sentence.
    """

    stamp: str
    html: Html
    problem: str | None = None


class LiveReport:
    """The report of a run's folder, which need not be there yet.

    Args:
        folder: The folder; what is in it appears, changes and grows while others write.
        clock: Seconds.

    Raises:
        BundleError: It is a file, or the folder of a single training.
    """

    def __init__(self, folder: str | Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = Path(folder)
        if self._folder.exists() and not self._folder.is_dir():
            raise BundleError(f"{str(folder)!r} is a file; give the folder of a run.")
        if (self._folder / METRICS).exists():
            raise BundleError(
                f"{str(folder)!r} is the folder of a single training; give the one that it lies in as model/ or agent/."
            )
        self._clock = clock
        self._page: LivePage | None = None
        self._rests_until = 0.0

    def current(self) -> LivePage:
        """The page; made anew where the record has changed, unless the last one took so long that it is too early."""
        now = self._clock()
        if self._page is not None and now < self._rests_until:
            return self._page
        stamp = state_of_record(self._folder)  # before it is read: what changes meanwhile counts the next time
        if self._page is None or stamp != self._page.stamp:
            self._page = self._make(stamp)
            ended = self._clock()
            self._rests_until = ended + (ended - now) * (1 / MOST_OF_THE_TIME - 1)
        return self._page

    def _make(self, stamp: str) -> LivePage:
        try:
            return LivePage(stamp, live_report(read_record(self._folder)))
        except WMGymError as error:
            return LivePage(stamp, Markup() if self._page is None else self._page.html, str(error))


def live_report(run: Run) -> Html:
    """What the small files of a run say, as markup without a page around it."""
    if not any((run.folder / part).is_dir() for part in PARTS):
        return paragraph(
            f"There is nothing of a run in {str(run.folder)!r} yet, neither model/ nor agent/; what comes is shown.",
            "note",
        )
    parts = [
        _progress_section(run),
        curves_section(run),
        returns_section(run),
        carla_section(run),
        judge_section(run),
        time_section(run),
        provenance_section(run),
    ]
    return Markup("\n").join(part for part in parts if part is not None)


def _progress_section(run: Run) -> Html | None:
    """How far world model and agent have come."""
    rows = []
    for name, unit, found in (("model", "updates", run.model_rows), ("agent", "dream steps", run.agent_rows)):
        folder = run.folder / name
        if not folder.is_dir():
            continue
        done = [row[key] for row in found for key in ("update", "dream_steps") if isinstance(row.get(key), int)]
        is_finished = (folder / (MANIFEST if name == "agent" else MODEL_MANIFEST)).exists()
        rows.append(
            (
                "world model" if name == "model" else name,
                f"{max(done):,} {unit}" if done else NOTHING,
                _written(folder / METRICS),
                "finished" if is_finished else "not finished",
            )
        )
    return section("So far", table(("", "done", "last record", "state"), rows, words=(0, 3)))


def _written(file: Path) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(file.stat().st_mtime))
    except OSError:
        return NOTHING
