"""One writer at a time: a lock on a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wm_gym.errors import DatasetError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def exclusive_lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock file, so that two processes do not write in one folder; the end of the process releases it.

    Where the system has no ``flock`` (Windows), nothing is locked.

    Args:
        path: The lock file.
        wait: Wait until the other process is done, instead of raising.

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
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if not wait:
                raise DatasetError(
                    f"another process is writing to {path.parent}; wait for its end or choose another folder."
                ) from error
            # The file system knows no locks; who waits writes in one move, and loses no more than time without.
        yield
