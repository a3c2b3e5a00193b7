"""The image files of a recording: found by name, checked, read, and brought to one frame size."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np

from wm_gym.data_collection.datasets.codec import decode_image
from wm_gym.data_collection.datasets.image_header import read_image_header
from wm_gym.errors import DatasetError
from wm_gym.frames import Frame, resize_frame
from wm_gym.plain_files import read_bytes
from wm_gym.simulator import MAX_FRAME_SIDE

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_IMAGE_BYTES = 256 * 2**20

FrameFit = Literal["stretch", "letterbox", "crop"]
"""How an image of another aspect ratio becomes a frame: squashed, within black bars, or cut off at two sides."""


class PictureFinder:
    r"""Finds the image files below a folder by the paths that a recording's rows give.

    Such a path may come from another computer (``C:\drive\IMG\center_1.jpg``), so its end is compared: the more
    of its parts agree with a file's, the better. Upper and lower case count as equal, as they do on Windows. Where no
    file of that name lies there, the path counts as it stands, from the folder or the root on; so links are followed.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, list[Path]] = defaultdict(list)
        for root, _, names in os.walk(folder):
            for name in names:
                if name.lower().endswith(IMAGE_SUFFIXES):
                    self._files[name.casefold()].append(Path(root, name))

    def find(self, path: str) -> Path | None:
        """The file that a row's path means; ``None`` where there is none.

        Raises:
            DatasetError: Several files agree equally well.
        """
        parts = [part.casefold() for part in re.split(r"[\\/]+", path.strip()) if part not in ("", ".")]
        found = self._files.get(parts[-1], []) if parts else []
        for count in range(2, len(parts) + 1):
            closer = [file for file in found if [part.casefold() for part in file.parts[-count:]] == parts[-count:]]
            if not closer:
                break
            found = closer
        if len(found) > 1:
            raise DatasetError(
                f"the image {path!r} may be {found[0]} or {found[1]}; write longer paths into the recording, or "
                "convert its folders one by one."
            )
        return found[0] if found else self._as_it_stands(path)

    def _as_it_stands(self, path: str) -> Path | None:
        parts = re.split(r"[\\/]+", path.strip())
        if not parts[-1].lower().endswith(IMAGE_SUFFIXES):
            return None
        wanted = [self.folder.joinpath(*parts[at:]) for at in range(len(parts))]
        if Path(path.strip()).is_absolute():
            wanted.insert(0, Path(path.strip()))
        # False, unlike Path.is_file, for what can be no name of a file.
        return next((file for file in wanted if os.path.isfile(file)), None)  # noqa: PTH113


def is_whole_picture(path: Path) -> bool:
    """Whether a file is a PNG, JPEG or WebP image, with beginning and end, of no more pixels than a frame may have.

    A JPEG that is cut short would be decoded with a grey rest, without an error.
    """
    try:
        data = read_bytes(path, _IMAGE_BYTES)
        kind, size = read_image_header(data)
    except ValueError:
        return False
    if kind == "webp":
        return max(size) <= MAX_FRAME_SIDE and len(data) >= 8 + int.from_bytes(data[4:8], "little")
    end = {"png": b"IEND", "jpeg": b"\xff\xd9"}.get(kind)
    # An embedded preview has an end of its own, in the first part of the file.
    return end is not None and max(size) <= MAX_FRAME_SIDE and data.rfind(end) > len(data) // 2


def read_picture(path: Path) -> Frame:
    """An image file as a frame ``(H, W, 3)`` uint8 RGB.

    Raises:
        DatasetError: It cannot be read, or has more pixels than a frame may have.
    """
    image = None
    with suppress(ValueError):
        data = read_bytes(path, _IMAGE_BYTES)
        if max(read_image_header(data)[1]) <= MAX_FRAME_SIDE:
            image = decode_image(np.frombuffer(data, np.uint8))
    if image is None:
        raise DatasetError(f"{path} is no image that can be read; replace or remove it.")
    return image


def fit_frame(frame: Frame, height: int, width: int, fit: FrameFit) -> Frame:
    """Bring a frame ``(H, W, 3)`` uint8 to ``height`` and ``width``."""
    rows, columns = frame.shape[:2]
    if fit == "stretch" or rows * width == columns * height:
        return resize_frame(frame, height, width)
    if fit == "crop":
        kept_rows = min(rows, max(1, round(columns * height / width)))
        kept_columns = min(columns, max(1, round(rows * width / height)))
        top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
        return resize_frame(frame[top : top + kept_rows, left : left + kept_columns], height, width)
    scale = min(height / rows, width / columns)
    inner = resize_frame(frame, max(1, round(rows * scale)), max(1, round(columns * scale)))
    boxed = np.zeros((height, width, 3), np.uint8)
    top, left = (height - inner.shape[0]) // 2, (width - inner.shape[1]) // 2
    boxed[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return boxed


def natural_order(paths: Iterable[Path]) -> list[Path]:
    """Sort by name with numbers by their value: ``frame2`` before ``frame10``."""

    def key(path: Path) -> list[tuple[bool, int, str]]:
        parts = re.split(r"(\d+)", path.name)
        return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]

    return sorted(paths, key=key)
