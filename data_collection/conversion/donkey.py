"""Reader of Donkey Car's tubs, version 2: ``manifest.json``, ``catalog_*.catalog`` and ``images/``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wm_gym.data_collection.conversion.column_names import column_name
from wm_gym.data_collection.conversion.pictures import PictureFinder, natural_order
from wm_gym.data_collection.conversion.recording import Recording, RowCollector, number
from wm_gym.errors import DatasetError
from wm_gym.plain_files import NotPlainError, parse_json, read_text

MANIFEST = "manifest.json"
_IMAGE = "cam/image_array"
# Who steers and who accelerates, by the record's mode.
_DRIVERS = {"local": ("pilot", "pilot"), "local_angle": ("pilot", "user")}


def read_donkey(folder: Path) -> Recording:
    """A tub: a row a record that was not deleted, with the action of whoever drove, user or pilot.

    The angle goes from -1, full left, to 1. The throttle goes from -1 to 1; below 0 it brakes, then drives backwards,
    and counts as the brake.

    Raises:
        DatasetError: The manifest or a catalog cannot be read, or there is no record that can be used.
    """
    deleted = _deleted(folder / MANIFEST)
    collector = RowCollector(str(folder), ("steering", "throttle"))
    finder = PictureFinder(folder / "images")
    position = -1
    for catalog in natural_order(folder.glob("catalog_*.catalog")):
        text = read_text(catalog, error=DatasetError, remedy="copy the tub from the car again")
        for line in text.splitlines():
            if not line.strip("\0 \t"):
                continue
            position += 1
            try:
                record = parse_json(line)
            except NotPlainError:
                record = None
            index = record.get("_index", position) if isinstance(record, dict) else None
            if not isinstance(record, dict) or not isinstance(index, int):
                collector.leave_out("broken")
                continue
            position = index
            if index in deleted:
                collector.leave_out("deleted")
                continue
            picture = record.get(_IMAGE)
            found = finder.find(picture) if isinstance(picture, str) else None
            time = number(record.get("_timestamp_ms", math.nan)) / 1000
            collector.add(index, found, _numbers(record), time, str(picture))
    return collector.finish()


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    steers, accelerates = _DRIVERS.get(str(record.get("user/mode")), ("user", "user"))
    numbers = {
        column_name(name): value
        for name, value in record.items()
        if isinstance(value, int | float) and not name.startswith("_")
    }
    # Where the pilot drove and was not recorded, the user's stick is not what moved the car.
    return {**numbers, "steering": record.get(f"{steers}/angle"), "throttle": record.get(f"{accelerates}/throttle")}


def _deleted(path: Path) -> set[int]:
    """The indices of the records that were deleted; the manifest's last line has them."""
    text = read_text(path, error=DatasetError, remedy="copy the tub from the car again")
    for line in reversed(text.splitlines()):
        try:
            content = parse_json(line)
        except NotPlainError:
            continue
        if isinstance(content, dict) and isinstance(content.get("deleted_indexes"), list):
            return {index for index in content["deleted_indexes"] if isinstance(index, int)}
    raise DatasetError(
        f"{path} has no line with deleted_indexes, so it is no manifest of a tub of version 2; convert an older tub "
        "with Donkey's own `donkey` tools first."
    )
