"""How pictures travel to a page: one binary message of a JSON header and the pictures that it lists.

The message is the header's length (4 bytes, little-endian), the header, and one picture after another as the header's
``pictures`` names them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

from wm_gym.data_collection.datasets.codec import FrameCodec
from wm_gym.frames import Frame

_LOSSLESS_PIXELS = 128 * 128  # larger pictures are sent as JPEG
_LOSSLESS, _SMALL = FrameCodec(name="png"), FrameCodec(name="jpeg", quality=90)


def encode_picture(picture: Frame) -> tuple[bytes, str]:
    """A picture ``(H, W, 3)`` uint8 RGB as a file, and its media type; a small one without loss, as PNG."""
    codec = _LOSSLESS if picture.shape[0] * picture.shape[1] <= _LOSSLESS_PIXELS else _SMALL
    return codec.encode(picture), f"image/{codec.name}"


def encode_pictures(header: Mapping[str, Any], pictures: Mapping[str, Frame]) -> bytes:
    """A header and pictures as one binary message.

    Args:
        header: JSON values; ``pictures`` is added: for each its name, media type and length in bytes.
        pictures: ``(H, W, 3)`` uint8 RGB by name, each as :func:`encode_picture` makes it.
    """
    listed, coded = [], []
    for name, picture in pictures.items():
        content, media_type = encode_picture(picture)
        coded.append(content)
        listed.append({"name": name, "type": media_type, "bytes": len(content)})
    text = json.dumps({**header, "pictures": listed}, separators=(",", ":"), allow_nan=False).encode()
    return b"".join((struct.pack("<I", len(text)), text, *coded))


def decode_pictures(message: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The opposite of :func:`encode_pictures`: the header, and each picture by its name, as it was coded."""
    (length,) = struct.unpack_from("<I", message)
    header = json.loads(message[4 : 4 + length])
    place, pictures = 4 + length, {}
    for listed in header["pictures"]:
        pictures[listed["name"]] = message[place : place + listed["bytes"]]
        place += listed["bytes"]
    return header, pictures
