"""Import of one's own recordings: a folder of images and a table of actions for each episode."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from wm_gym.actions import DRIVING_NAMES, ActionFormat, FloatArray
from wm_gym.data_collection.conversion.pictures import IMAGE_SUFFIXES, FrameFit, natural_order
from wm_gym.data_collection.conversion.segment import Segment, write_segments
from wm_gym.data_collection.datasets.codec import DEFAULT_CODEC, FrameCodec
from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.remote_folder import local_folder
from wm_gym.data_collection.datasets.writer import check_target
from wm_gym.errors import ConfigError, DatasetError
from wm_gym.plain_files import read_text
from wm_gym.vector import Fields, VectorField

FRAMES_FOLDER = "frames"
ACTIONS_FILE = "actions.csv"
VECTORS_FILE = "vectors.csv"
STEER_ACCEL_COLUMNS = ("steering", "acceleration")


def import_folder(
    source: str | Path,
    out: str | Path,
    *,
    frame_size: tuple[int, int] | None = None,
    fit: FrameFit = "stretch",
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
        fit: How frames of another aspect ratio get that size.
        step_s: Seconds between two frames, if known.
        codec: How to store frames.
        behaviour: What to call the driver.
        notify: Called with a sentence where something was dropped or assumed.

    Raises:
        ConfigError: ``step_s`` is no number of seconds.
        DatasetError: the folder, an image or a table does not fit; nothing is left behind.
    """
    if not 0 <= step_s < float("inf"):
        raise ConfigError(f"--step-s {step_s:g} must be a number of seconds above 0, or 0 where it is not known.")
    folder, target = local_folder(source), local_folder(out)
    if not folder.is_dir():
        raise DatasetError(f"there is no folder {folder} to import from.")
    episodes = [path for path in natural_order(folder.iterdir()) if path.is_dir() and (path / FRAMES_FOLDER).is_dir()]
    if not episodes:
        raise DatasetError(
            f"{folder} holds no episode: each needs a folder with {FRAMES_FOLDER}/*.png and {ACTIONS_FILE} in it; "
            "docs/own_recordings.md has the other layouts."
        )
    check_target(target)
    FrameCodec.parse(codec)
    # Every table is read and every frame counted before anything is written.
    segments = [_read_segment(path, notify) for path in episodes]
    return write_segments(
        target,
        segments,
        source=f"imported from the folder {folder.name}",
        fields=_fields(episodes, segments),
        step_s=step_s,
        frame_size=frame_size,
        fit=fit,
        codec=codec,
        behaviour=behaviour,
    )


def _read_segment(path: Path, notify: Callable[[str], None]) -> Segment:
    """One episode's images and tables."""
    images = [
        image
        for image in natural_order((path / FRAMES_FOLDER).glob("[!.]*"))  # ._frame0.png is macOS's
        if image.suffix.lower() in IMAGE_SUFFIXES
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
    none = np.zeros(rows, np.float32)
    return Segment(
        pictures=images,
        actions=_take_actions(path, columns),
        rewards=columns.pop("reward", none),
        terminated=columns.pop("terminated", none) != 0,
        truncated=columns.pop("truncated", none) != 0,
        vectors=_read_vectors(path / VECTORS_FILE, len(images)),
        infos=columns,
    )


def _take_actions(path: Path, columns: dict[str, FloatArray]) -> FloatArray:
    """The actions ``(T, 4)`` float32, whose columns are taken out of those of the table."""
    kind, names = ("steer_accel", STEER_ACCEL_COLUMNS) if "acceleration" in columns else ("driving", DRIVING_NAMES)
    missing = [name for name in names if name not in columns]
    if missing:
        raise DatasetError(
            f"{path / ACTIONS_FILE} lacks the column {missing[0]!r}; its header has to name "
            f"{','.join(DRIVING_NAMES)} or {','.join(STEER_ACCEL_COLUMNS)}."
        )
    low, high = (-1.0, 1.0) if kind == "steer_accel" else (ActionFormat.driving().low, ActionFormat.driving().high)
    values = np.stack([columns.pop(name) for name in names], axis=-1)
    outside = np.argwhere(~((values >= low) & (values <= high)))
    if len(outside):
        row, column = outside[0]
        raise DatasetError(
            f"{path / ACTIONS_FILE} has {names[column]} {values[row, column]:g} in row {row + 1}, which is out of its "
            "range; steering and acceleration go from -1 to 1, throttle and brake from 0 to 1, gear is -1, 0 or 1."
        )
    return ActionFormat.driving().to_stored(values, kind)


def _fields(episodes: Sequence[Path], segments: Sequence[Segment]) -> Fields:
    """The columns of the vectors' tables, with what was recorded as their bounds."""
    names = list(segments[0].vectors)
    for path, segment in zip(episodes, segments, strict=True):
        if list(segment.vectors) != names:
            raise DatasetError(
                f"{path} has the vector columns {', '.join(segment.vectors) or 'none'}, but {episodes[0]} has "
                f"{', '.join(names) or 'none'}; give every episode the same {VECTORS_FILE}."
            )
    fields = []
    for name in names:
        values = np.concatenate([segment.vectors[name] for segment in segments])
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
            among = f" with {','.join(DRIVING_NAMES)} or {','.join(STEER_ACCEL_COLUMNS)} among them" if wanted else ""
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
