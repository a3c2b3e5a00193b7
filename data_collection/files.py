"""Writing files so that a kill or a power cut leaves the old content or the new one, never a part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wm_gym.errors import DatasetError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TEMPORARY_SUFFIX = ".partial"


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary name in the same folder, flush to the disk and rename.

    Raises:
        OSError: the file cannot be written; no temporary file is left.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def remove_temporary_files(folder: Path) -> int:
    """Remove what a killed writer left in a folder; returns how many files."""
    left = list(folder.glob(f"*{TEMPORARY_SUFFIX}"))
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold a lock file, so that two processes do not write one dataset; the end of the process releases it.

    Where the system has no ``flock`` (Windows), nothing is locked.

    Raises:
        DatasetError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    try:
        file = path.open("w")
    except OSError as error:
        raise DatasetError(f"{path.parent} cannot be written: {error.strerror or error}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DatasetError(
                f"another process is writing to {path.parent}; wait for its end or choose another folder."
            ) from error
        yield
