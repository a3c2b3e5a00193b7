"""Checksums of a saved model or agent: of each of its files, and of the settings that give them their meaning.

They stand in the folder's manifest (``config.yaml``, ``agent.yaml``) under ``checksums``: the SHA-256 of every file by
its name, and under ``settings`` that of all else in the manifest, these checksums included.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from wm_gym.errors import WMGymError, reason_of
from wm_gym.plain_files import NotPlainError, open_regular_file

CHECKSUMS = "checksums"
_SETTINGS = "settings"
_BLOCK_BYTES = 2**20


def canonical(values: Mapping[str, Any]) -> bytes:
    """One text for equal settings, however their file is laid out."""
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def add_checksums(settings: Mapping[str, Any], folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """The contents of a manifest: the settings, and the checksums of them and of those named files that there are."""
    files = {name: file_sha256(folder / name) for name in names if (folder / name).exists()}
    own = hashlib.sha256(canonical({**settings, CHECKSUMS: files})).hexdigest()
    # They come first: a manifest that is cut off keeps them, and is not taken for one from before there were any.
    return {CHECKSUMS: {**files, _SETTINGS: own}, **settings}


def check_settings(values: Mapping[str, Any], manifest: Path, *, error: type[WMGymError], remedy: str) -> None:
    """Compare a manifest's contents with their checksum; one written before there were checksums gives a warning.

    Raises:
        WMGymError: ``error``, where they differ.
    """
    checksums = values.get(CHECKSUMS)
    if checksums is None:
        warn_of_no_checksum(str(manifest))
        return
    # Texts as keys only: so is what the checksum was made of.
    settings = {**values, CHECKSUMS: {name: value for name, value in checksums.items() if name != _SETTINGS}}
    if hashlib.sha256(canonical(settings)).hexdigest() != checksums.get(_SETTINGS):
        raise error(f"{str(manifest)!r} has changed since it was written: its checksum does not match; {remedy}.")


def check_file(path: Path, checksums: Mapping[str, str] | None, *, error: type[WMGymError], remedy: str) -> None:
    """Compare a file with its checksum; without checksums (``None``) nothing is compared.

    Raises:
        WMGymError: ``error``, where they differ, or the file cannot be read.
    """
    if checksums is None:
        return
    try:
        actual = file_sha256(path)
    except (OSError, NotPlainError) as problem:
        raise error(f"{str(path)!r} is missing or damaged ({reason_of(problem)}); {remedy}.") from problem
    if actual != checksums.get(path.name):
        raise error(f"{str(path)!r} has changed since it was written: its checksum does not match; {remedy}.")


@cache
def warn_of_no_checksum(name: str) -> None:
    """Warn, once for each file, that nobody can tell whether it has changed."""
    warnings.warn(
        f"{name!r} was written by an older wm_gym, without checksums: whether it has changed since cannot be told.",
        stacklevel=2,
    )


def file_sha256(path: Path) -> str:
    """SHA-256 of a regular file, as a hexadecimal text."""
    digest = hashlib.sha256()
    with open_regular_file(path) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
