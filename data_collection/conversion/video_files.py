"""Frames to and from video files in which many episodes lie behind each other. ``N`` counts frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np

from wm_gym.data_collection.conversion.lerobot_packages import av
from wm_gym.errors import DatasetError
from wm_gym.frames import Frame
from wm_gym.simulator import MAX_FRAME_SIDE

_ENCODER = "libx264"
# Every second frame stands for itself, so that a reader that jumps has little to decode.
_OPTIONS = {"crf": "18", "g": "2", "bf": "0", "preset": "medium"}


class VideoWriter:
    """Writes frames into an MP4 file (H.264), each one step after the other, until it is closed.

    Frames with even sides are coded as 4:2:0, which every player knows, others as 4:4:4.

    Args:
        path: The file; the folder exists.
        rate: Frames a second.
        size: Height and width of the frames, in pixels.
    """

    def __init__(self, path: Path, rate: Fraction, size: tuple[int, int]) -> None:
        self.path, self.rate, self.count = path, rate, 0
        self._file = av().open(str(path), "w", format="mp4")
        self._stream = self._file.add_stream(_ENCODER, rate=rate, options=dict(_OPTIONS))
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = pixel_format(size)
        self._stream.time_base = 1 / rate

    @property
    def end_s(self) -> float:
        """Time at which the next frame will be, in seconds."""
        return float(self.count / self.rate)

    def add(self, frames: Iterable[Frame]) -> None:
        """Add frames ``(H, W, 3)`` uint8.

        Raises:
            DatasetError: The encoder refuses them.
        """
        try:
            for frame in frames:
                picture = av().VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                picture.pts, picture.time_base = self.count, 1 / self.rate
                self._file.mux(self._stream.encode(picture))
                self.count += 1
        except (av().FFmpegError, ValueError) as error:
            size = f"{self._stream.height}x{self._stream.width}"
            raise DatasetError(f"frames of {size} pixels cannot be coded as a video ({error}).") from error

    def close(self) -> None:
        """Finish the file."""
        try:
            if self.count:
                self._file.mux(self._stream.encode(None))
        finally:
            self._file.close()


def pixel_format(size: tuple[int, int]) -> str:
    """How frames of this height and width are coded."""
    return "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"


def read_video(
    path: Path, start_s: float, count: int, fps: float, prepare: Callable[[Frame], Frame] = lambda frame: frame
) -> list[Frame]:
    """Read frames that lie one after the other in a video file.

    Args:
        path: The file.
        start_s: Time of the first one, in seconds.
        count: ``N``.
        fps: Frames a second.
        prepare: Called with each frame ``(H, W, 3)`` uint8 RGB as soon as it is decoded.

    Returns:
        ``N`` frames, as ``prepare`` gave them.

    Raises:
        DatasetError: The file cannot be read, or lacks one of them.
    """
    package = av()
    found: dict[int, Frame] = {}
    try:
        with package.open(str(path)) as file:
            stream = file.streams.video[0]
            stream.thread_type = "AUTO"
            if max(stream.height, stream.width) > MAX_FRAME_SIDE:
                raise DatasetError(f"{path} has more than {MAX_FRAME_SIDE} pixels a side; make it smaller first.")
            file.seek(max(0, int((start_s - 0.5 / fps) / stream.time_base)), stream=stream)
            for picture in file.decode(stream):
                if picture.time is None:
                    continue
                place = round((picture.time - start_s) * fps)
                if place >= count:
                    break
                if place >= 0 and place not in found:
                    found[place] = prepare(picture.to_ndarray(format="rgb24"))
    except (package.FFmpegError, OSError, IndexError, ValueError) as error:
        raise DatasetError(f"{path} is no video that can be read ({error}); copy the dataset again.") from error
    missing = next((place for place in range(count) if place not in found), None)
    if missing is not None:
        raise DatasetError(
            f"{path} has no frame at {start_s + missing / fps:.3f} s, though an episode has {count} from {start_s:.3f} "
            f"s on at {fps:g} a second; copy the dataset again."
        )
    return [found[place] for place in range(count)]
