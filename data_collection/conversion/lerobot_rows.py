"""The tables of a LeRobot dataset: its episodes, and the numbers of their rows. ``N`` counts the rows of an episode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm_gym.data_collection.conversion.lerobot_layout import EPISODES_FOLDER, EpisodeEntry, Feature, Info, file_of
from wm_gym.data_collection.conversion.lerobot_packages import pyarrow
from wm_gym.errors import DatasetError

Numbers = NDArray[np.float64]


def read_entries(folder: Path, info: Info, camera: str) -> list[EpisodeEntry]:
    """The episodes in their order.

    Args:
        folder: The dataset's.
        info: Its ``meta/info.json``.
        camera: The feature whose frames are wanted.

    Raises:
        DatasetError: A table is damaged, a file is missing, or there is no episode.
    """
    rows: list[dict[str, Any]] = []
    for path in sorted((folder / EPISODES_FOLDER).glob("[!.]*/[!.]*.parquet")):
        rows += _table(path).to_pylist()
    if not rows:
        raise DatasetError(f"{folder} has no episodes in {EPISODES_FOLDER}; copy the dataset again.")
    is_video = info.features[camera].dtype == "video"
    entries = []
    for row in rows:
        try:
            index, count = int(row["episode_index"]), int(row["length"])
            start_s = float(row[f"videos/{camera}/from_timestamp"]) if is_video else 0.0
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{folder / EPISODES_FOLDER} lacks the column {error} or a value in it; copy the dataset again."
            ) from error
        data_file = file_of(folder, info.data_path, row, "data")
        video_file = None
        if is_video:
            video_file = file_of(folder, info.video_path or "", row, f"videos/{camera}", camera)
        entries.append(EpisodeEntry(index, count, data_file, video_file, start_s))
    return sorted(entries, key=lambda entry: entry.index)


class RowReader:
    """Reads the rows of episodes, a data file at a time.

    Args:
        features: The features to read, by name: numbers.
    """

    def __init__(self, features: dict[str, Feature]) -> None:
        self.features = features
        self._path: Path | None = None
        self._columns: dict[str, Numbers] = {}
        self._owners: NDArray[np.int64] = np.empty(0, np.int64)

    def read(self, entry: EpisodeEntry) -> dict[str, Numbers]:
        """The numbers of an episode: ``(N, size)`` float64 by feature.

        Raises:
            DatasetError: The file is damaged, or has another number of rows for it.
        """
        if entry.data_file != self._path:
            self._load(entry.data_file)
        rows = np.flatnonzero(self._owners == entry.index)
        if len(rows) != entry.rows:
            raise DatasetError(
                f"{entry.data_file} has {len(rows)} rows of episode {entry.index}, but its length is {entry.rows}; "
                "copy the dataset again."
            )
        return {name: values[rows] for name, values in self._columns.items()}

    def _load(self, path: Path) -> None:
        table = _table(path, ["episode_index", "frame_index", *self.features])
        try:
            owners = np.asarray(table["episode_index"].to_pylist(), np.int64)
            order = np.lexsort((np.asarray(table["frame_index"].to_pylist(), np.int64), owners))
            columns = {}
            for name, feature in self.features.items():
                values = np.array(table[name].to_pylist(), np.float64)  # an absent value becomes NaN
                columns[name] = values.reshape(len(owners), feature.size)[order]
        except (TypeError, ValueError) as error:
            raise DatasetError(f"{path} does not hold what meta/info.json says; copy the dataset again.") from error
        self._path, self._columns, self._owners = path, columns, owners[order]


def read_images(entry: EpisodeEntry, camera: str) -> list[bytes]:
    """The image files of an episode whose frames lie in its data file: ``N`` of them, PNG or JPEG.

    Raises:
        DatasetError: The file is damaged, or lacks one.
    """
    chosen = [("episode_index", "=", entry.index)]
    rows = _table(entry.data_file, ["frame_index", camera], chosen).to_pylist()
    rows.sort(key=lambda row: row["frame_index"] or 0)
    images = [row[camera]["bytes"] for row in rows if isinstance(row[camera], dict) and row[camera].get("bytes")]
    if len(images) != entry.rows:
        raise DatasetError(f"{entry.data_file} lacks images of episode {entry.index}; copy the dataset again.")
    return images


def _table(path: Path, wanted: list[str] | None = None, chosen: list[tuple[str, str, int]] | None = None) -> Any:
    """Columns of a Parquet file: those that are wanted, else all but the statistics of episodes.

    Raises:
        DatasetError: It is damaged, or lacks one.
    """
    arrow = pyarrow()
    try:
        there = arrow.parquet.read_schema(path).names
        names = [name for name in there if not name.startswith("stats/")] if wanted is None else wanted
        lacking = set(names) - set(there)
        if lacking:
            raise DatasetError(f"{path} lacks the column {min(lacking)}; copy the dataset again.")
        return arrow.parquet.read_table(path, columns=names, filters=chosen, partitioning=None)
    except (arrow.ArrowException, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DatasetError(f"{path} is no Parquet file that can be read ({first}); copy the dataset again.") from error
