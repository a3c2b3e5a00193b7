"""How frames are stored: raw bytes, one lossless image a frame, or JPEG where a loss is asked for."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from wm_gym.data_collection.datasets.image_header import read_image_header
from wm_gym.errors import DatasetError, did_you_mean
from wm_gym.frames import Frame

CodecName = Literal["raw", "png", "webp", "jpeg"]
CODEC_NAMES: tuple[CodecName, ...] = ("raw", "png", "webp", "jpeg")
DEFAULT_CODEC = "png"
DEFAULT_JPEG_QUALITY = 95

# Without a row filter CarRacing's flat colours are coded and decoded about twice as fast, and noisy camera frames come
# out a fifth larger (measured). OpenCV releases that cannot choose the filter take their own.
_PNG_PARAMETERS = [cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT]
if hasattr(cv2, "IMWRITE_PNG_FILTER"):
    _PNG_PARAMETERS += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]


class FrameCodec(BaseModel):
    """The coding of a dataset's frames.

    Attributes:
        name: ``"raw"`` (bytes as they are), ``"png"`` and ``"webp"`` (both lossless), or ``"jpeg"`` (lossy).
        quality: JPEG quality, 1 to 100; ``None`` for every other codec.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: CodecName = "png"
    quality: int | None = Field(default=None, ge=1, le=100)

    @model_validator(mode="after")
    def _quality_belongs_to_jpeg(self) -> FrameCodec:
        if (self.quality is None) == (self.name == "jpeg"):
            raise ValueError("a quality belongs to jpeg, and to no other codec")
        return self

    @classmethod
    def parse(cls, text: str) -> FrameCodec:
        """Read ``"raw"``, ``"png"``, ``"webp"``, ``"jpeg"`` (quality 95) or ``"jpeg:QUALITY"``.

        Raises:
            DatasetError: the name is unknown, or the quality is not a whole number from 1 to 100.
        """
        name, colon, quality = text.partition(":")
        if name == "jpeg":
            quality = quality if colon else str(DEFAULT_JPEG_QUALITY)
            if not (quality.isascii() and quality.isdigit() and 1 <= int(quality) <= 100):
                raise DatasetError(f"the JPEG quality {quality!r} is not a whole number from 1 to 100.")
            return cls(name="jpeg", quality=int(quality))
        if text in CODEC_NAMES:
            return cls.model_validate({"name": text})
        raise DatasetError(
            f"the frame codec {text!r} is unknown{did_you_mean(name, CODEC_NAMES)}; "
            "use raw, png, webp, jpeg or jpeg:QUALITY."
        )

    def __str__(self) -> str:
        return self.name if self.quality is None else f"{self.name}:{self.quality}"

    @property
    def is_lossless(self) -> bool:
        """Whether a decoded frame equals the stored one byte for byte."""
        return self.name != "jpeg"

    def encode(self, frame: Frame) -> bytes:
        """Code one frame ``(H, W, 3)`` uint8 RGB."""
        if self.name == "raw":
            return frame.tobytes()
        coded, data = cv2.imencode(f".{self.name}", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), self._parameters())
        if not coded:
            raise DatasetError(f"a frame of shape {frame.shape} cannot be coded as {self}; use another codec.")
        return data.tobytes()

    def check_header(self, data: NDArray[np.uint8], frame_size: tuple[int, int]) -> None:
        """Check format and size of one image ``(bytes,)`` uint8 without decoding it.

        Raises:
            DatasetError: the bytes are no image of this codec, or of another height and width.
        """
        try:
            found, size = read_image_header(data.data)
        except ValueError as error:
            raise DatasetError(f"{data.size} bytes cannot be decoded as a {self.name} image: {error}.") from error
        if found != self.name:
            raise DatasetError(f"a frame is coded as {found}, but the codec is {self.name}.")
        if size != frame_size:
            raise DatasetError(f"a frame has {size[0]}x{size[1]} pixels in place of {frame_size[0]}x{frame_size[1]}.")

    def decode(self, data: NDArray[np.uint8]) -> Frame:
        """Decode one image ``(bytes,)`` uint8 to ``(H, W, 3)`` uint8 RGB; not for ``"raw"``, which has no image.

        See :meth:`check_header` for what to compare first.

        Raises:
            DatasetError: the bytes are no image.
        """
        decoded = decode_image(data)
        if decoded is None:
            raise DatasetError(f"{data.size} bytes cannot be decoded as a {self.name} image.")
        return decoded

    def _parameters(self) -> list[int]:
        if self.name == "png":
            return _PNG_PARAMETERS
        if self.name == "webp":
            return [cv2.IMWRITE_WEBP_QUALITY, 101]  # above 100 means lossless
        return [cv2.IMWRITE_JPEG_QUALITY, self.quality or DEFAULT_JPEG_QUALITY]


def decode_image(data: NDArray[np.uint8]) -> Frame | None:
    """The image in the bytes of a file ``(bytes,)`` uint8, as ``(H, W, 3)`` uint8 RGB; ``None`` where there is none."""
    try:
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except cv2.error:
        decoded = None
    return None if decoded is None else np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB, dst=decoded), np.uint8)
