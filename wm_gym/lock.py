"""One writer at a time: a lock on a folder, released by the end of its process, whatever ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from wm_gym.errors import OutputError, WMGymError
from wm_gym.files import LOCK_FILE, describe_os_error


@contextmanager
def exclusive_lock(path: Path, *, wait: bool = False, raises: type[WMGymError] = OutputError) -> Iterator[None]:
    """Hold a lock file, which goes at the end.

    Args:
        path: The lock file.
        wait: Wait until the other process is done, instead of raising.
        raises: Class of the error.

    Raises:
        WMGymError: Another process holds it, or its folder cannot be written; of the class ``raises``.
    """
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        while True:
            path.touch()
            before = path.stat().st_ino
            lock.acquire()
            with suppress(FileNotFoundError):
                if path.stat().st_ino == before:
                    break
            lock.release()  # of a file that its last holder has just removed
    except Timeout as error:
        raise raises(
            f"another process is writing to {path.parent}; wait for its end or choose another folder."
        ) from error
    except NotImplementedError:
        pass  # the file system knows no locks
    except OSError as error:
        raise raises(describe_os_error(error, path.parent)) from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no file that is open
            path.unlink()
        lock.release()


@contextmanager
def locked_folder(folder: Path, check: Callable[[], None], *, raises: type[WMGymError]) -> Iterator[None]:
    """Hold a folder to work in alone; it is made where it is missing, and removed again if nothing came into it.

    Args:
        folder: The folder.
        check: Raises where the folder holds something else. It is asked first, so that nothing is written to such a
            folder, and again under the lock, as another process may have been first.
        raises: Class of the error.

    Raises:
        WMGymError: Another process works in it, or it cannot be written; of the class ``raises``.
    """
    check()
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise raises(describe_os_error(error, folder)) from error
    try:
        with exclusive_lock(folder / LOCK_FILE, raises=raises):
            check()
            yield
    finally:
        with suppress(OSError):  # the first one that is not empty
            for made in missing:
                made.rmdir()
