"""Conversion of recordings in layouts that other projects write."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wm_gym.data_collection.conversion.carla_routes import read_bench2drive, read_transfuser
from wm_gym.data_collection.conversion.donkey import MANIFEST, read_donkey
from wm_gym.data_collection.conversion.folder_io import ACTIONS_FILE, FRAMES_FOLDER
from wm_gym.data_collection.conversion.lerobot_layout import is_lerobot
from wm_gym.data_collection.conversion.pictures import FrameFit, natural_order
from wm_gym.data_collection.conversion.recording import CutSettings, NoRowsError, Recording, cut, step_of
from wm_gym.data_collection.conversion.reward_expression import RewardExpression
from wm_gym.data_collection.conversion.segment import write_segments
from wm_gym.data_collection.conversion.tables import CAMERAS, UDACITY_LOG, read_table, read_udacity
from wm_gym.data_collection.datasets.codec import DEFAULT_CODEC, FrameCodec
from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.remote_folder import local_folder
from wm_gym.data_collection.datasets.writer import check_target
from wm_gym.errors import ConfigError, DatasetError, did_you_mean

FOLDER_LAYOUT = "folder"
"""The package's own: what :func:`~wm_gym.data_collection.import_folder` reads."""
LEROBOT_LAYOUT = "lerobot"
"""What :func:`~wm_gym.data_collection.import_lerobot` reads."""


@dataclass(frozen=True)
class Layout:
    """How a project lays its recordings out.

    Attributes:
        wanted: What a recording is recognised by, in words.
        fits: Whether a folder is a recording of this layout.
        read: Reads one; the second argument is the camera.
    """

    wanted: str
    fits: Callable[[Path], bool]
    read: Callable[[Path, str], Recording]


def _tables(folder: Path) -> list[Path]:
    # macOS leaves a file ._log.csv beside log.csv on other systems' disks.
    return natural_order(path for path in folder.glob("[!.]*.csv") if path.is_file())


def _only_table(path: Path) -> Path:
    found = [path] if path.is_file() else _tables(path)
    if len(found) > 1:
        raise DatasetError(f"{path} has several tables, {found[0].name} and {found[1].name}; name the one to convert.")
    return found[0]


LAYOUTS: dict[str, Layout] = {
    "udacity": Layout(UDACITY_LOG, lambda path: (path / UDACITY_LOG).is_file(), read_udacity),
    "donkey": Layout(
        f"{MANIFEST} beside catalog_0.catalog",
        lambda path: (path / MANIFEST).is_file() and any(path.glob("catalog_*.catalog")),
        lambda path, _: read_donkey(path),
    ),
    "transfuser": Layout(
        "measurements/ beside rgb/",
        lambda path: (path / "measurements").is_dir() and (path / "rgb").is_dir(),
        lambda path, _: read_transfuser(path),
    ),
    "bench2drive": Layout(
        "anno/ beside camera/rgb_front/",
        lambda path: (path / "anno").is_dir() and (path / "camera" / "rgb_front").is_dir(),
        lambda path, _: read_bench2drive(path),
    ),
    "table": Layout(
        "a CSV file",
        lambda path: bool(_tables(path)),
        lambda path, _: read_table(_only_table(path)),
    ),
}


def guess_layout(source: str | Path) -> str:
    """The layout of a file or folder by what lies in it; ``"folder"`` where none of the others fits.

    A LeRobot dataset is known by its folder alone, not by what may lie below another one.

    Raises:
        DatasetError: Several fit.
    """
    path = local_folder(source)
    if path.is_file():
        return "udacity" if path.name == UDACITY_LOG else "table"
    if is_lerobot(path):
        return LEROBOT_LAYOUT
    named = [name for name in LAYOUTS if name != "table" and _recordings(path, LAYOUTS[name])]
    if _is_folder_layout(path):
        named.append(FOLDER_LAYOUT)
    if len(named) > 1:
        raise DatasetError(f"{path} may be {' or '.join(named)}; say which by --from {named[0]}.")
    if named:
        return named[0]
    return "table" if _recordings(path, LAYOUTS["table"]) else FOLDER_LAYOUT


def convert_recordings(
    source: str | Path,
    out: str | Path,
    *,
    layout: str | None = None,
    camera: str = "center",
    frame_size: tuple[int, int] | None = None,
    fit: FrameFit = "letterbox",
    step_s: float | None = None,
    cut_gap: float | None = None,
    cut_seconds: float = 60.0,
    fill: Mapping[str, float] | None = None,
    scale: Mapping[str, float] | None = None,
    reward: str | None = None,
    codec: str = DEFAULT_CODEC,
    behaviour: str = "recorded",
    notify: Callable[[str], None] = lambda _: None,
) -> Dataset:
    """Make a dataset from recordings of another project; ``docs/own_recordings.md`` describes the layouts.

    Args:
        source: A recording, or a folder with recordings below it.
        out: Folder of the new dataset.
        layout: One of :data:`LAYOUTS`; ``None`` guesses.
        camera: Of ``udacity``: ``"center"``, ``"left"`` or ``"right"``.
        frame_size: Height and width of the frames; ``None`` keeps those of the images.
        fit: How images of another aspect ratio become frames.
        step_s: Seconds between two rows; ``None``: as the recording says.
        cut_gap: Seconds; a longer pause ends an episode. ``None``: 5 steps, 1 s at least.
        cut_seconds: No episode is longer; 0 keeps them whole.
        fill: Values of actions that the recording lacks.
        scale: Factors for columns.
        reward: Formula of the rewards; see :class:`RewardExpression`.
        codec: How to store frames.
        behaviour: What to call the driver.
        notify: Called with a sentence where something was left out or assumed.

    Raises:
        ConfigError: A setting is unknown or out of its range.
        DatasetError: The recordings do not fit; nothing is left behind.
    """
    path, target = local_folder(source), local_folder(out)
    settings = CutSettings(
        step_s=step_s,
        gap_s=cut_gap,
        seconds=cut_seconds,
        fill=fill or {},
        scale=scale or {},
        reward=None if reward is None else RewardExpression(reward),
    )
    for name, value in (("--step-s", step_s), ("--cut-gap", cut_gap)):
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{name} {value:g} must be a number of seconds above 0.")
    if not 0 <= cut_seconds < float("inf"):
        raise ConfigError(f"--cut-seconds {cut_seconds:g} must be a number of seconds, or 0 for whole recordings.")
    if camera not in CAMERAS:
        raise ConfigError(f"--camera {camera!r} is not known; use one of {', '.join(CAMERAS)}.")
    if not path.exists():
        raise DatasetError(f"there is no {path} to convert.")
    check_target(target)
    FrameCodec.parse(codec)
    name = layout or guess_layout(path)
    if name not in LAYOUTS:
        raise ConfigError(
            f"--from {name!r} is not known{did_you_mean(name, LAYOUTS)}; use one of {', '.join(LAYOUTS)}."
        )
    found = [path] if path.is_file() and name == "table" else _recordings(path, LAYOUTS[name])
    if not found:
        raise DatasetError(f"{path} holds no recording of the layout {name}, which is known by {LAYOUTS[name].wanted}.")
    # Every row is read, and every image looked at, before anything is written.
    recordings, empty = [], []
    for each in found:
        try:
            recordings.append(LAYOUTS[name].read(each, camera))
        except NoRowsError as error:
            empty.append(error)
    if not recordings:
        raise empty[0]
    for problem in empty:
        notify(str(problem))
    step = step_of(recordings, settings, notify)
    segments = [segment for recording in recordings for segment in cut(recording, step, settings, notify)]
    if not segments:
        raise DatasetError(
            f"{path} has no two rows that follow each other, so there is no step; check the order of its rows and "
            "their times, or give a longer --cut-gap."
        )
    return write_segments(
        target,
        segments,
        source=f"converted from {name}, {path.name}",
        fields=recordings[0].fields,
        step_s=step,
        frame_size=frame_size,
        fit=fit,
        codec=codec,
        behaviour=behaviour,
    )


def _is_folder_layout(path: Path) -> bool:
    """Whether there are episodes for ``import_folder``: ``frames/`` without a table of another name beside it."""
    episodes = [below for below in path.glob("*") if (below / FRAMES_FOLDER).is_dir()]
    return any((episode / ACTIONS_FILE).is_file() or not _tables(episode) for episode in episodes)


def _recordings(path: Path, layout: Layout) -> list[Path]:
    """The recordings at or below a path, in natural order; none lies in another."""
    found: list[Path] = []
    seen, waiting = set(), [path.parent if path.is_file() else path]
    while waiting:  # what links lead to comes last, and every folder once
        for root, below, _ in os.walk(waiting.pop(0)):
            is_new = (real := os.path.realpath(root)) not in seen
            seen.add(real)
            if is_new and layout.fits(Path(root)):
                found.append(Path(root))
            if not is_new or Path(root) in found[-1:]:
                below.clear()
            below[:] = [folder.name for folder in natural_order(map(Path, below))]
            waiting += [link for name in below if (link := Path(root, name)).is_symlink()]
    return found
