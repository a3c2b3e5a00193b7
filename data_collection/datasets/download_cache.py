"""The folder in which downloaded episodes are kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from wm_gym.cache_folder import FOLDER_VARIABLE, cache_folder
from wm_gym.errors import ConfigError, DatasetError, reason_of
from wm_gym.files import LOCK_FILE, folder_written_atomically, remove_temporary_files
from wm_gym.lock import exclusive_lock

LIMIT_VARIABLE = "WM_GYM_CACHE_GB"


class DownloadCache:
    """Downloaded files by the checksum of their content, so that equal episodes of any datasets are kept once.

    A file is downloaded under a temporary name and moved into place. Any number of processes of this machine may share
    the folder: what one downloads, the others wait for. Deleting the folder loses nothing but time.

    Args:
        folder: Where it is; made on first use.
        limit_bytes: Most bytes to keep; the files that were not read for the longest time go first. ``None``: no limit.
    """

    def __init__(self, folder: str | Path, limit_bytes: int | None = None) -> None:
        self.folder = Path(folder)
        self.limit_bytes = limit_bytes

    @classmethod
    def default(cls, folder: str | Path | None = None) -> DownloadCache:
        """What the environment says: the folder ``WM_GYM_CACHE`` with at most ``WM_GYM_CACHE_GB`` of 10^9 bytes.

        Args:
            folder: Takes the place of ``WM_GYM_CACHE``; without both it is ``wm_gym`` in the user's cache folder.

        Raises:
            ConfigError: ``WM_GYM_CACHE_GB`` is no positive number.
        """
        chosen = folder or cache_folder()
        text = os.environ.get(LIMIT_VARIABLE)
        if not text:
            return cls(chosen)
        try:
            limit = float(text)
        except ValueError:
            limit = 0.0
        if not 0 < limit < float("inf"):
            raise ConfigError(f"{LIMIT_VARIABLE}={text} must be a positive number of gigabytes, as in 50.")
        return cls(chosen, int(limit * 1e9))

    def path(self, sha256: str, name: str) -> Path:
        """Where a file with this checksum and name is, or will be."""
        return self.folder / sha256[:2] / sha256 / name

    def fetch(self, path: Path, num_bytes: int, download: Callable[[Path], None]) -> None:
        """See that a file of :meth:`path` is there; ``download`` fills and checks a temporary one where it is not.

        Raises:
            DatasetError: the folder cannot be written, or what ``download`` raises.
        """
        if _has_size(path, num_bytes):
            with suppress(OSError):
                os.utime(path)  # it was read now
            return
        shard = path.parent.parent
        try:
            shard.mkdir(parents=True, exist_ok=True)
            with exclusive_lock(shard / LOCK_FILE, wait=True, raises=DatasetError):
                if _has_size(path, num_bytes):
                    return  # another process was first
                remove_temporary_files(shard)
                with folder_written_atomically(path.parent) as temporary:
                    download(temporary / path.name)
        except OSError as error:
            raise DatasetError(
                f"the cache {self.folder} cannot be written: {reason_of(error)}; free some space there, or name "
                f"another folder with {FOLDER_VARIABLE}."
            ) from error
        if self.limit_bytes is not None:
            self._make_room(self.limit_bytes, newest=path)

    def discard(self, path: Path) -> None:
        """Remove a file of :meth:`path`; nothing happens where it is gone already, or just being written."""
        with suppress(DatasetError), exclusive_lock(path.parent.parent / LOCK_FILE, raises=DatasetError):
            shutil.rmtree(path.parent, ignore_errors=True)

    def _make_room(self, limit_bytes: int, newest: Path) -> None:
        files = []
        for folder in self.folder.glob("??/[!.]*"):  # what begins with a dot is just being downloaded
            with suppress(OSError):  # another process removes files too
                for entry in os.scandir(folder):
                    path, status = Path(entry.path), entry.stat()
                    files.append((path == newest, status.st_mtime_ns, status.st_size, path))
        used = sum(size for *_, size, _ in files)
        for is_newest, _, size, path in sorted(files):
            if used <= limit_bytes or is_newest:
                return
            self.discard(path)
            used -= size


def _has_size(path: Path, num_bytes: int) -> bool:
    try:
        return path.stat().st_size == num_bytes
    except OSError:
        return False
