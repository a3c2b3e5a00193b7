"""Export to LeRobot's format, version 3 (the extra ``lerobot``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm_gym.actions import DRIVING_NAMES
from wm_gym.data_collection.conversion import lerobot_layout as layout
from wm_gym.data_collection.conversion.lerobot_packages import av, pyarrow
from wm_gym.data_collection.conversion.lerobot_statistics import Statistics, episode_columns
from wm_gym.data_collection.conversion.video_files import VideoWriter, pixel_format
from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.episode import INFO_PREFIX, Episode
from wm_gym.data_collection.datasets.episode_file import read_steps
from wm_gym.data_collection.datasets.remote_folder import local_folder
from wm_gym.errors import ConfigError, DatasetError
from wm_gym.files import describe_os_error, folder_written_atomically, is_free, write_json_atomically

CAMERA = "observation.images.front"
DATA_FILE_BYTES = 100 * 2**20
VIDEO_FILE_BYTES = 200 * 2**20
"""A file with more is followed by another one, between two episodes; these are LeRobot's own limits."""


# LeRobot reads the tasks with pandas and looks them up by this index.
_TASK_INDEX = {
    "index_columns": ["task"],
    "column_indexes": [],
    "columns": [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_kind, "metadata": None}
        for name, kind, numpy_kind in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ],
    "pandas_version": "2.0.0",
}


def export_lerobot(
    dataset: Dataset,
    out: str | Path,
    *,
    step_s: float | None = None,
    task: str = "drive",
    data_file_bytes: int = DATA_FILE_BYTES,
    video_file_bytes: int = VIDEO_FILE_BYTES,
) -> None:
    """Write a dataset in LeRobot's format, version 3, with the frames as H.264 video, which loses a little of them.

    An episode of ``T`` steps has ``T + 1`` rows, one a frame. ``action``, ``next.reward``, ``next.done``,
    ``next.terminated`` and ``next.truncated`` of a row belong to the step from its frame to the next one. In the last
    row, which begins no step, the action is the one before once more, the reward 0, and ``next.done`` true.
    ``observation.state`` has the observation's vector, where there is one, and ``info.NAME`` the infos.

    Args:
        dataset: What to export.
        out: A new or empty folder.
        step_s: Seconds between two frames, where the dataset does not say.
        task: The task in words, which LeRobot asks for.
        data_file_bytes: A table of rows with more is followed by another one.
        video_file_bytes: As many of a video.

    Raises:
        ConfigError: The step is no number of seconds above 0, or the dataset says another.
        DatasetError: A package is missing, the folder is in use, the step is not known, an episode is damaged, or the
            disk refuses it; nothing is left behind.
    """
    target = local_folder(out)
    pyarrow()
    av()
    rate = _rate(dataset, step_s)
    if not is_free(target):
        raise DatasetError(f"{target} is not empty; choose a new or empty folder.")
    try:
        with folder_written_atomically(target.absolute()) as folder:
            _Export(dataset, folder, rate, task).write(data_file_bytes, video_file_bytes)
    except OSError as error:
        raise DatasetError(f"the dataset {target} cannot be written: {describe_os_error(error)}") from error


def _rate(dataset: Dataset, step_s: float | None) -> Fraction:
    """Frames a second."""
    known = dataset.metadata.simulator.step_s
    if step_s is not None and not 1e-4 < step_s < float("inf"):
        raise ConfigError(f"--step-s {step_s:g} must be a number of seconds above 0.")
    if known and step_s is not None and abs(known - step_s) > 1e-9:
        raise ConfigError(
            f"{dataset.path} has steps of {known:g} s, so that --step-s {step_s:g} cannot be; leave it out."
        )
    seconds = known or step_s
    if not seconds:
        raise DatasetError(
            f"{dataset.path} does not say how long a step takes, which LeRobot asks for; give it by --step-s SECONDS."
        )
    return 1 / Fraction(seconds).limit_denominator(10_000)


class _Files:
    """Files that LeRobot counts by chunk and file: one is written until it is large enough, then the next.

    Args:
        folder: The dataset's.
        template: Where file ``file_index`` of chunk ``chunk_index`` lies.
        limit_bytes: What is large enough.
        open_file: Opens a file for writing; the result has a ``close``.
    """

    def __init__(self, folder: Path, template: str, limit_bytes: int, open_file: Callable[[Path], Any]) -> None:
        self.folder, self.template, self.limit_bytes, self.open_file = folder, template, limit_bytes, open_file
        self._number, self._path, self._file = -1, folder, None

    def numbers(self, prefix: str) -> dict[str, int]:
        """The two numbers of the current file, as ``meta/episodes`` names them."""
        chunk, file = divmod(self._number, layout.CHUNK_FILES)
        return {f"{prefix}/chunk_index": chunk, f"{prefix}/file_index": file}

    def current(self) -> Any:
        """The file to write an episode to."""
        if self._file is None or self._path.stat().st_size >= self.limit_bytes:
            self.close()
            self._number += 1
            chunk, file = divmod(self._number, layout.CHUNK_FILES)
            self._path = self.folder / self.template.format(video_key=CAMERA, chunk_index=chunk, file_index=file)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.open_file(self._path)
        return self._file

    def close(self) -> None:
        """Finish the current file."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


class _Export:
    """Writes the files of one dataset."""

    def __init__(self, dataset: Dataset, folder: Path, rate: Fraction, task: str) -> None:
        self.dataset, self.folder, self.rate, self.task = dataset, folder, rate, task
        self.simulator = dataset.metadata.simulator
        self.infos = _info_features(dataset)
        self.features = self._features()
        self.statistics = Statistics()
        self.entries: list[dict[str, Any]] = []
        self.own: list[layout.OwnEpisode] = []
        self.rows = 0

    def write(self, data_bytes: int, video_bytes: int) -> None:
        """Write everything; a data or video file with more bytes is followed by another one."""
        arrow, size = pyarrow(), self.simulator.frame_size
        schema = arrow.schema([(name, _arrow_type(f)) for name, f in self.features.items() if not f.is_camera])
        data = _Files(self.folder, layout.DATA_PATH, data_bytes, lambda path: arrow.parquet.ParquetWriter(path, schema))
        videos = _Files(self.folder, layout.VIDEO_PATH, video_bytes, lambda path: VideoWriter(path, self.rate, size))
        with closing(data), closing(videos):
            for position in range(self.dataset.num_episodes):
                episode = self.dataset.read_episode(position)
                columns = self._columns(episode, position)
                data.current().write_table(_table(columns, schema))
                video: VideoWriter = videos.current()
                start_s = video.end_s
                video.add(episode.frames)
                lies = {
                    **data.numbers("data"),
                    **videos.numbers(f"videos/{CAMERA}"),
                    f"videos/{CAMERA}/from_timestamp": start_s,
                    f"videos/{CAMERA}/to_timestamp": video.end_s,
                }
                self._note(episode, position, lies)
                own = Statistics()
                for statistics in (self.statistics, own):
                    statistics.add(columns)
                    statistics.add_frames(CAMERA, episode.frames)
                self.entries[-1] |= episode_columns(own)
        self._write_meta()

    def _features(self) -> dict[str, layout.Feature]:
        """The columns of a row, by name."""
        height, width = self.simulator.frame_size
        action = self.simulator.action
        names = list(DRIVING_NAMES) if action.kind == "driving" else [f"{layout.ACTION}_{i}" for i in range(action.dim)]
        features = {
            CAMERA: layout.Feature(dtype="video", shape=(height, width, 3), names=["height", "width", "channels"]),
            layout.ACTION: layout.Feature(dtype="float32", shape=(action.dim,), names=names),
            layout.REWARD: layout.Feature(dtype="float32", shape=(1,)),
            **{name: layout.Feature(dtype="bool", shape=(1,)) for name in layout.ENDS},
        }
        if self.simulator.vector:
            fields = [field.name for field in self.simulator.vector]
            features[layout.STATE] = layout.Feature(dtype="float32", shape=(len(fields),), names=fields)
        features |= {name: layout.Feature(dtype="float32", shape=(1,)) for name in self.infos}
        for name in layout.BOOKKEEPING:
            dtype = "float32" if name == "timestamp" else "int64"
            features[name] = layout.Feature(dtype=dtype, shape=(1,))
        return features

    def _columns(self, episode: Episode, position: int) -> dict[str, NDArray[Any]]:
        """The rows of an episode, but for the frames: ``(T + 1,)`` or ``(T + 1, size)`` by feature."""
        rows = np.arange(len(episode) + 1)
        columns: dict[str, NDArray[Any]] = {
            layout.ACTION: np.concatenate((episode.actions, episode.actions[-1:])),
            layout.REWARD: np.append(episode.rewards, np.float32(0)),
            layout.DONE: rows >= len(episode) - 1,
            layout.TERMINATED: np.append(episode.terminated, episode.terminated[-1]),
            layout.TRUNCATED: np.append(episode.truncated, episode.truncated[-1]),
            "timestamp": (rows / float(self.rate)).astype(np.float32),
            "frame_index": rows,
            "episode_index": np.full_like(rows, position),
            "index": rows + self.rows,
            "task_index": np.zeros_like(rows),
        }
        if self.simulator.vector:
            columns[layout.STATE] = episode.vectors
        nothing = np.full(len(episode), np.nan, np.float32)
        for feature, name in self.infos.items():
            columns[feature] = np.append(episode.infos.get(name, nothing), np.float32(np.nan))
        return columns

    def _note(self, episode: Episode, position: int, lies: Mapping[str, float]) -> None:
        """Keep what ``meta/episodes`` says of an episode; ``lies`` is where its rows and frames are."""
        rows = len(episode) + 1
        self.entries.append(
            {
                "episode_index": position,
                "tasks": [self.task],
                "length": rows,
                "dataset_from_index": self.rows,
                "dataset_to_index": self.rows + rows,
                **lies,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
        )
        self.own.append(
            layout.OwnEpisode(steps=len(episode), index=episode.index, behaviour=episode.behaviour, seed=episode.seed)
        )
        self.rows += rows

    def _write_meta(self) -> None:
        arrow = pyarrow()
        (self.folder / "meta").mkdir()
        episodes = self.folder / layout.EPISODES_PATH.format(chunk_index=0, file_index=0)
        episodes.parent.mkdir(parents=True)
        arrow.parquet.write_table(arrow.Table.from_pylist(self.entries), episodes)
        tasks = arrow.table({"task_index": arrow.array([0], arrow.int64()), "task": [self.task]})
        tasks = tasks.replace_schema_metadata({"pandas": json.dumps(_TASK_INDEX)})
        arrow.parquet.write_table(tasks, self.folder / layout.TASKS_FILE)
        write_json_atomically(self.folder / layout.STATISTICS_FILE, self.statistics.to_dict())
        own = layout.OwnRecord(simulator=self.simulator.model_dump(mode="json"), episodes=self.own, infos=self.infos)
        write_json_atomically(self.folder / layout.OWN_FILE, own.model_dump(mode="json"))
        write_json_atomically(self.folder / layout.INFO_FILE, self._info())

    def _info(self) -> dict[str, Any]:
        """What ``meta/info.json`` says."""
        height, width = self.simulator.frame_size
        fps = int(self.rate) if self.rate.denominator == 1 else float(self.rate)
        features = {name: feature.model_dump(mode="json") for name, feature in self.features.items()}
        features[CAMERA]["info"] = {
            "video.height": height,
            "video.width": width,
            "video.codec": "h264",
            "video.pix_fmt": pixel_format((height, width)),
            "video.is_depth_map": False,
            "video.fps": fps,
            "video.channels": 3,
            "has_audio": False,
        }
        return {
            "codebase_version": layout.VERSION,
            "robot_type": self.simulator.id,
            "total_episodes": len(self.entries),
            "total_frames": self.rows,
            "total_tasks": 1,
            "chunks_size": layout.CHUNK_FILES,
            "data_files_size_in_mb": DATA_FILE_BYTES // 2**20,
            "video_files_size_in_mb": VIDEO_FILE_BYTES // 2**20,
            "fps": fps,
            "splits": {"train": f"0:{len(self.entries)}"},
            "data_path": layout.DATA_PATH,
            "video_path": layout.VIDEO_PATH,
            "features": features,
        }


def _info_features(dataset: Dataset) -> dict[str, str]:
    """The infos of all episodes by the names of their features, in which LeRobot allows no slash."""
    found: dict[str, str] = {}
    for header in dataset.episodes:
        names = sorted(name for name in read_steps(header) if name.startswith(INFO_PREFIX))
        for name in (name.removeprefix(INFO_PREFIX) for name in names):
            feature = layout.INFO_PREFIX + name.replace("/", "_")
            while found.get(feature, name) != name:
                feature += "_"
            found[feature] = name
    return found


def _arrow_type(feature: layout.Feature) -> Any:
    """The type of a column; a row of several numbers is a list of that length."""
    arrow = pyarrow()
    kind = {"float32": arrow.float32(), "int64": arrow.int64(), "bool": arrow.bool_()}[feature.dtype]
    return kind if feature.size == 1 else arrow.list_(kind, feature.size)


def _table(columns: dict[str, NDArray[Any]], schema: Any) -> Any:
    """The rows of an episode as a table."""
    arrow = pyarrow()
    arrays = []
    for field in schema:
        values = columns[field.name]
        if arrow.types.is_fixed_size_list(field.type):
            flat = arrow.array(values.reshape(-1), field.type.value_type)
            arrays.append(arrow.FixedSizeListArray.from_arrays(flat, field.type.list_size))
        else:
            arrays.append(arrow.array(values.reshape(-1), field.type))
    return arrow.Table.from_arrays(arrays, schema=schema)
