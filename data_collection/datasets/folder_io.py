"""Import of one's own recordings: a folder of images and a table of actions for each episode."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wm_gym.actions import ActionFormat, FloatArray
from wm_gym.data_collection.datasets.codec import DEFAULT_CODEC, FrameCodec
from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.episode import Episode
from wm_gym.data_collection.datasets.image_header import read_image_header
from wm_gym.data_collection.datasets.metadata import DatasetMetadata, versions
from wm_gym.data_collection.datasets.remote_folder import local_folder
from wm_gym.data_collection.datasets.writer import check_is_free
from wm_gym.errors import DatasetError
from wm_gym.frames import resize_frame
from wm_gym.plain_files import read_bytes, read_text
from wm_gym.simulator import MAX_FRAME_SIDE, SimulatorSpec
from wm_gym.vector import Fields, VectorField

FRAMES_FOLDER = "frames"
ACTIONS_FILE = "actions.csv"
VECTORS_FILE = "vectors.csv"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
DRIVING_COLUMNS = ("steering", "throttle", "brake", "gear")
STEER_ACCEL_COLUMNS = ("steering", "acceleration")
_IMAGE_BYTES = 256 * 2**20
_STEP_COLUMNS = ("reward", "terminated", "truncated")


def import_folder(
    source: str | Path,
    out: str | Path,
    *,
    frame_size: tuple[int, int] | None = None,
    step_s: float = 0.0,
    codec: str = DEFAULT_CODEC,
    behaviour: str = "imported",
    notify: Callable[[str], None] = lambda _: None,
) -> Dataset:
    """Make a dataset from ``SOURCE/<episode>/frames/*.png|jpg`` and ``SOURCE/<episode>/actions.csv``.

    Episodes and frames are taken in natural order (``frame2`` before ``frame10``). ``actions.csv`` has a header with
    ``steering,throttle,brake,gear`` or ``steering,acceleration``, optionally ``reward``, ``terminated``,
    ``truncated`` and any further columns of numbers (kept as infos), and one row for each action. There is one frame
    more than rows; with as many frames as rows the last row is dropped, because what it led to was not recorded.
    Without ``terminated`` and ``truncated`` an episode counts as truncated at its end; without ``reward``, rewards
    are 0. ``vectors.csv`` beside it, where there is one, has a column for each field of the observations' vector and a
    row for each frame.

    Args:
        source: The folder with one sub-folder an episode.
        out: Folder of the new dataset.
        frame_size: Height and width to resize frames to; ``None`` keeps them.
        step_s: Seconds between two frames, if known.
        codec: How to store frames.
        behaviour: What to call the driver.
        notify: Called with a sentence where something was dropped or assumed.

    Raises:
        DatasetError: the folder, an image or a table does not fit; nothing is left behind.
    """
    folder, target = local_folder(source), local_folder(out)
    if not folder.is_dir():
        raise DatasetError(f"there is no folder {folder} to import from.")
    episodes = [path for path in _natural(folder.iterdir()) if path.is_dir() and (path / FRAMES_FOLDER).is_dir()]
    if not episodes:
        raise DatasetError(
            f"{folder} holds no episode: each needs a folder with {FRAMES_FOLDER}/*.png and {ACTIONS_FILE} in it."
        )
    check_is_free(target)
    # Every table is read and every frame counted before anything is written.
    recordings = [_Recording.read(path, notify) for path in episodes]
    size = frame_size or recordings[0].read_frame(0).shape[:2]
    metadata = DatasetMetadata(
        simulator=SimulatorSpec(
            id="recording",
            frame_size=(size[0], size[1]),
            action=ActionFormat.driving(),
            step_s=step_s,
            vector=_fields(recordings),
        ),
        codec=FrameCodec.parse(codec),
        source=f"imported from the folder {folder.name}",
        created_with=versions(),
    )
    return Dataset.create(
        target,
        metadata,
        (
            recording.to_episode(metadata, index, behaviour, resize=frame_size is not None)
            for index, recording in enumerate(recordings)
        ),
    )


@dataclass(frozen=True)
class _Recording:
    """One episode's images and table."""

    path: Path
    images: list[Path]
    actions: FloatArray
    columns: dict[str, FloatArray]
    vectors: dict[str, FloatArray]

    @classmethod
    def read(cls, path: Path, notify: Callable[[str], None]) -> _Recording:
        images = [
            image for image in _natural((path / FRAMES_FOLDER).iterdir()) if image.suffix.lower() in IMAGE_SUFFIXES
        ]
        columns = _read_table(path / ACTIONS_FILE)
        rows = len(columns["steering"])
        if len(images) == rows and rows > 1:
            notify(f"{path.name} has as many frames as actions ({rows}); its last action is dropped.")
            rows -= 1
            columns = {name: values[:rows] for name, values in columns.items()}
        if len(images) != rows + 1 or rows < 1:
            raise DatasetError(
                f"the episode {path} has {len(images)} frames and {rows} actions, but one frame more than actions "
                "(or as many) is wanted, and two frames at least."
            )
        kind, names = _action_columns(path, columns)
        actions = ActionFormat.driving().to_stored(np.stack([columns.pop(name) for name in names], axis=-1), kind)
        return cls(path, images, actions, columns, _read_vectors(path / VECTORS_FILE, len(images)))

    def read_frame(self, position: int) -> NDArray[np.uint8]:
        path, image = self.images[position], None
        try:
            data = read_bytes(path, _IMAGE_BYTES)
            if max(read_image_header(data)[1]) <= MAX_FRAME_SIDE:
                image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except (ValueError, cv2.error):
            image = None
        if image is None:
            raise DatasetError(f"{path} is no image that can be read; replace or remove it.")
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)

    def to_episode(self, metadata: DatasetMetadata, index: int, behaviour: str, *, resize: bool) -> Episode:
        height, width = metadata.simulator.frame_size
        frames = np.empty((len(self.images), height, width, 3), np.uint8)
        for position, image in enumerate(self.images):
            frame = self.read_frame(position)
            if frame.shape[:2] != (height, width) and not resize:
                raise DatasetError(
                    f"{image} has {frame.shape[0]}x{frame.shape[1]} pixels, but the first frame has {height}x{width}; "
                    "ask for one frame size to resize them all."
                )
            frames[position] = resize_frame(frame, height, width)
        steps = len(self.actions)
        columns = dict(self.columns)
        rewards = columns.pop("reward", np.zeros(steps, np.float32))
        terminated = columns.pop("terminated", np.zeros(steps, np.float32)) != 0
        truncated = columns.pop("truncated", np.zeros(steps, np.float32)) != 0
        if not terminated[-1]:
            truncated[-1] = True  # the recording stops here, which is a cut from outside
        return Episode(
            frames=frames,
            actions=self.actions,
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            vectors=np.stack([self.vectors[field.name] for field in metadata.simulator.vector], axis=-1)
            if self.vectors
            else np.zeros((len(frames), 0), np.float32),
            infos=columns,
            behaviour=behaviour,
            index=index,
        )


def _action_columns(path: Path, columns: dict[str, FloatArray]) -> tuple[str, Sequence[str]]:
    kind, names = ("steer_accel", STEER_ACCEL_COLUMNS) if "acceleration" in columns else ("driving", DRIVING_COLUMNS)
    missing = [name for name in names if name not in columns]
    if missing:
        raise DatasetError(
            f"{path / ACTIONS_FILE} lacks the column {missing[0]!r}; its header has to name "
            f"{','.join(DRIVING_COLUMNS)} or {','.join(STEER_ACCEL_COLUMNS)}."
        )
    low, high = (-1.0, 1.0) if kind == "steer_accel" else (ActionFormat.driving().low, ActionFormat.driving().high)
    values = np.stack([columns[name] for name in names], axis=-1)
    outside = np.argwhere(~((values >= low) & (values <= high)))
    if len(outside):
        row, column = outside[0]
        raise DatasetError(
            f"{path / ACTIONS_FILE} has {names[column]} {values[row, column]:g} in row {row + 1}, which is out of its "
            "range; steering and acceleration go from -1 to 1, throttle and brake from 0 to 1, gear is -1, 0 or 1."
        )
    return kind, names


def _fields(recordings: Sequence[_Recording]) -> Fields:
    """The columns of the vectors' tables, with what was recorded as their bounds."""
    names = list(recordings[0].vectors)
    for recording in recordings:
        if list(recording.vectors) != names:
            raise DatasetError(
                f"{recording.path} has the vector columns {', '.join(recording.vectors) or 'none'}, but "
                f"{recordings[0].path} has {', '.join(names) or 'none'}; give every episode the same {VECTORS_FILE}."
            )
    fields = []
    for name in names:
        values = np.concatenate([recording.vectors[name] for recording in recordings])
        if not np.isfinite(values).all():
            raise DatasetError(f"the column {name!r} of a {VECTORS_FILE} has values that are not finite.")
        low, high = float(values.min()), float(values.max())
        fields.append(VectorField(name=name, low=low, high=high if high > low else low + 1.0))
    return tuple(fields)


def _read_vectors(path: Path, frames: int) -> dict[str, FloatArray]:
    """The columns of numbers beside each frame; none where there is no such table."""
    if not path.exists():
        return {}
    columns = _read_table(path, ())
    for values in columns.values():
        if len(values) != frames:
            raise DatasetError(f"{path} has {len(values)} rows, but there are {frames} frames; write a row for each.")
    return columns


def _read_table(path: Path, wanted: Sequence[str] = ("steering",)) -> dict[str, FloatArray]:
    if not path.is_file():
        raise DatasetError(f"{path} is missing; write one row of actions for each step into it.")
    text = read_text(path, error=DatasetError, remedy="write one row of actions for each step into it")
    lines = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    rows = (row for row in lines if any(cell.strip() for cell in row))
    values: list[list[str]] = []
    try:
        header = [name.strip() for name in next(rows, [])]
        if not set(wanted) <= set(header) or not header or len(set(header)) != len(header) or "" in header:
            among = f" with {','.join(DRIVING_COLUMNS)} or {','.join(STEER_ACCEL_COLUMNS)} among them" if wanted else ""
            raise DatasetError(
                f"{path} has the header {','.join(header)!r}, but distinct column names{among} are wanted."
            )
        for number, row in enumerate(rows, start=1):
            if len(row) != len(header):
                raise DatasetError(f"{path} has {len(row)} values in row {number}, but {len(header)} columns.")
            values.append(row)
    except csv.Error as error:
        raise DatasetError(f"{path} cannot be read as a table: {error}.") from error
    return {name: _column(path, name, [row[i] for row in values]) for i, name in enumerate(header)}


def _column(path: Path, name: str, cells: Sequence[str]) -> FloatArray:
    truth = {"true": 1.0, "false": 0.0}
    values = np.empty(len(cells), np.float32)
    for i, cell in enumerate(cells):
        text = cell.strip().lower()
        try:
            values[i] = truth[text] if text in truth else float(text)
        except ValueError:
            raise DatasetError(f"{path} has {cell!r} in column {name!r}, row {i + 1}, which is no number.") from None
    return values


def _natural(paths: Iterable[Path]) -> list[Path]:
    """Sort by name with numbers by their value."""

    def key(path: Path) -> list[tuple[bool, int, str]]:
        parts = re.split(r"(\d+)", path.name)
        return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]

    return sorted(paths, key=key)
