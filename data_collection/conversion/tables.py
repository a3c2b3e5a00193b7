"""Readers of recordings that are a table with an image a row: any CSV file, and the log of Udacity's simulator."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from wm_gym.actions import DRIVING_NAMES
from wm_gym.data_collection.conversion.column_names import COLUMN_NAMES, column_name, plain_name, spaced_name
from wm_gym.data_collection.conversion.pictures import PictureFinder
from wm_gym.data_collection.conversion.recording import Recording, RowCollector, number
from wm_gym.errors import DatasetError
from wm_gym.plain_files import read_text

UDACITY_LOG = "driving_log.csv"
CAMERAS = ("center", "left", "right")
_UDACITY_COLUMNS = (*CAMERAS, "steering", "throttle", "brake", "speed")
_UDACITY_TIME = re.compile(r"(\d{4})_(\d\d)_(\d\d)_(\d\d)_(\d\d)_(\d\d)_(\d{3})\D*$")

_DATE = re.compile(r"(?:(\d{4})[-/](\d\d)[-/](\d\d)[ Tt])?(\d\d:\d\d:\d\d)(?:[.,](\d+))? ?([Zz]|[+-]\d\d:?\d\d)?")
_UNITS = {"ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def read_table(path: Path) -> Recording:
    """A CSV file (or one with semicolons or tabs) with a header; the images lie beside it or below.

    Raises:
        DatasetError: The file cannot be read, lacks a column for images or steering, or has no row that can be used.
    """
    rows = _cells(path)
    header = next(iter(rows), None) or []
    places = _places(path, header)
    own = {header[place]: place for place in places.values()}
    others = {column_name(name): place for place, name in enumerate(header) if name and name not in own}
    numbers = {name: place for name, place in places.items() if name not in ("picture", "episode", "time")}
    columns = {**others, **numbers}
    needed = [name for name in (*DRIVING_NAMES, "reward") if name in numbers]
    collector = RowCollector(str(path), needed)
    finder = PictureFinder(path.parent)
    position, last_episode = -1, None
    for row in rows[1:]:
        position += 1
        if row is None or len(row) != len(header):
            collector.leave_out("broken", _unequal(position, row, header))
            continue
        episode = row[places["episode"]] if "episode" in places else None
        if episode != last_episode:
            position += 1  # no neighbour of the row before
        last_episode = episode
        time = _time(row[places["time"]], header[places["time"]]) if "time" in places else math.nan
        sought = row[places["picture"]]
        collector.add(
            position, finder.find(sought), {name: row[place] for name, place in columns.items()}, time, sought
        )
    return collector.finish()


def read_udacity(folder: Path, camera: str) -> Recording:
    """A folder with ``driving_log.csv`` and ``IMG/``.

    The simulator writes steering from -1 (left) to 1, pedals from 0 to 1, and the speed in miles an hour.

    Args:
        folder: The folder.
        camera: ``"center"``, ``"left"`` or ``"right"``.

    Raises:
        DatasetError: The log cannot be read, or has no row that can be used.
    """
    path = folder / UDACITY_LOG
    rows = _cells(path)
    first = [cell.lower() for cell in next((row for row in rows if row), [])]
    has_header = set(CAMERAS) & set(first)
    header = first if has_header else list(_UDACITY_COLUMNS)
    if not {camera, "steering", "throttle", "brake"} <= set(header):
        raise DatasetError(
            f"{path} has the header {','.join(header)!r}, but {','.join(_UDACITY_COLUMNS)} is wanted; use --from table."
        )
    collector = RowCollector(str(path), ("steering", "throttle", "brake"))
    finder = PictureFinder(folder)
    for position, row in enumerate(rows[1:] if has_header else rows):
        if row is None or len(row) != len(header):
            collector.leave_out("broken", _unequal(position, row, header))
            continue
        values = dict(zip(header, row, strict=True))
        pictured = values[camera]
        numbers = {column_name(name): value for name, value in values.items() if name not in CAMERAS}
        collector.add(position, finder.find(pictured), numbers, _udacity_time(pictured), pictured)
    return collector.finish()


def _udacity_time(picture: str) -> float:
    """Seconds, from a name such as ``center_2016_12_01_13_30_48_287.jpg``; NaN where it has no date."""
    found = _UDACITY_TIME.search(re.split(r"[\\/]", picture)[-1].rpartition(".")[0])
    if not found:
        return math.nan
    *date, milliseconds = map(int, found.groups())
    try:
        return datetime(*date, tzinfo=timezone.utc).timestamp() + milliseconds / 1000  # type: ignore[misc,arg-type]
    except ValueError:
        return math.nan


def _time(cell: str, column: str) -> float:
    """Seconds, from a number or a time of day, with a date or without (ISO 8601); NaN where it is neither."""
    found = _DATE.fullmatch(cell)
    if not found:
        value = number(cell)
        return value * _unit(column, value)
    *date, clock, fraction, zone = found.groups()
    moment = (*date, clock) if date[0] else ("2000", "01", "01", clock)
    try:
        seconds = datetime.strptime(" ".join(moment) + (zone or "Z").upper(), "%Y %m %d %H:%M:%S%z").timestamp()
    except ValueError:
        return math.nan
    return seconds + float(f"0.{fraction or 0}")


def _unequal(position: int, row: Sequence[str] | None, header: Sequence[str]) -> str:
    return "" if row is None else f"row {position + 1} has {len(row)} cells, but there are {len(header)} columns"


def _unit(name: str, value: float) -> float:
    """Seconds in one unit of a time column: as its name says, or by the size of a time since 1970."""
    for plain in (plain_name(name), spaced_name(name)):
        if (suffix := plain.rpartition("_")[2]) in _UNITS:
            return _UNITS[suffix]
    return next((unit for least, unit in ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3)) if value >= least), 1.0)


def _places(path: Path, header: Sequence[str]) -> dict[str, int]:
    """The place of each column that is known, by the name that it has here."""
    plain = [plain_name(name) for name in header]
    places = {}
    for known, names in COLUMN_NAMES.items():
        found = [place for place, name in enumerate(plain) if name in names]
        found = found or [place for place, name in enumerate(header) if spaced_name(name) in names]
        exact = [place for place in found if plain[place] == known]
        if len(exact or found) > 1 and known in ("picture", *DRIVING_NAMES, "reward", "time"):
            both = " and ".join(repr(header[place]) for place in (exact or found)[:2])
            raise DatasetError(f"{path} has two columns for {known}, {both}; rename the one that is not meant.")
        if exact or found:
            places[known] = (exact or found)[0]
    for known in ("picture", "steering"):
        if known not in places:
            raise DatasetError(
                f"{path} has the columns {', '.join(header) or 'none'}, and none of them is a {known}; name one "
                f"{COLUMN_NAMES[known][0]!r} or {COLUMN_NAMES[known][1]!r}."
            )
    return places


def _cells(path: Path) -> list[list[str] | None]:
    """The rows of a table, stripped; ``None`` for one that cannot be read, and none for empty lines.

    Each line is parsed by itself, so that a quote that is never closed breaks one row alone.
    """
    text = read_text(path, error=DatasetError, remedy="save it as a CSV file in UTF-8").removeprefix("\ufeff")
    lines = [line for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
    first = lines[0] if lines else ""
    delimiter = max(",;\t", key=first.count)
    if re.fullmatch("sep=[,;\t]", first, re.IGNORECASE):  # a word to Excel
        delimiter, lines = first[-1], lines[1:]
    rows: list[list[str] | None] = []
    for line in lines:
        try:
            # What a power cut leaves of a line is zeros.
            rows.append(None if "\0" in line else [c.strip() for c in next(csv.reader([line], delimiter=delimiter))])
        except (csv.Error, StopIteration):
            rows.append(None)
    return rows
