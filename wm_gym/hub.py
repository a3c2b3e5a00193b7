"""Models, agents and datasets on the Hugging Face Hub, through its own client (extra ``hub``).

Only the files that a bundle or a dataset has are sent and fetched, whatever else a repository holds. Nothing of them is
run: they are read as a local folder's are. Downloads go to the client's own cache (``HF_HOME``), complete or not at
all; episodes of datasets go to that of :class:`~wm_gym.data_collection.DownloadCache`.
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
from wm_gym.errors import BundleError, DatasetError, WMGymError
from wm_gym.files import describe_os_error
from wm_gym.plain_files import read_yaml

RepositoryType = Literal["model", "dataset"]

SCHEME = "hf://"
DATASETS = "datasets/"
"""Before the name of a dataset, in its URL and in the address of its page; models have nothing there."""
_PUBLIC_ENDPOINT = "https://huggingface.co"
_REFERENCE = re.compile(
    r"(?P<owner>[A-Za-z0-9][\w.-]*)/(?P<name>[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w][\w.-]*(/[\w][\w.-]*)*))?", re.ASCII
)
_MADE_WITH_A_REPOSITORY = {".gitattributes", "README.md"}
_FILES_IN_A_COMMIT = 100  # the Hub's own recommendation


@dataclass(frozen=True)
class HubReference:
    """A repository on the Hub.

    Attributes:
        repository: ``"owner/name"``.
        revision: Branch, tag or commit; ``None`` for the newest of the main branch.
        repo_type: ``"model"`` (agents, too) or ``"dataset"``; the Hub keeps their names apart.
    """

    repository: str
    revision: str | None = None
    repo_type: RepositoryType = "model"

    def __str__(self) -> str:
        return SCHEME + self.path + ("" if self.revision is None else f"@{self.revision}")

    @property
    def path(self) -> str:
        """The repository's name, below the Hub's address."""
        return self.repository if self.repo_type == "model" else DATASETS + self.repository

    @property
    def error(self) -> type[WMGymError]:
        """What is raised where it cannot be used."""
        return BundleError if self.repo_type == "model" else DatasetError


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


def parse_dataset(text: str) -> HubReference:
    """The dataset that ``hf://datasets/owner/name`` or ``owner/name`` names, with ``@revision`` or without.

    Raises:
        DatasetError: It names none.
    """
    match = _REFERENCE.fullmatch(text.removeprefix(SCHEME + DATASETS))
    if match is None:
        raise DatasetError(
            f"{text!r} names no dataset on the Hub; write {SCHEME}{DATASETS}owner/name, as in "
            f"{SCHEME}{DATASETS}jane/town-drives."
        )
    return HubReference(f"{match['owner']}/{match['name']}", match["revision"], "dataset")


def check_is_pushable(reference: HubReference) -> None:
    """Check what can be checked of a push without the Hub.

    Raises:
        WMGymError: The reference has a revision, or the extra ``hub`` is missing.
    """
    if reference.revision is not None:
        raise reference.error(f"a push to {reference} makes a new revision; leave @{reference.revision} out.")
    check_client(f"to push to {reference}", reference.error)


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


def download_file(reference: HubReference, name: str, folder: Path | None = None) -> Path:
    """Fetch one file of a repository.

    Args:
        reference: The repository.
        name: The file's path in it.
        folder: Where to put it under that path; ``None``: in the client's own cache, whose copy does where the Hub
            cannot be reached.

    Raises:
        FileNotFoundError: The repository has no such file.
        WMGymError: The extra ``hub`` is missing; there is no such repository or revision, or it may not be read; or the
            Hub cannot be reached.
    """
    client = check_client(f"to read {reference}", reference.error)
    if folder is not None and client.constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        for kind in ("http_get", "xet_get"):  # a bar for each of many files would hide the command's own
            client.utils.disable_progress_bars(f"huggingface_hub.{kind}")
    with _told_in_one_sentence(client, reference):
        try:
            return Path(
                client.hf_hub_download(
                    reference.repository,
                    name,
                    repo_type=reference.repo_type,
                    revision=reference.revision,
                    local_dir=folder,
                    endpoint=endpoint(),
                    library_name="wm_gym",
                    library_version=__version__,
                )
            )
        except client.errors.LocalEntryNotFoundError:
            raise  # it was not even asked for
        except client.errors.EntryNotFoundError as error:
            missing = FileNotFoundError(f"{reference} has no {name}")
            missing.__cause__ = error
    raise missing


def may_pass(error: WMGymError) -> bool:
    """Whether what a function of this module raised may be over at another attempt.

    That the Hub cannot be reached is no such error: the client has made several attempts by then.
    """
    cause = error.__cause__
    status = _status(cause) if isinstance(cause, Exception) else None
    return status is not None and (status == 429 or status >= 500)


def list_files(reference: HubReference) -> set[str]:
    """The names of all files in a repository, except what the Hub puts into a new one; empty where there is none.

    Raises:
        WMGymError: As :func:`upload`.
    """
    client = check_client(f"to push to {reference}", reference.error)
    api = client.HfApi(endpoint=endpoint(), library_name="wm_gym", library_version=__version__)
    with _told_in_one_sentence(client, reference):
        if not api.repo_exists(reference.repository, repo_type=reference.repo_type):
            return set()
        found = api.repo_info(reference.repository, repo_type=reference.repo_type)
    return {file.rfilename for file in found.siblings or ()} - _MADE_WITH_A_REPOSITORY


def upload(
    files: Mapping[str, Path | bytes],
    reference: HubReference,
    *,
    what: str,
    manifest: str,
    private: bool = False,
    message: str | None = None,
    replaceable: Collection[str] = (),
) -> str:
    """Send a model, an agent or a dataset, making the repository where there is none.

    Up to 100 files are one commit; the first of more are sent before, in commits of their own.

    Args:
        files: What to send, by name in the repository; last what says what is there.
        reference: Where to; its revision is not looked at.
        what: What is sent, in a sentence.
        manifest: The file that every repository with such a thing has.
        private: Whether nobody else may see a repository that is made now.
        message: Of the commit.
        replaceable: Names of files that an earlier push may have left; those that are not sent again are removed.
            What else the repository holds stays.

    Returns:
        The address of the repository.

    Raises:
        WMGymError: The extra ``hub`` is missing; one may not write there; the repository holds something else, or is
            public where it should be private; or the Hub cannot be reached. What it held can be read as before then.
    """
    client = check_client(f"to push to {reference}", reference.error)
    api = client.HfApi(endpoint=endpoint(), library_name="wm_gym", library_version=__version__)
    with _told_in_one_sentence(client, reference):
        # Who may write to a repository need not have the right to make one.
        if not api.repo_exists(reference.repository, repo_type=reference.repo_type):
            api.create_repo(reference.repository, repo_type=reference.repo_type, private=private or None)
        found = api.repo_info(reference.repository, repo_type=reference.repo_type)
        there = {file.rfilename for file in found.siblings or ()}
        # What an interrupted push has sent is among the files of this one.
        if there - _MADE_WITH_A_REPOSITORY - files.keys() and manifest not in there:
            raise reference.error(f"{reference} exists and is no {what} of wm_gym; push to another name.")
        if private and not found.private:
            raise reference.error(f"{reference} exists and is public; push to another name, or make it private there.")
        additions = [
            client.CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in files.items()
        ]
        deletions = [client.CommitOperationDelete(name) for name in sorted((there & {*replaceable}) - files.keys())]
        # The last commit is a full one, so that all of what belongs together at the end is in it.
        first = len(additions) % _FILES_IN_A_COMMIT or _FILES_IN_A_COMMIT
        for end in range(first, len(additions) + 1, _FILES_IN_A_COMMIT):
            part = additions[max(0, end - _FILES_IN_A_COMMIT) : end]
            api.create_commit(
                reference.repository,
                [*part, *deletions] if end == len(additions) else part,
                repo_type=reference.repo_type,
                commit_message=message or f"A {what}, written by wm_gym {__version__}",
            )
    return repository_url(reference)


def repository_url(reference: HubReference) -> str:
    """The address of a repository's page."""
    return f"{endpoint()}/{reference.path}"


def check_client(purpose: str, error: type[WMGymError] = BundleError) -> ModuleType:
    """The package ``huggingface_hub``.

    Args:
        purpose: Beginning of the sentence that says why it is needed.
        error: What is raised where it is not installed.
    """
    try:
        importlib.import_module("huggingface_hub.errors")
        return importlib.import_module("huggingface_hub")
    except ImportError as cause:
        raise error(f"{purpose}, huggingface_hub is needed; install it: pip install 'wm_gym[hub]'.") from cause


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
        raise reference.error(sentence) from error


def _sentence(errors: Any, error: Exception, reference: HubReference) -> str | None:
    """What a client's error means; ``None`` for one that is not of the network, the Hub or the disk."""
    where, log_in = endpoint(), "log in with `hf auth login`, or set HF_TOKEN"
    status = _status(error)
    sentence = None
    if isinstance(error, errors.GatedRepoError):
        sentence = f"{reference} is given to those only whom its owner allows; ask on {repository_url(reference)}."
    elif isinstance(error, errors.RepositoryNotFoundError):
        sentence = (
            f"there is no {reference} at {where}, or you may not see it; check the name, {log_in}, or give the path of "
            "a folder."
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        sentence = f"{reference.path} at {where} has no revision {reference.revision!r}; give another one."
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


def _status(error: Exception) -> int | None:
    """The status that a server answered with, where that is the error."""
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status


def _is_of_the_network(errors: Any, error: Exception) -> bool:
    # Of httpx in new versions of the client, of requests in older ones; each has one base for all of its errors.
    known = (errors.HfHubHTTPError.__bases__[0], errors.OfflineModeIsEnabled)
    return isinstance(error, known) or type(error).__module__.partition(".")[0] == "requests"
