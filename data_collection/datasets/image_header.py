"""Format and size of a coded image from its header, without decoding it: a few bytes can stand for gigabytes."""

from __future__ import annotations

import struct

_PNG = b"\x89PNG\r\n\x1a\n"
_NOT_FRAMES = {0xC4, 0xC8, 0xCC}  # markers among those of JPEG's frame headers (0xC0 to 0xCF) that begin none


def read_image_header(data: bytes | memoryview) -> tuple[str, tuple[int, int]]:
    """Format (``"png"``, ``"webp"`` or ``"jpeg"``) and height and width of an image.

    Raises:
        ValueError: The bytes begin no image of these formats.
    """
    head = bytes(data[:30])
    try:
        if head.startswith(_PNG) and head[12:16] == b"IHDR":
            width, height = struct.unpack(">II", head[16:24])
            return "png", (height, width)
        if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
            return "webp", _webp_size(head)
        if head.startswith(b"\xff\xd8\xff"):
            return "jpeg", _jpeg_size(data)
    except (struct.error, IndexError) as error:
        raise ValueError("the image is cut short") from error
    raise ValueError("the bytes are no PNG, WebP or JPEG image")


def _webp_size(head: bytes) -> tuple[int, int]:
    """RFC 9649: simple lossy, lossless and extended files."""
    chunk = head[12:16]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(head[27:30], "little"), 1 + int.from_bytes(head[24:27], "little")
    if chunk == b"VP8L" and head[20] == 0x2F:
        (bits,) = struct.unpack("<I", head[21:25])
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    if chunk == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", head[26:30])
        return height & 0x3FFF, width & 0x3FFF
    raise ValueError("the WebP image has no header that is known")


def _jpeg_size(data: bytes | memoryview) -> tuple[int, int]:
    """The first frame header (ITU T.81, B.2.2) behind any other segments."""
    position = 2
    while True:
        if data[position] != 0xFF:
            raise ValueError("the JPEG image has no frame header")
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in _NOT_FRAMES:
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
            return height, width
        elif marker in {0xD9, 0xDA}:  # the image's end, or its data
            raise ValueError("the JPEG image has no frame header")
        else:
            (length,) = struct.unpack(">H", data[position + 2 : position + 4])
            position += 2 + max(2, length)
