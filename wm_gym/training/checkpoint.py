"""Checkpoints of a training run: tensors and plain values only, written in one move, each with its checksum.

A checkpoint is a zip file of ``torch.save``. Its checksum stands in the zip's comment and covers every other byte, and
the settings of the run that it belongs to.
"""

from __future__ import annotations

import hashlib
import io
import re
import time
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from wm_gym.checksums import canonical, warn_of_no_checksum
from wm_gym.errors import TrainingError, WMGymError
from wm_gym.files import write_bytes_atomically
from wm_gym.plain_files import NotPlainError, open_regular_file

_COMMENT = re.compile(rb"wm_gym run=([0-9a-f]{64}) sha256=([0-9a-f]{64})")
_COMMENT_BYTES = len("wm_gym run= sha256=") + 2 * 64
_END_OF_ZIP = b"PK\x05\x06"
_END_BYTES = 22
_BLOCK_BYTES = 2**20


def save_checkpoint(path: Path, state: dict[str, Any], run: Mapping[str, Any]) -> None:
    """Write a checkpoint in one move; its folder is made where it is missing.

    By way of memory, as PyTorch ends in errors of its own, or ends the process, where it cannot write a file.

    Args:
        path: The file.
        state: Tensors and plain values.
        run: What the run is, as JSON values (:attr:`wm_gym.run_folder.RunFolder.contents`). A checkpoint of another
            run is refused.
    """
    content = io.BytesIO()
    torch.save(state, content)
    size = content.seek(-2, io.SEEK_END)  # the last two bytes are the length of the comment
    own = _digest_of_run(path, run)
    comment = f"wm_gym run={own} sha256={_checksum(content, size, own)}".encode()
    content.seek(size)
    content.write(len(comment).to_bytes(2, "little") + comment)
    path.parent.mkdir(exist_ok=True)
    write_bytes_atomically(path, content.getbuffer())


def load_checkpoint(path: Path, run: Mapping[str, Any] | None = None, *, keys: Collection[str] = ()) -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values are accepted, so reading runs no code from it.

    Args:
        path: The file.
        run: As for :func:`save_checkpoint`; ``None`` takes one of any run.
        keys: What the state must hold.

    Raises:
        TrainingError: The file is missing, damaged, of another run or holds anything else.
    """
    remedy = "remove the run's folder to start afresh"
    try:
        _check(path, run)
    except (OSError, NotPlainError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TrainingError(f"the checkpoint {str(path)!r} cannot be read: it {reason}; {remedy}.") from error
    state = read_torch_file(path, error=TrainingError, remedy=remedy)
    if not isinstance(state, dict) or not all(key in state for key in keys):
        raise TrainingError(f"{str(path)!r} is no checkpoint of this kind of training; {remedy}.")
    return state


def read_torch_file(path: Path, *, error: type[WMGymError], remedy: str) -> Any:
    """Read a file of ``torch.save`` that holds tensors and plain values only; reading runs no code from it.

    Raises:
        WMGymError: ``error``, where the file is missing, damaged or holds anything else.
    """
    try:
        open_regular_file(path).close()
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # what torch raises depends on which of a file's bytes are damaged
        raise error(f"{str(path)!r} cannot be read; {remedy}.") from problem


def _check(path: Path, run: Mapping[str, Any] | None) -> None:
    """Compare the checksum, before anything is made of the contents."""
    with open_regular_file(path) as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _COMMENT_BYTES - 2))
        tail = file.read()
        found = _COMMENT.fullmatch(tail[2:])
        if found is None:
            if tail[-_END_BYTES:].startswith(_END_OF_ZIP) and tail.endswith(b"\0\0"):
                warn_of_no_checksum(str(path))
            else:
                raise NotPlainError("is damaged: it does not end as a checkpoint does")
        # Stored as they are: a small file cannot unpack to a huge one.
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or any(
                entry.file_size > size for entry in entries
            ):
                raise NotPlainError("is damaged: its contents are larger than the file")
        if found is None:
            return
        own, checksum = (part.decode() for part in found.groups())
        length = int.from_bytes(tail[:2], "little")
        if length != _COMMENT_BYTES or _checksum(file, size - _COMMENT_BYTES - 2, own) != checksum:
            raise NotPlainError("has changed since it was written: its checksum does not match")
    if run is not None and own != _digest_of_run(path, run):
        raise NotPlainError("belongs to another run, with other settings or data")


def _digest_of_run(path: Path, run: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical({"file": path.name, "run": run})).hexdigest()


def _checksum(file: IO[bytes], size: int, run: str) -> str:
    """SHA-256 of the run's digest and the first ``size`` bytes of a file."""
    digest = hashlib.sha256(run.encode())
    file.seek(0)
    while size > 0 and (block := file.read(min(size, _BLOCK_BYTES))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()


class CheckpointClock:
    """Says when the next checkpoint is due, such that writing them costs at most a set share of the time.

    Small models are therefore saved every few updates, large ones every few minutes.

    Args:
        overhead: Share of the time that may go into writing, for example 0.05.
    """

    def __init__(self, overhead: float) -> None:
        self.overhead = overhead
        self._interval_s = 0.0
        self._last_end = time.monotonic()

    def is_due(self) -> bool:
        """Whether enough time has passed since the last checkpoint."""
        return time.monotonic() - self._last_end >= self._interval_s

    def record(self, started: float) -> None:
        """Note that a checkpoint begun at ``started`` (``time.monotonic()``) has been written."""
        self._last_end = time.monotonic()
        self._interval_s = (self._last_end - started) / self.overhead
