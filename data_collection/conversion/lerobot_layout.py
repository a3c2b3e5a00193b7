"""The files of a LeRobot dataset, version 3: where they lie, what describes them, and how they are looked up.

``meta/info.json`` names the features, ``meta/episodes`` has a row an episode, ``data`` a row a frame; of cameras, the
frames of many episodes lie behind each other in one video file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wm_gym.errors import DatasetError, first_invalid
from wm_gym.plain_files import read_json

VERSION = "v3.0"
INFO_FILE = "meta/info.json"
STATISTICS_FILE = "meta/stats.json"
TASKS_FILE = "meta/tasks.parquet"
EPISODES_FOLDER = "meta/episodes"
NUMBERED = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH = f"data/{NUMBERED}.parquet"
VIDEO_PATH = f"videos/{{video_key}}/{NUMBERED}.mp4"
EPISODES_PATH = f"{EPISODES_FOLDER}/{NUMBERED}.parquet"
CHUNK_FILES = 1000
"""Most files in a chunk's folder."""

ACTION = "action"
STATE = "observation.state"
REWARD = "next.reward"
DONE = "next.done"
TERMINATED = "next.terminated"
TRUNCATED = "next.truncated"
ENDS = (DONE, TERMINATED, TRUNCATED)
INFO_PREFIX = "info."
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Features that every LeRobot dataset has."""

OWN_FILE = "meta/wm_gym.json"
"""What LeRobot has no place for; see :class:`OwnRecord`."""


class Feature(BaseModel):
    """One entry of ``features`` in ``meta/info.json``.

    Attributes:
        dtype: ``"video"``, ``"image"``, or a number's type such as ``"float32"``.
        shape: That of one row.
        names: Names of its entries: a list, a list in a mapping, or nothing.
    """

    model_config = ConfigDict(extra="ignore")

    dtype: str
    shape: tuple[int, ...]
    names: Any = None

    @property
    def is_camera(self) -> bool:
        """Whether its rows are frames of a camera."""
        return self.dtype in ("video", "image")

    @property
    def is_number(self) -> bool:
        """Whether its rows are numbers or truth values."""
        return self.dtype.rstrip("0123456789") in ("float", "int", "uint", "bool")

    @property
    def size(self) -> int:
        """How many numbers a row has."""
        return math.prod(self.shape)

    def entry_names(self, fallback: str) -> list[str]:
        """A name for each of :attr:`size` entries; ``fallback`` with a number where it has none."""
        names = self.names
        if isinstance(names, dict):
            names = [name for part in names.values() if isinstance(part, list) for name in part]
        if isinstance(names, list) and len(names) == self.size and len(set(map(str, names))) == self.size:
            return [str(name) for name in names]
        return [fallback] if self.size == 1 else [f"{fallback}_{place}" for place in range(self.size)]


class Info(BaseModel):
    """``meta/info.json``, as far as it is needed."""

    model_config = ConfigDict(extra="ignore")

    codebase_version: str
    fps: float = Field(gt=0, allow_inf_nan=False)
    features: dict[str, Feature]
    data_path: str = DATA_PATH
    video_path: str | None = VIDEO_PATH

    @property
    def cameras(self) -> list[str]:
        """Names of the features that are cameras."""
        return [name for name, feature in self.features.items() if feature.is_camera]


class OwnEpisode(BaseModel):
    """What this package knows of an exported episode beyond its rows."""

    model_config = ConfigDict(extra="forbid")

    steps: int
    index: int = Field(ge=0)
    behaviour: str
    seed: int


class OwnRecord(BaseModel):
    """``meta/wm_gym.json``: what makes an exported dataset the one that it was.

    Attributes:
        simulator: The :class:`~wm_gym.simulator.SimulatorSpec` as JSON values.
        episodes: In the order of the episodes.
        infos: The names of infos by the names of their features.
    """

    model_config = ConfigDict(extra="forbid")

    simulator: dict[str, Any]
    episodes: list[OwnEpisode]
    infos: dict[str, str]


@dataclass(frozen=True)
class EpisodeEntry:
    """A row of ``meta/episodes``.

    Attributes:
        index: The episode's number.
        rows: Number of its frames.
        data_file: Where its rows lie.
        video_file: Where its frames lie, or ``None`` where they are images in ``data_file``.
        video_start_s: Time of its first frame in that file, in seconds.
    """

    index: int
    rows: int
    data_file: Path
    video_file: Path | None
    video_start_s: float


def is_lerobot(folder: Path) -> bool:
    """Whether a folder looks like a LeRobot dataset, of whatever version."""
    return (folder / INFO_FILE).is_file()


def read_info(folder: Path) -> Info:
    """Read ``meta/info.json``.

    Raises:
        DatasetError: There is none, it is damaged, or it is of another version.
    """
    path = folder / INFO_FILE
    content = read_json(path, error=DatasetError, remedy="copy the dataset again")
    version = str(content.get("codebase_version"))
    if not version.startswith("v3."):
        raise DatasetError(
            f"{folder} is a LeRobot dataset of version {version}, but {VERSION} is wanted; LeRobot itself converts it: "
            "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30."
        )
    try:
        return Info.model_validate(content)
    except ValidationError as error:
        place, message = first_invalid(error)
        raise DatasetError(f"{path} is damaged: {place}: {message}; copy the dataset again.") from error


def read_own_record(folder: Path) -> OwnRecord | None:
    """Read ``meta/wm_gym.json``; ``None`` where another program wrote the dataset.

    Raises:
        DatasetError: It is damaged.
    """
    path = folder / OWN_FILE
    if not path.is_file():
        return None
    try:
        return OwnRecord.model_validate(read_json(path, error=DatasetError, remedy="remove it or export again"))
    except ValidationError as error:
        raise DatasetError(f"{path} is damaged; remove it, or export the dataset again.") from error


def file_of(folder: Path, template: str, row: dict[str, Any], prefix: str, video_key: str = "") -> Path:
    """The file that a row of ``meta/episodes`` names.

    Args:
        folder: The dataset's.
        template: ``data_path`` or ``video_path`` of ``meta/info.json``.
        row: Its entries by name.
        prefix: That of the two numbers, for example ``"data"``.
        video_key: The camera's name.

    Raises:
        DatasetError: The row or the template is damaged, or the file is missing or lies elsewhere.
    """
    try:
        numbers = {name: int(row[f"{prefix}/{name}"]) for name in ("chunk_index", "file_index")}
        path = folder / template.format(video_key=video_key, **numbers)
        is_inside = path.resolve().is_relative_to(folder.resolve())
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, OSError) as error:
        raise DatasetError(
            f"{folder} does not say in {INFO_FILE} and {EPISODES_FOLDER} where the {prefix} of an episode lies; copy "
            "the dataset again."
        ) from error
    if not is_inside:
        raise DatasetError(f"{folder} names the file {path}, which lies outside of it; it is not read.")
    if not path.is_file():
        raise DatasetError(f"{path} is missing; copy the dataset again, with all its files.")
    return path
