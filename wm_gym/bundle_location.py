"""Where a model or an agent is: a folder, what the package ships, or a repository on the Hugging Face Hub."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Literal

from wm_gym.bundle_kind import BundleKind
from wm_gym.errors import BundleError
from wm_gym.hub import download, parse_reference

BUNDLED = "bundled"
"""The name of what the package ships, wherever a folder is asked for."""


def resolve_folder(path: str | Path, kind: BundleKind) -> Path:
    """The folder of a model or an agent, wherever it is; the one function for every argument that names one.

    Args:
        path: A folder; ``"bundled"``; or a repository on the Hugging Face Hub, ``"owner/name"`` or
            ``"owner/name@revision"``, with ``hf://`` before it or without (see :func:`wm_gym.hub.parse_reference`
            for when that is a path). Its files are downloaded and their checksums compared.
        kind: What is looked for.

    Returns:
        A folder here. One that was given by its path need not exist.

    Raises:
        BundleError: The installation ships none, or the repository cannot be read.
    """
    if str(path) == BUNDLED:
        return bundled_folder(kind.asset)
    reference = parse_reference(path)
    return Path(path) if reference is None else download(reference, kind)


def shipped_model(fingerprint: str) -> str | Path:
    """Where the world model is that an agent named as the one that the package shipped when it was trained.

    Args:
        fingerprint: Of that model.

    Returns:
        The folder of one that was shipped before; ``"bundled"`` for any other.

    Raises:
        BundleError: The installation ships none.
    """
    former = bundled_folder("model").parent / "former" / fingerprint[:12]
    return former if former.is_dir() else BUNDLED


def names_a_bundle(path: str | Path) -> bool:
    """Whether this is ``"bundled"``, a folder that exists, or a repository on the Hub; nothing is downloaded.

    Raises:
        BundleError: It begins with ``hf://`` but names no repository.
    """
    return str(path) == BUNDLED or Path(path).is_dir() or parse_reference(path) is not None


def bundled_folder(kind: Literal["model", "agent"]) -> Path:
    """Folder of what the package ships.

    Raises:
        BundleError: This installation has none.
    """
    folder = Path(str(resources.files("wm_gym") / "assets" / kind))
    if not folder.is_dir():
        raise BundleError(f"this installation of wm_gym ships no bundled {kind}; give the path of one you trained.")
    return folder
