"""Putting a dataset on object storage, as :mod:`wm_gym.data_collection.datasets.remote` reads it.

``episodes.json`` and ``dataset.json`` are written last, so that a reader never sees an episode that is not there yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.episode_file import EpisodeHeader, check_episode_file
from wm_gym.data_collection.datasets.metadata import EPISODES_FOLDER, METADATA_FILE, DatasetMetadata, difference
from wm_gym.data_collection.datasets.remote import INDEX_FILE, DatasetIndex, IndexEntry, read_index
from wm_gym.data_collection.datasets.remote_folder import RemoteFolder, local_folder
from wm_gym.errors import DatasetError
from wm_gym.progress import progress_bar

_FILES_AT_ONCE = 32


@dataclass(frozen=True)
class PushSummary:
    """What :func:`push` did.

    Attributes:
        url: Where the dataset is now.
        num_episodes: Its episodes.
        num_sent: Those that were sent now; the others were there.
        sent_bytes: Their size.
    """

    url: str
    num_episodes: int
    num_sent: int
    sent_bytes: int


def push(path: str | Path, url: str, *, progress: bool = True) -> PushSummary:
    """Put a dataset on object storage, or add to it there what it has gained since.

    An episode that is there already, with the same size and header (which holds the checksum), is not sent again, so
    that an interrupted push goes on where it was. A dataset that is there only grows: readers may be at work on it.

    Args:
        path: The dataset's folder.
        url: Where to put it, for example ``"s3://bucket/car"``; the bucket must exist.
        progress: Show a progress bar.

    Raises:
        DatasetError: the dataset is missing or damaged, another one is there, or the network fails.

    Side effects: writes to the URL: the episodes, then ``episodes.json``, at last ``dataset.json``.
    """
    source = local_folder(path)
    dataset = Dataset.open(source)
    folder = RemoteFolder(url)
    listed = _check_grows(dataset.metadata, dataset.episodes, folder)
    missing = _missing(dataset.episodes, listed, folder)
    sizes = [header.file_bytes for header in missing]
    with progress_bar(sum(sizes), "B", "push", enabled=progress, unit_scale=True) as bar:
        for first in range(0, len(missing), _FILES_AT_ONCE):
            part = missing[first : first + _FILES_AT_ONCE]
            for header in part:
                check_episode_file(header.path)
            folder.upload(
                [header.path for header in part], [f"{EPISODES_FOLDER}/{header.path.name}" for header in part]
            )
            bar.update(sum(header.file_bytes for header in part))
    entries = [
        IndexEntry(**{name: getattr(header, name) for name in IndexEntry.model_fields}) for header in dataset.episodes
    ]
    folder.write(INDEX_FILE, DatasetIndex(episodes=entries).model_dump_json().encode())
    folder.write(METADATA_FILE, (source / METADATA_FILE).read_bytes())
    return PushSummary(folder.url, len(entries), len(missing), sum(sizes))


def _check_grows(metadata: DatasetMetadata, headers: list[EpisodeHeader], folder: RemoteFolder) -> set[int]:
    """The indices of the episodes that are listed there, each of which must be one of ``headers``."""
    try:
        there = DatasetMetadata.parse(folder.read(METADATA_FILE), folder.url)
    except FileNotFoundError:
        return set()
    differs = difference(there, metadata)
    if differs:
        raise DatasetError(f"there is another dataset at {folder.url} ({differs}); choose another URL.")
    index = read_index(folder)
    if index is None:
        return set()
    own = {header.index: header.sha256 for header in headers}
    for entry in index.episodes:
        if own.get(entry.index) != entry.sha256:
            what = "is not in this dataset" if entry.index not in own else "differs from this dataset's"
            raise DatasetError(
                f"episode {entry.index} at {folder.url} {what}, and a dataset there only grows; choose another URL."
            )
    return {entry.index for entry in index.episodes}


def _missing(headers: list[EpisodeHeader], listed: set[int], folder: RemoteFolder) -> list[EpisodeHeader]:
    """The episodes that are not there whole; of those not listed, size and header say whether they are the same."""
    sizes = folder.sizes(EPISODES_FOLDER)
    there = [header for header in headers if sizes.get(header.path.name) == header.file_bytes]
    doubtful = [header for header in there if header.index not in listed]
    own = [_head(header.path) for header in doubtful]
    heads = folder.heads([f"{EPISODES_FOLDER}/{header.path.name}" for header in doubtful], [len(head) for head in own])
    others = {header.index for header, left, right in zip(doubtful, own, heads, strict=True) if left != right}
    whole = {header.index for header in there} - others
    return [header for header in headers if header.index not in whole]


def _head(path: Path) -> bytes:
    """The header of a safetensors file, which holds the episode's checksum."""
    with path.open("rb") as file:
        size = file.read(8)
        return size + file.read(int.from_bytes(size, "little"))
