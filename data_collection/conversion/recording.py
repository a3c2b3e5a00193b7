"""What every layout's reader yields: rows with an image, numbers and a time; and how rows become episodes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm_gym.actions import DRIVING_NAMES
from wm_gym.data_collection.conversion.driving_columns import driving_actions, rewards_of, scaled
from wm_gym.data_collection.conversion.pictures import is_whole_picture
from wm_gym.data_collection.conversion.reward_expression import RewardExpression
from wm_gym.data_collection.conversion.segment import Segment
from wm_gym.data_collection.datasets.episode import TIME_INFO
from wm_gym.errors import DatasetError
from wm_gym.simulator import MAX_FRAME_SIDE
from wm_gym.vector import Fields, bounded

_STEPS = (0.002, 2.0)  # seconds between two rows that may be right
_GAP_STEPS = 5.0
_PICTURES = "PNG, JPEG or WebP file"


@dataclass(frozen=True)
class Recording:
    """Rows in the order in which they were recorded. ``N`` counts rows.

    Attributes:
        name: What messages call it.
        pictures: ``N`` image files.
        positions: ``(N,)`` int64, the rows' numbers in the source: two rows are neighbours where these are, too.
        columns: ``(N,)`` float64 by name; NaN where a row has no value.
        times: ``(N,)`` float64 seconds, or ``None`` where they are not known.
        step_s: Seconds between two rows as the layout defines them, or 0.
        fields: Those columns that are the observation's vector.
        left_out: How many rows were left out, by the reason.
    """

    name: str
    pictures: list[Path]
    positions: NDArray[np.int64]
    columns: dict[str, NDArray[np.float64]]
    times: NDArray[np.float64] | None
    step_s: float = 0.0
    fields: Fields = ()
    left_out: Counter[str] = field(default_factory=Counter)


class NoRowsError(DatasetError):
    """A recording has no row that can be used."""


class RowCollector:
    """Gathers a recording's rows; those that cannot be used are counted.

    Args:
        name: What messages call the recording.
        needed: The columns that a row must have as finite numbers.
    """

    def __init__(self, name: str, needed: Sequence[str]) -> None:
        self.name, self.needed = name, needed
        self.left_out: Counter[str] = Counter()
        self._example = ""
        self._rows: list[tuple[int, Path, Mapping[str, float], float]] = []

    def leave_out(self, reason: str, example: str = "") -> None:
        """Count a row that is not used; the first ``example`` says what is wrong with it where no row can be used."""
        self.left_out[reason] += 1
        self._example = self._example or example

    def add(
        self, position: int, picture: Path | None, values: Mapping[str, Any], time: float = math.nan, sought: str = ""
    ) -> None:
        """Add a row, or count it where its image, which was ``sought`` by that path, or a needed number is missing."""
        numbers = {name: number(value) for name, value in values.items()}
        missing = [name for name in self.needed if not math.isfinite(numbers.get(name, math.nan))]
        if missing:
            cell = values.get(missing[0])
            told_cell = "nothing" if cell in (None, "") else f"{str(cell)[:80]!r}"
            self.leave_out("broken", f"row {position + 1} has {told_cell} for {missing[0]}, where a number is wanted")
        elif picture is None:
            self.leave_out("without an image", f"row {position + 1} names {sought!r}, and there is no such {_PICTURES}")
        elif not is_whole_picture(picture):
            self.leave_out(
                "with a damaged image", f"{picture} is no whole {_PICTURES} of at most {MAX_FRAME_SIDE} pixels a side"
            )
        else:
            self._rows.append((position, picture, numbers, time))

    def finish(self, *, step_s: float = 0.0, fields: Fields = ()) -> Recording:
        """The recording of the rows so far.

        Raises:
            NoRowsError: There are none.
        """
        if not self._rows:
            reasons = told(self.left_out) or "it has none"
            raise NoRowsError(
                f"{self.name} has no row that can be used ({reasons}); check its table and images"
                f"{self._example and ': '}{self._example}."
            )
        timed = np.isfinite([row[3] for row in self._rows])
        if 0.5 < timed.mean() < 1:  # a few cells are empty, and no reason to know no times at all
            self.left_out["without a time"] += int((~timed).sum())
            self._rows = [row for row, is_timed in zip(self._rows, timed, strict=True) if is_timed]
        names = list(dict.fromkeys(name for row in self._rows for name in row[2]))
        columns = {name: np.array([row[2].get(name, math.nan) for row in self._rows]) for name in names}
        times = np.array([row[3] for row in self._rows])
        return Recording(
            name=self.name,
            pictures=[row[1] for row in self._rows],
            positions=np.array([row[0] for row in self._rows], np.int64),
            columns={name: values for name, values in columns.items() if np.isfinite(values).any()},  # others are texts
            times=times if np.isfinite(times).all() else None,
            step_s=step_s,
            fields=fields,
            left_out=self.left_out,
        )


@dataclass(frozen=True)
class CutSettings:
    """How rows become episodes.

    Attributes:
        step_s: Seconds between two rows; ``None``: as the recording says.
        gap_s: A pause that is longer ends an episode; ``None``: one of 5 steps, 1 s at least.
        seconds: No episode is longer; 0: as long as they come.
        fill: Values of actions that the recording lacks, by name.
        scale: Factors for columns, by name, for example -1 for a steering that is positive to the left.
        reward: Formula of the rewards, or ``None``.
    """

    step_s: float | None = None
    gap_s: float | None = None
    seconds: float = 60.0
    fill: Mapping[str, float] = field(default_factory=dict)
    scale: Mapping[str, float] = field(default_factory=dict)
    reward: RewardExpression | None = None


def step_of(recordings: Sequence[Recording], settings: CutSettings, notify: Callable[[str], None]) -> float:
    """Seconds between two rows.

    Raises:
        DatasetError: The recordings do not say, or what they say cannot be right, and none were given.
    """
    by_time = [(r.name, np.diff(r.times)[np.diff(r.positions) == 1]) for r in recordings if r.times is not None]
    for name, pauses in by_time:
        _check_times_rise(name, pauses)
    differences = np.concatenate([pauses for _, pauses in by_time]) if by_time else np.empty(0)
    differences = differences[differences > 0]
    known = {r.step_s for r in recordings if r.step_s}
    if len(known) > 1 and settings.step_s is None:
        raise DatasetError(
            f"the recordings have steps of {min(known):g} and {max(known):g} s, but a dataset has one; convert them "
            "into datasets of their own."
        )
    # Digits beyond are noise of times since 1970.
    measured = float(f"{np.median(differences):.5g}") if len(differences) else min(known, default=0.0)
    if settings.step_s is not None:
        if measured and not 0.8 < measured / settings.step_s < 1.25:
            notify(f"the recording's own step is {measured:.3g} s; --step-s {settings.step_s:g} is taken instead.")
        return settings.step_s
    if not measured and any(r.times is not None for r in recordings):
        reasons = told(sum((r.left_out for r in recordings), Counter())) or "none is left out"
        raise DatasetError(
            f"{recordings[0].name} has no two rows that follow each other ({reasons}), so there is no step; check its "
            "table and images."
        )
    if not measured:
        raise DatasetError(
            f"{recordings[0].name} does not say the time between two rows; give it by --step-s, as in --step-s 0.1, or "
            "in a column 'time', in seconds or as in 2024-05-01T12:00:00.25."
        )
    if not _STEPS[0] <= measured <= _STEPS[1]:
        raise DatasetError(
            f"{recordings[0].name} has {measured:.3g} s between two rows by its times, which cannot be right; name "
            "their unit in the column's name (time_ms, time_us, time_ns), or give the step by --step-s."
        )
    return measured


def _check_times_rise(name: str, pauses: NDArray[np.float64]) -> None:
    """Refuse rows that are in no order, are there twice, or have times too coarse.

    Raises:
        DatasetError: Many times between neighbours are not above 0.
    """
    stuck = int((pauses <= 0).sum())
    if stuck > len(pauses) / 4:
        raise DatasetError(
            f"{name} has times that do not rise in {stuck} of {len(pauses)} rows; sort its rows by time and "
            "take out what is there twice, or, where times are too coarse, take out their column and give --step-s."
        )


def cut(recording: Recording, step_s: float, settings: CutSettings, notify: Callable[[str], None]) -> list[Segment]:
    """Cut a recording into episodes.

    An episode ends where a row is missing, where there is a pause, and where it is long enough. Of ``n`` rows come
    ``n`` frames and ``n - 1`` steps: what the last row's action led to is not among them.

    Raises:
        DatasetError: An action is missing or out of its range, or a reward is not finite.
    """
    name, positions = recording.name, recording.positions
    columns = scaled(name, recording.columns, settings.scale)
    actions, columns = driving_actions(name, columns, positions, settings.fill, notify)
    rewards = rewards_of(name, columns, positions, settings.reward)
    infos = {
        column: values.astype(np.float32)
        for column, values in columns.items()
        if column not in (*DRIVING_NAMES, "reward", *(entry.name for entry in recording.fields))
    }
    vectors = {
        entry.name: bounded((entry,), columns[entry.name])  # type: ignore[arg-type]
        for entry in recording.fields
    }
    segments, short = [], 0
    for low, high in _pieces(recording, step_s, settings):
        if high - low < 2:
            short += high - low
            continue
        steps = slice(low, high - 1)
        own = {column: values[steps] for column, values in infos.items()}
        if recording.times is not None:
            own[TIME_INFO] = (recording.times[steps] - recording.times[low]).astype(np.float32)
        segments.append(
            Segment(
                pictures=recording.pictures[low:high],
                actions=actions[steps],
                rewards=rewards[steps],
                vectors={field: values[low:high] for field, values in vectors.items()},
                infos=own,
            )
        )
    left_out = recording.left_out + Counter({"without a neighbour": short})
    if left_out.total():
        total = len(recording.pictures) + recording.left_out.total()
        notify(f"{recording.name}: {left_out.total()} of {total} rows are left out ({told(left_out)}).")
    return segments


def _pieces(recording: Recording, step_s: float, settings: CutSettings) -> list[tuple[int, int]]:
    """First row, and the one behind the last, of each episode."""
    breaks = np.diff(recording.positions) != 1
    if recording.times is not None:
        pauses = np.diff(recording.times)
        gap = settings.gap_s if settings.gap_s is not None else max(1.0, _GAP_STEPS * step_s)
        breaks |= (pauses > gap) | (pauses <= 0)
    elif settings.gap_s is not None:
        raise DatasetError(f"{recording.name} has no times, so --cut-gap cannot be used; use --cut-seconds.")
    ends = [*(np.flatnonzero(breaks) + 1).tolist(), len(recording.pictures)]
    longest = max(2, round(settings.seconds / step_s) + 1) if settings.seconds else len(recording.pictures)
    pieces: list[tuple[int, int]] = []
    start = 0
    for end in ends:
        # Equal parts, since a short rest would give no clip.
        count = math.ceil((end - start) / longest)
        edges = [start + (end - start) * part // count for part in range(count + 1)]
        pieces += pairwise(edges)
        start = end
    return pieces


def told(left_out: Counter[str]) -> str:
    """Counts in words: ``"2 broken, 1 without an image"``."""
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)


def number(value: Any) -> float:
    """A cell or a value as a number, with a point or a comma before its decimals; NaN where it is none."""
    text = str(value).strip().lower()
    if text in ("true", "false"):
        return float(text == "true")
    try:
        return float(text if "." in text else text.replace(",", ".", 1))
    except ValueError:
        return math.nan
