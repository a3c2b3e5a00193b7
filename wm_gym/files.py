"""Writing files so that a kill, an error or a power cut leaves either the old content or the new, never a part.

Content is written under a temporary name beside its place and moved there. What a killed process left under such a name
goes when the same file is written again, or when its folder is next opened for work (:mod:`wm_gym.run_folder`).
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wm_gym.errors import OutputError

if TYPE_CHECKING:
    from torch import Tensor

LOCK_FILE = ".lock"
"""Name of the lock in a folder that one process at a time works on (:mod:`wm_gym.lock`)."""

_TEMPORARY = re.compile(r"\.partial(\.\w+)?$")
_OWN_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)|/dev/(stdin|stdout|stderr)")
_STANDARD = ("stdin", "stdout", "stderr")
_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"
_STARTED = time.time()
_numbers = itertools.count()
_FORGOTTEN_S = 86_400.0  # a temporary file of another machine that is as old as this is nobody's
_PROBE_BYTES = 1 << 16

_CAUSES = {
    errno.ENOSPC: ("the disk is full", "free some space, then run the same command again"),
    errno.EDQUOT: ("the quota of disk space is used up", "free some space, then run the same command again"),
    errno.EFBIG: ("the file is larger than is allowed here", "raise the limit (`ulimit -f`) or choose another place"),
    errno.EROFS: ("the disk is read-only", "choose another place"),
    errno.EACCES: ("permission denied", "change the permissions or choose another place"),
    errno.EPERM: ("operation not permitted", "change the permissions or choose another place"),
    errno.EMFILE: ("too many files are open", "raise the limit (`ulimit -n`), then run the same command again"),
    errno.ENFILE: ("too many files are open", "close other programs, then run the same command again"),
    errno.ENOENT: ("there is no such file or folder", "check the path"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another place"),
    errno.EISDIR: ("it is a folder, not a file", "give the name of a file"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.ELOOP: ("the link leads to itself", "choose another place"),
}


def describe_os_error(error: OSError, path: Path | None = None) -> str:
    """One sentence that names file, cause and remedy; ``path`` takes the place of the error's own file name."""
    filename = error.filename if path is None else path
    cause, remedy = _CAUSES.get(error.errno or 0, (error.strerror or str(error), "mend that and run it again"))
    where = "" if filename is None else f"{os.fsdecode(filename)!r}: "
    return f"{where}{cause}; {remedy}."


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Give the name of a temporary file to write, with the suffix of ``path``; move it into place at the end.

    A link is followed. What is no regular file (a pipe, a device, ``/dev/stdout``) stays and gets the content.

    Raises:
        OSError: The file cannot be written; it is as it was, and no temporary file is left.
    """
    try:
        target = _behind_links(path)
        if _is_written_in_place(target):
            with tempfile.TemporaryDirectory() as folder:
                temporary = Path(folder) / path.name
                yield temporary
                _copy_into(temporary, target)
            return
        temporary = _temporary_beside(target, target.suffix)
        try:
            yield temporary
            _flush_to_disk(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        if os.name == "posix":
            _flush_to_disk(target.parent)  # the new name too survives a power cut
    except OSError as error:
        # Errors of a write name no file, those of the temporary file one that nobody knows.
        error.filename = str(path)
        raise


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, then move it into place; see :func:`written_atomically`."""
    with written_atomically(path) as temporary:
        write(temporary)


def write_bytes_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file in one move."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file (UTF-8) in one move."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json_atomically(path: Path, value: Any) -> None:
    """Write a JSON file in one move."""
    write_text_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_json_result(path: Path, value: Any) -> None:
    """Write a JSON file that a user asked for, with the folders above it.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomically(path, value)
    except OSError as error:
        raise OutputError(describe_os_error(error, path)) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file in one move.

    By way of memory, because the library's own ``save_file`` lets nobody else read the file and hides why it failed.
    """
    from safetensors.torch import save

    write_bytes_atomically(path, save(dict(tensors), None if metadata is None else dict(metadata)))


@contextmanager
def folder_written_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; on success it takes the place of ``path``, on an error nothing changes.

    A link to a folder is followed. Where the system can exchange two names (Linux), there is the old folder or the new
    one at every moment; elsewhere a kill may leave none, and the next call brings the old one back.

    Raises:
        OSError: The folder cannot be written.
    """
    target = _behind_links(path)
    temporary, replaced = _temporary_beside(target), target.with_name(f".{target.name}.replaced")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush_to_disk(file)
            _move_folder(temporary, target, replaced)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if target.exists():
                shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        if isinstance(error.filename, str):
            error.filename = error.filename.replace(str(temporary), str(path))
        raise


def _move_folder(source: Path, target: Path, replaced: Path) -> None:
    """Put ``source`` in the place of ``target``; what was there is under one of the other two names afterwards."""
    if not target.exists():
        source.rename(target)
        return
    if _exchange(source, target):
        return
    target.rename(replaced)
    try:
        source.rename(target)
    except BaseException:
        replaced.rename(target)
        raise


def _exchange(first: Path, second: Path) -> bool:
    """Let two names change places in one step; ``False`` where system or file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    at_fdcwd, rename_exchange = -100, 2
    return bool(rename(at_fdcwd, os.fsencode(first), at_fdcwd, os.fsencode(second), rename_exchange) == 0)


def check_replaceable(path: Path, manifest: str) -> bool:
    """Whether a folder may be written at ``path``: there is none, an empty one, or one with the file ``manifest``."""
    return not path.exists() or (path / manifest).exists() or is_free(path)


def is_free(folder: Path, own: Collection[str] = ()) -> bool:
    """Whether a folder is missing, or empty but for what a killed process may have left.

    Ask this before whether the folder holds a file that marks it as ours: another process may write the first file of
    a run or a dataset between the two questions, and asked in the other order, its folder is taken for a stranger's.

    Args:
        folder: The folder.
        own: Files, or empty folders, that a killed process of ours may have left beside temporary files and its lock.
    """
    if not folder.is_dir():
        return not folder.exists() and not folder.is_symlink()
    try:
        return all(
            entry.name == LOCK_FILE
            or _TEMPORARY.search(entry.name)
            or (entry.name in own and (entry.is_file() or not any(entry.iterdir())))
            for entry in folder.iterdir()
        )
    except FileNotFoundError:  # another process has just removed a folder that it had made
        return is_free(folder, own)


def check_writable(path: str | Path, *, is_folder: bool = False) -> Path:
    """Check before any work that a file (or, with ``is_folder``, a folder) can be written at ``path``; returns it.

    Raises:
        OutputError: It cannot: the disk is full or read-only, permission is missing, or something else is there.
    """
    path = Path(path)
    try:
        target = _behind_links(path)
        if is_folder and target.exists() and not target.is_dir():
            raise OutputError(f"{str(path)!r} is no folder; choose another place.")
        if not is_folder and target.is_dir():
            raise OutputError(f"{str(path)!r} is a folder; give the name of a file.")
        if _is_written_in_place(target):
            if not _OWN_DESCRIPTOR.fullmatch(str(target)) and not os.access(target, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return path
        folder = target.absolute().parent
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_PROBE_BYTES))
    except OSError as error:
        raise OutputError(describe_os_error(error, path)) from error
    return path


def remove_temporary_files(folder: Path) -> int:
    """Remove what killed writers left in a folder that nobody else writes to now; returns how many files and folders.

    Hold the folder's lock: also what a living process writes just now would go.
    """
    if not folder.is_dir():
        return 0
    left = [entry for entry in folder.iterdir() if _TEMPORARY.search(entry.name)]
    for entry in left:
        _remove(entry)
    return len(left)


def _behind_links(path: Path) -> Path:
    """The file that a link leads to, or ``path`` itself; what the system makes of names such as /dev/stdout stays."""
    for _ in range(40):
        if not path.is_symlink() or _OWN_DESCRIPTOR.fullmatch(str(path)) or path.is_relative_to("/proc"):
            return path
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _is_written_in_place(path: Path) -> bool:
    if _OWN_DESCRIPTOR.fullmatch(str(path)):
        return True
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _copy_into(source: Path, target: Path) -> None:
    """Write a file's content to a pipe, a device, or a descriptor of this process."""
    own = _OWN_DESCRIPTOR.fullmatch(str(target))
    if own is None:
        with source.open("rb") as content, target.open("wb") as file:
            shutil.copyfileobj(content, file)
        return
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    # A file that the shell has opened has its own position, which opening it again would lose.
    descriptor = int(own[1]) if own[1] else _STANDARD.index(own[2])
    with source.open("rb") as content, os.fdopen(os.dup(descriptor), "wb") as file:
        shutil.copyfileobj(content, file)


def _temporary_beside(path: Path, suffix: str = "") -> Path:
    """A temporary name for ``path``; removes those that dead processes left."""
    prefix = f".{path.name}."
    own = path.with_name(f"{prefix}{_MACHINE}-{os.getpid()}-{next(_numbers)}.partial{suffix}")
    with suppress(OSError):
        for entry in path.parent.iterdir():
            if entry.name.startswith(prefix) and _TEMPORARY.search(entry.name) and _is_dead(entry, len(prefix)):
                _remove(entry)
    return own


def _is_dead(temporary: Path, prefix_length: int) -> bool:
    """Whether the process that wrote under a temporary name is no more; of other machines only its age can tell."""
    owner = re.match(r"([0-9a-f]{8})-(\d+)-\d+\.partial", temporary.name[prefix_length:])
    written = temporary.lstat().st_mtime
    if owner is not None and owner[1] == _MACHINE:
        if int(owner[2]) == os.getpid():
            return written < _STARTED  # an earlier process with this number, as in a container that is started again
        if os.name == "posix" and not _is_alive(int(owner[2])):
            return True
    return time.time() - written > _FORGOTTEN_S


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        with suppress(OSError):
            entry.unlink()


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
