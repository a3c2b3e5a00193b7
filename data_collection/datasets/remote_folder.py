"""A folder on object storage or any other file system that fsspec reaches, and what can go wrong with it."""

from __future__ import annotations

import errno
import re
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from wm_gym.errors import DatasetError

T = TypeVar("T")

ATTEMPTS = 4
SMALL_FILE_BYTES = 64 * 2**20
BACKOFF_S = 0.5
"""Before the second attempt; twice as long before each further one."""

# What another attempt cannot mend.
_LASTING_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError)
_LASTING_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class DamagedError(Exception):
    """A file did not arrive as it was sent; another attempt may mend that."""


def is_url(path: str | Path) -> bool:
    """Whether this names a folder by a URL (``"s3://bucket/car"``) and not by a path of this machine."""
    return isinstance(path, str) and re.match(r"[A-Za-z][A-Za-z0-9+.:-]+://", path) is not None


def local_folder(path: str | Path) -> Path:
    """The path of a folder on this machine.

    Raises:
        DatasetError: it is a URL.
    """
    if is_url(path):
        raise DatasetError(
            f"{without_password(str(path))} is no folder of this machine, which is wanted here; datasets are made in "
            "a folder, and `wm-gym dataset push` puts them elsewhere."
        )
    return Path(path)


def without_password(url: str) -> str:
    """The URL as messages and records show it."""
    return re.sub(r"//[^/@]*@", "//", url)


class RemoteFolder:
    """A folder by its URL. Whatever fails becomes one :class:`DatasetError`; what may pass is tried again before.

    fsspec finds the credentials where the protocol's package looks for them, and in its own configuration.

    Args:
        url: For example ``"s3://bucket/car"``.

    Attributes:
        url: The same as messages show it, without a password and a slash at its end.

    Raises:
        DatasetError: The protocol is unknown, or its package is missing.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs
        from fsspec.registry import known_implementations

        self.url = without_password(url).rstrip("/")
        protocol = re.split(r"::|://", url)[0]
        try:
            self._fs, root = url_to_fs(url)
        except ImportError as error:
            module = str(known_implementations.get(protocol, {}).get("class", "fsspec")).split(".", maxsplit=1)[0]
            remedy = "install what it asks for" if module == "fsspec" else f"`pip install {module}`"
            raise DatasetError(
                f"{self.url} needs a package for {protocol}:// that is not installed ({_words(error)}); {remedy}."
            ) from error
        except Exception as error:
            raise DatasetError(f"{self.url} cannot be reached: {_words(error)}; check the URL.") from error
        self._root = str(root).rstrip("/")

    def read(self, name: str) -> bytes:
        """The bytes of a file, a small one.

        Raises:
            FileNotFoundError: there is none, or no such folder or bucket.
            DatasetError: it cannot be read, or is not small.
        """

        def attempt() -> bytes:
            self._check_kind(name, SMALL_FILE_BYTES)
            content: bytes = self._fs.cat_file(self._at(name), start=0, end=SMALL_FILE_BYTES + 1)
            if len(content) > SMALL_FILE_BYTES:
                raise DamagedError(f"it has more than {SMALL_FILE_BYTES:,} bytes")
            return content

        return in_several_attempts(f"{self.url}/{name} cannot be read", attempt)

    def download(self, name: str, path: Path, num_bytes: int, check: Callable[[Path], None]) -> None:
        """Copy a file to this machine; ``check`` raises :class:`DamagedError` where it has not arrived whole.

        One that is larger than ``num_bytes`` is not copied where the file system is this machine's.

        Raises:
            FileNotFoundError: there is none.
            DatasetError: it cannot be read, or arrives damaged each time.
        """

        def attempt() -> None:
            self._check_kind(name, num_bytes)
            self._fs.get_file(self._at(name), str(path))
            check(path)

        in_several_attempts(f"{self.url}/{name} cannot be downloaded", attempt)

    def sizes(self, folder: str) -> dict[str, int]:
        """The bytes of each file in a sub-folder, by name; empty where there is no such folder.

        Raises:
            DatasetError: it cannot be listed.
        """

        def listed() -> list[dict[str, Any]]:
            self._fs.invalidate_cache()
            found: list[dict[str, Any]] = self._fs.ls(self._at(folder), detail=True)
            return found

        try:
            entries = in_several_attempts(f"{self.url}/{folder} cannot be listed", listed)
        except FileNotFoundError:
            return {}
        return {entry["name"].rsplit("/", 1)[-1]: int(entry["size"] or 0) for entry in entries}

    def heads(self, names: Sequence[str], num_bytes: Sequence[int]) -> list[bytes]:
        """The first bytes of each file.

        Raises:
            DatasetError: one cannot be read.
        """
        paths = [self._at(name) for name in names]
        starts = [0] * len(names)
        found: list[bytes] = in_several_attempts(
            f"{self.url} cannot be read", lambda: self._fs.cat_ranges(paths, starts, list(num_bytes), on_error="raise")
        )
        return [bytes(head) for head in found]

    def upload(self, paths: Sequence[Path], names: Sequence[str]) -> None:
        """Copy files there, side by side where the file system can.

        Raises:
            DatasetError: one cannot be written.
        """
        sources, targets = [str(path) for path in paths], [self._at(name) for name in names]

        def attempt() -> None:
            try:
                self._fs.put(sources, targets)
            except FileNotFoundError:
                self._make_folders(targets)
                self._fs.put(sources, targets)

        self._send(f"{self.url} cannot be written", attempt)

    def write(self, name: str, content: bytes) -> None:
        """Write a file in one move.

        Raises:
            DatasetError: it cannot be written.
        """

        def attempt() -> None:
            # Object storage shows a file only when it is whole; with a transaction other file systems do as well.
            with self._fs.transaction, self._fs.open(self._at(name), "wb") as file:
                file.write(content)

        self._send(f"{self.url}/{name} cannot be written", attempt)

    def _make_folders(self, targets: Sequence[str]) -> None:
        """Make the folders of these files one by one, where the file system has folders; a bucket is not made."""
        for folder in {target.rpartition("/")[0] for target in targets}:
            parts = folder.split("/")
            for end in range(2, len(parts) + 1):
                with suppress(FileExistsError):
                    self._fs.mkdir("/".join(parts[:end]), create_parents=False)

    def _check_kind(self, name: str, num_bytes: int) -> None:
        """Object storage holds files only; a folder of this machine may hold a pipe or an endless device."""
        if "file" not in (self._fs.protocol, *self._fs.protocol):
            return
        status = Path(self._at(name)).stat()
        if not stat.S_ISREG(status.st_mode):
            raise DamagedError("it is no regular file")
        if status.st_size > num_bytes:
            raise DamagedError(f"it has {status.st_size} bytes in place of {num_bytes}")

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _send(self, failure: str, action: Callable[[], object]) -> None:
        try:
            in_several_attempts(failure, action)
        except FileNotFoundError as error:
            raise DatasetError(f"{failure}: {_words(error)}; check that the bucket exists.") from error


def in_several_attempts(
    failure: str, action: Callable[[], T], may_pass: Callable[[DatasetError], bool] = lambda error: False
) -> T:
    """Do it, a few times if it has to be; only a file that is not there is left to the caller.

    Args:
        failure: Beginning of the sentence that says what did not work.
        action: What to do.
        may_pass: Whether another attempt may mend an error that is in words already.

    Raises:
        FileNotFoundError: From the action.
        DatasetError: It did not work.
    """
    problem: Exception
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(BACKOFF_S * 2 ** (attempt - 1))
        try:
            return action()
        except FileNotFoundError:
            raise
        except DatasetError as error:
            if attempt == ATTEMPTS - 1 or not may_pass(error):
                raise
        except Exception as error:  # every protocol has errors of its own
            if isinstance(error, _LASTING_ERRORS) or getattr(error, "errno", None) in _LASTING_ERRNOS:
                raise DatasetError(f"{failure}: {_words(error)}; check the rights and the free space.") from error
            problem = error
    remedy = (
        "delete it there, and push the dataset again from a sound copy"
        if isinstance(problem, DamagedError)
        else "check the network and the credentials, and run the command again"
    )
    raise DatasetError(f"{failure} in {ATTEMPTS} attempts: {_words(problem)}; {remedy}.") from problem


def _words(error: BaseException) -> str:
    """An error in one line, without a full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
