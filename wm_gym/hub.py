"""Models and agents on the Hugging Face Hub, through its own client (extra ``hub``).

Only the files that a bundle has are sent and fetched, whatever else a repository holds. Nothing of them is run: they
are read as a local folder's are. Downloads go to the client's own cache (``HF_HOME``), complete or not at all.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, overload

from wm_gym._version import __version__
from wm_gym.bundle_kind import BundleKind
from wm_gym.checksums import CHECKSUMS, check_file, check_settings
from wm_gym.errors import BundleError
from wm_gym.files import describe_os_error
from wm_gym.plain_files import read_yaml

SCHEME = "hf://"
_PUBLIC_ENDPOINT = "https://huggingface.co"
_REFERENCE = re.compile(
    r"(?P<owner>[A-Za-z0-9][\w.-]*)/(?P<name>[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w][\w.-]*(/[\w][\w.-]*)*))?", re.ASCII
)
_MADE_WITH_A_REPOSITORY = {".gitattributes", "README.md"}


@dataclass(frozen=True)
class HubReference:
    """A repository on the Hub.

    Attributes:
        repository: ``"owner/name"``.
        revision: Branch, tag or commit; ``None`` for the newest of the main branch.
    """

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return SCHEME + self.repository + ("" if self.revision is None else f"@{self.revision}")


@overload
def parse_reference(path: str, *, may_be_path: Literal[False]) -> HubReference: ...


@overload
def parse_reference(path: str | Path, *, may_be_path: bool = True) -> HubReference | None: ...


def parse_reference(path: str | Path, *, may_be_path: bool = True) -> HubReference | None:
    """The repository that a text names; ``None`` where it is the path of a folder.

    ``hf://owner/name`` is always a repository. ``owner/name`` is one where neither that path nor its first folder
    exists here, so that a mistyped path inside an existing folder is not looked for elsewhere. A ``Path`` never is.

    Args:
        path: The text, with ``@revision`` at its end or without.
        may_be_path: Whether it can be a path at all; otherwise what is no repository is an error.

    Raises:
        BundleError: It names no repository, although it begins with ``hf://`` or cannot be a path.
    """
    text = path if isinstance(path, str) else ""
    match = _REFERENCE.fullmatch(text.removeprefix(SCHEME))
    if text.startswith(SCHEME) or not may_be_path:
        if match is None:
            raise BundleError(f"{text!r} names no repository; write owner/name, as in jane/town-model.")
    elif match is None or Path(text).exists() or Path(match["owner"]).exists():
        return None
    return HubReference(f"{match['owner']}/{match['name']}", match["revision"])


def download(reference: HubReference, kind: BundleKind) -> Path:
    """Fetch a model or an agent, as far as the cache does not have it; needs no network for what is there.

    Returns:
        Its folder in the cache, which is not to be changed.

    Raises:
        BundleError: The extra ``hub`` is missing; there is no such repository or revision, or it may not be read; it
            holds none of this kind; the Hub cannot be reached; or a file arrived damaged.
    """
    client = check_client(f"there is no folder {reference.repository!r} here, and to read {reference}")

    def fetch(*, again: bool) -> Path:
        with _told_in_one_sentence(client, reference):
            folder = client.snapshot_download(
                reference.repository,
                revision=reference.revision,
                allow_patterns=list(kind.files),
                force_download=again,
                endpoint=endpoint(),
                library_name="wm_gym",
                library_version=__version__,
            )
        if not (Path(folder) / kind.manifest).is_file():
            raise BundleError(
                f"{reference} is no {kind.name} of wm_gym: it has no {kind.manifest}; give another repository."
            )
        return Path(folder)

    try:
        folder = fetch(again=False)
        _check_arrived(folder, kind, reference)
    except _DamagedError:
        folder = fetch(again=True)  # the copy here may be what is damaged
        _check_arrived(folder, kind, reference)
    return folder


def upload(
    files: Mapping[str, Path],
    reference: HubReference,
    kind: BundleKind,
    *,
    private: bool = False,
    message: str | None = None,
    replaceable: Collection[str] = (),
) -> str:
    """Send a model or an agent in one commit, making the repository where there is none.

    Args:
        files: What to send, by name in the repository.
        reference: Where to; its revision is not looked at.
        kind: What is sent.
        private: Whether nobody else may see a repository that is made now.
        message: Of the commit.
        replaceable: Names of files that an earlier push may have left; those that are not sent again are removed.
            What else the repository holds stays.

    Returns:
        The address of the repository.

    Raises:
        BundleError: The extra ``hub`` is missing; one may not write there; the repository holds something else, or is
            public where it should be private; or the Hub cannot be reached. What it held is unchanged then.
    """
    client = check_client(f"to push to {reference}")
    api = client.HfApi(endpoint=endpoint(), library_name="wm_gym", library_version=__version__)
    with _told_in_one_sentence(client, reference):
        # Who may write to a repository need not have the right to make one.
        if not api.repo_exists(reference.repository):
            api.create_repo(reference.repository, private=private or None)
        found = api.model_info(reference.repository)
        there = {file.rfilename for file in found.siblings or ()}
        if there - _MADE_WITH_A_REPOSITORY and kind.manifest not in there:
            raise BundleError(f"{reference} exists and is no {kind.name} of wm_gym; push to another name.")
        if private and not found.private:
            raise BundleError(f"{reference} exists and is public; push to another name, or make it private there.")
        api.create_commit(
            reference.repository,
            [
                *(client.CommitOperationAdd(name, str(path)) for name, path in sorted(files.items())),
                *(client.CommitOperationDelete(name) for name in sorted((there & {*replaceable}) - files.keys())),
            ],
            commit_message=message or f"A {kind.name}, written by wm_gym {__version__}",
        )
    return repository_url(reference)


def repository_url(reference: HubReference) -> str:
    """The address of a repository's page."""
    return f"{endpoint()}/{reference.repository}"


def check_client(purpose: str) -> ModuleType:
    """The package ``huggingface_hub``.

    Args:
        purpose: Beginning of the sentence that says why it is needed.

    Raises:
        BundleError: It is not installed.
    """
    try:
        importlib.import_module("huggingface_hub.errors")
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise BundleError(f"{purpose}, huggingface_hub is needed; install it: pip install 'wm_gym[hub]'.") from error


def endpoint() -> str:
    """The Hub's address: the variable ``HF_ENDPOINT``, else the public one."""
    return (os.environ.get("HF_ENDPOINT") or _PUBLIC_ENDPOINT).rstrip("/")


class _DamagedError(BundleError):
    """A downloaded file is not what its manifest says."""


def _check_arrived(folder: Path, kind: BundleKind, reference: HubReference) -> None:
    """Compare every downloaded file with its checksum; manifests from before there were any pass."""
    remedy = f"push {reference} again, or delete {str(folder)!r} if only this copy of it is damaged"
    for manifest in kind.manifests:
        file = folder / manifest
        if not file.is_file():
            continue  # of what the folder need not have
        values = read_yaml(file, error=_DamagedError, remedy=remedy)
        checksums = values.get(CHECKSUMS)
        if checksums is not None and not isinstance(checksums, dict):
            raise _DamagedError(f"{str(file)!r} is damaged: its checksums are no mapping; {remedy}.")
        check_settings(values, file, error=_DamagedError, remedy=remedy)
        for name in checksums or ():
            if (Path(manifest).parent / str(name)).as_posix() in kind.files:
                check_file(file.parent / name, checksums, error=_DamagedError, remedy=remedy)


@contextmanager
def _told_in_one_sentence(client: ModuleType, reference: HubReference) -> Iterator[None]:
    """Turn what the client raises into one sentence."""
    try:
        yield
    except Exception as error:
        sentence = _sentence(client.errors, error, reference)
        if sentence is None:
            raise
        raise BundleError(sentence) from error


def _sentence(errors: Any, error: Exception, reference: HubReference) -> str | None:
    """What a client's error means; ``None`` for one that is not of the network, the Hub or the disk."""
    where, log_in = endpoint(), "log in with `hf auth login`, or set HF_TOKEN"
    status = getattr(getattr(error, "response", None), "status_code", None)
    sentence = None
    if isinstance(error, errors.GatedRepoError):
        sentence = f"{reference} is given to those only whom its owner allows; ask on {repository_url(reference)}."
    elif isinstance(error, errors.RepositoryNotFoundError):
        sentence = (
            f"there is no {reference} at {where}, or you may not see it; check the name, {log_in}, or give the path of "
            "a folder."
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        sentence = f"{reference.repository} at {where} has no revision {reference.revision!r}; give another one."
    elif isinstance(error, errors.LocalEntryNotFoundError):
        sentence = (
            f"{where} cannot be reached, and this machine keeps no whole copy of {reference}; connect to the network "
            "(or unset HF_HUB_OFFLINE), or give the path of a folder."
        )
    elif status in (401, 403):
        sentence = f"{where} does not let you use {reference}; {log_in}, with an account or a token that may."
    elif status is not None:
        sentence = f"{where} answered a request for {reference} with status {status}; try again later."
    elif isinstance(error, errors.HFValidationError):
        sentence = f"{reference} is no name of a repository; write owner/name."
    elif _is_of_the_network(errors, error):
        sentence = f"{where} cannot be reached ({type(error).__name__}); connect to the network and try again."
    elif isinstance(error, OSError) and error.errno is not None:
        sentence = describe_os_error(error)
    return sentence


def _is_of_the_network(errors: Any, error: Exception) -> bool:
    # Of httpx in new versions of the client, of requests in older ones; each has one base for all of its errors.
    known = (errors.HfHubHTTPError.__bases__[0], errors.OfflineModeIsEnabled)
    return isinstance(error, known) or type(error).__module__.partition(".")[0] == "requests"
