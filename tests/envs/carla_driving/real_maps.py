"""Maps of CARLA's own towns, which lie beside the repository; tests that need them are skipped where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3].parent / "shared" / "carla-maps"
TOWNS = ("Town01", "Town02", "Town04", "Town06", "Town07", "Town10HD")


def maps_folder() -> Path:
    """The folder of the maps, or the test is skipped."""
    if not FOLDER.exists():
        pytest.skip(f"there is no {FOLDER}")
    return FOLDER


def load_map(town: str):
    """CARLA's map of a town, or the test is skipped."""
    carla = pytest.importorskip("carla")
    file = FOLDER / f"{town}.xodr"
    if not file.exists():
        pytest.skip(f"there is no {file}")
    return carla.Map(town, file.read_text())
