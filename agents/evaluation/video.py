"""Videos of frames: MP4 by OpenCV, GIF by Pillow; written in one move, frame by frame."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from PIL import Image

from wm_gym.errors import OutputError, SimulatorError
from wm_gym.files import check_writable, describe_os_error, written_atomically
from wm_gym.frames import Frame

SUFFIXES = (".mp4", ".gif")


def check_video_path(path: str | Path) -> Path:
    """Check that a video can be written there, before any work is done.

    Raises:
        SimulatorError: The suffix is none of :data:`SUFFIXES`, or the path is a folder.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise SimulatorError(
            f"videos are written as {' or '.join(SUFFIXES)}, but {str(path)!r} was asked for; change its suffix."
        )
    if path.is_dir():
        raise SimulatorError(f"{str(path)!r} is a folder; give the name of a video file.")
    return path


class VideoWriter:
    """Writes frames to a video; the file appears when the ``with`` block ends without an error.

    Args:
        path: ``.mp4`` or ``.gif``; its folder is created.
        fps: Frames a second. GIF counts in hundredths of a second and shows at most 50.

    Raises:
        SimulatorError: The path does not fit, or OpenCV cannot write MP4 here.
        OutputError: At the end of the ``with`` block: the file cannot be written.
    """

    def __init__(self, path: str | Path, fps: float) -> None:
        self.path = check_video_path(path)
        self.fps = fps
        self._output = ExitStack()
        self._temporary: Path | None = None
        self._size: tuple[int, int] | None = None
        self._count = 0
        self._mp4: Any = None
        self._pictures: list[Image.Image] = []

    def add(self, frame: Frame) -> None:
        """Add one frame ``(H, W, 3)`` uint8 RGB; all must have the size of the first.

        Raises:
            SimulatorError: The frame has another size, or the video cannot be written.
        """
        height, width = frame.shape[:2]
        if self._size is None:
            self._size = (height, width)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary = self._output.enter_context(written_atomically(self.path))
        if self._size != (height, width):
            raise SimulatorError(
                f"a video has frames of one size, but after {self._size[0]}x{self._size[1]} came {height}x{width}."
            )
        self._count += 1
        if self.path.suffix.lower() == ".gif":
            # A palette of its own for each frame, at a third of the memory of RGB.
            self._pictures.append(Image.fromarray(frame).quantize(256))
            return
        # The codec needs even sides.
        even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._mp4 is None:
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._mp4 = cv2.VideoWriter(str(self._temporary), codec, self.fps, (even.shape[1], even.shape[0]))
            if not self._mp4.isOpened():
                raise SimulatorError(f"OpenCV cannot write {str(self.path)!r} here; use a .gif instead.")
        self._mp4.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._output as output:
                if self._mp4 is not None:
                    self._mp4.release()
                if kind is not None:
                    output.__exit__(kind, error, trace)
                elif self._temporary is not None:
                    self._finish(self._temporary)
        except OSError as problem:
            if kind is None:
                raise OutputError(describe_os_error(problem, self.path)) from problem

    def _finish(self, file: Path) -> None:
        """Write what is still missing, and see that all is there."""
        if self._pictures:
            first, *rest = self._pictures
            duration_ms = max(20, round(1000 / self.fps))
            first.save(file, save_all=True, append_images=rest, duration=duration_ms, loop=0, format="GIF")
            return
        # OpenCV says nothing of a full disk.
        written = cv2.VideoCapture(str(file))
        count = int(written.get(cv2.CAP_PROP_FRAME_COUNT))
        written.release()
        if count != self._count:
            check_writable(self.path)
            raise OutputError(f"{str(self.path)!r}: only {max(0, count)} of {self._count} frames could be written.")


def write_video(path: str | Path, frames: Iterable[Frame], fps: float) -> Path:
    """Write frames ``(H, W, 3)`` uint8 RGB as a video; see :class:`VideoWriter`."""
    with VideoWriter(path, fps) as writer:
        for frame in frames:
            writer.add(frame)
    return Path(path)
