"""Datasets on object storage or the Hub: the list of their episodes, and reading through a cache.

There they look as they do in a folder, with one file more: ``episodes.json`` holds the headers of all episodes, so that
opening takes two requests and no listing, which plain web servers do not have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wm_gym.data_collection.datasets.codec import FrameCodec
from wm_gym.data_collection.datasets.download_cache import DownloadCache
from wm_gym.data_collection.datasets.episode_file import End, EpisodeHeader, check_episode_file, episode_file_name
from wm_gym.data_collection.datasets.hub_folder import HubFolder
from wm_gym.data_collection.datasets.metadata import EPISODES_FOLDER, METADATA_FILE, DatasetMetadata
from wm_gym.data_collection.datasets.remote_folder import DamagedError, RemoteFolder, without_password
from wm_gym.data_collection.datasets.writer import check_sizes
from wm_gym.errors import DatasetError, first_invalid
from wm_gym.hub import SCHEME
from wm_gym.plain_files import NotPlainError, parse_json
from wm_gym.simulator import FrameSide

T = TypeVar("T")

INDEX_FILE = "episodes.json"
_ATTEMPTS_TO_READ = 3


class IndexEntry(BaseModel):
    """One episode in ``episodes.json``; see :class:`EpisodeHeader`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    index: int = Field(ge=0)
    length: int = Field(ge=1)
    frame_size: tuple[FrameSide, FrameSide]
    action_dim: int = Field(ge=1)
    vector_dim: int = Field(default=0, ge=0)
    codec: FrameCodec
    seed: int
    behaviour: str
    return_: float
    end: End
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    file_bytes: int = Field(ge=1)


class DatasetIndex(BaseModel):
    """Content of ``episodes.json``.

    Attributes:
        episodes: In the order of their indices.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal["wm_gym.index"] = "wm_gym.index"
    version: Literal[1] = 1
    episodes: list[IndexEntry]


@dataclass(frozen=True)
class RemoteEpisodes:
    """Where the episodes of a dataset on object storage come from; an :class:`EpisodeOrigin`.

    Attributes:
        url: The dataset's.
        downloads: Where they are kept.
    """

    url: str = field(repr=False)  # it may hold a password
    downloads: DownloadCache

    def read(self, header: EpisodeHeader, function: Callable[[Path], T]) -> T:
        """Bring the file here, and let the function read it.

        Raises:
            DatasetError: the network fails, the file is damaged or gone there, or what the function raises.
        """
        for _ in range(_ATTEMPTS_TO_READ - 1):
            self._fetch(header)
            try:
                return function(header.path)
            except DatasetError:
                # Another process made room, or the disk spoilt the copy.
                self.downloads.discard(header.path)
        self._fetch(header)
        return function(header.path)

    def _fetch(self, header: EpisodeHeader) -> None:
        self.downloads.fetch(header.path, header.file_bytes, lambda path: self._download(header, path))

    def _download(self, header: EpisodeHeader, path: Path) -> None:
        name = f"{EPISODES_FOLDER}/{episode_file_name(header.index)}"
        try:
            remote_folder(self.url).download(name, path, header.file_bytes, lambda arrived: _check(header, arrived))
        except FileNotFoundError as error:
            shown = without_password(self.url)
            raise DatasetError(f"{shown}/{name} is gone; push the dataset again.") from error


def _check(header: EpisodeHeader, path: Path) -> None:
    num_bytes = path.stat().st_size
    if num_bytes != header.file_bytes:
        raise DamagedError(f"it arrived with {num_bytes} of its {header.file_bytes} bytes")
    try:
        found, _ = check_episode_file(path)
    except DatasetError as error:
        raise DamagedError("it arrived damaged, its checksum does not match") from error
    for name in IndexEntry.model_fields:
        if getattr(found, name) != getattr(header, name):
            raise DamagedError(f"it is not the episode that {INDEX_FILE} names ({name} differs)")


def open_remote(url: str, downloads: DownloadCache | None) -> tuple[str, DatasetMetadata, list[EpisodeHeader]]:
    """Read what a dataset on object storage is.

    Args:
        url: Its URL.
        downloads: Where downloaded episodes are kept; ``None``: :meth:`DownloadCache.default`.

    Returns:
        The URL as it is shown, the content of ``dataset.json``, and the headers of all episodes.

    Raises:
        DatasetError: there is none, it is damaged, or the network fails.
    """
    folder = remote_folder(url)
    try:
        metadata = DatasetMetadata.parse(folder.read(METADATA_FILE), folder.url)
    except FileNotFoundError as error:
        raise DatasetError(
            f"there is no dataset at {folder.url}: the bucket, the folder or its {METADATA_FILE} is missing; check the "
            "URL, or put one there with `wm-gym dataset push`."
        ) from error
    index = read_index(folder)
    if index is None:
        raise DatasetError(
            f"{folder.url} has no {INDEX_FILE}, the list of its episodes; `wm-gym dataset push` from a copy of the "
            "dataset writes it, and sends only what is missing there."
        )
    if not index.episodes:
        raise DatasetError(f"the dataset {folder.url} has no episodes; push it again.")
    origin = RemoteEpisodes(url.rstrip("/"), downloads or DownloadCache.default())
    headers = []
    for entry in index.episodes:
        path = origin.downloads.path(entry.sha256, episode_file_name(entry.index))
        header = EpisodeHeader(path=path, **dict(entry), origin=origin)
        check_sizes(
            f"{folder.url}/{EPISODES_FOLDER}/{path.name}",
            header.frame_size,
            header.action_dim,
            header.vector_dim,
            metadata,
        )
        headers.append(header)
    return folder.url, metadata, headers


def remote_folder(url: str) -> RemoteFolder | HubFolder:
    """The folder with a URL, to read from.

    Raises:
        DatasetError: The protocol is unknown or its package missing, or it names no dataset on the Hub.
    """
    return HubFolder(url) if url.startswith(SCHEME) else RemoteFolder(url)


def read_index(folder: RemoteFolder | HubFolder) -> DatasetIndex | None:
    """The list of the episodes; ``None`` where there is no dataset yet."""
    try:
        index = DatasetIndex.model_validate(parse_json(folder.read(INDEX_FILE)))
    except FileNotFoundError:
        return None
    except NotPlainError as error:
        raise DatasetError(
            f"{folder.url}/{INDEX_FILE} {error}; delete it there, and push the dataset again."
        ) from error
    except ValidationError as error:
        where, message = first_invalid(error)
        raise DatasetError(
            f"{folder.url}/{INDEX_FILE} is damaged at {where!r}: {message}; delete "
            "it there, and push the dataset again."
        ) from error
    indices = [entry.index for entry in index.episodes]
    if indices != sorted(set(indices)):
        raise DatasetError(
            f"{folder.url}/{INDEX_FILE} is damaged: its episodes are not in order; delete it there, and push again."
        )
    return index
