"""Putting a dataset on object storage or the Hub, as :mod:`wm_gym.data_collection.datasets.remote` reads it.

``episodes.json`` and ``dataset.json`` are written last, so that a reader never sees an episode that is not there yet.
"""

from __future__ import annotations

from pathlib import Path

from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.episode_file import EpisodeHeader, check_episode_file
from wm_gym.data_collection.datasets.hub_push import push_to_hub
from wm_gym.data_collection.datasets.metadata import EPISODES_FOLDER, METADATA_FILE
from wm_gym.data_collection.datasets.publishing import PushSummary, check_grows, index_content
from wm_gym.data_collection.datasets.remote import INDEX_FILE
from wm_gym.data_collection.datasets.remote_folder import RemoteFolder, local_folder
from wm_gym.hub import SCHEME
from wm_gym.progress import progress_bar

_FILES_AT_ONCE = 32


def push(path: str | Path, url: str, *, progress: bool = True) -> PushSummary:
    """Put a dataset on object storage or the Hugging Face Hub, or add to it there what it has gained since.

    An episode that is there already, with the same size and header (which holds the checksum), is not sent again, so
    that an interrupted push goes on where it was. A dataset that is there only grows: readers may be at work on it.

    Args:
        path: The dataset's folder.
        url: Where to put it, for example ``"s3://bucket/car"``, where the bucket must exist, or
            ``"hf://datasets/owner/name"``; see :meth:`Dataset.push_to_hub`.
        progress: Show a progress bar; the Hub's client has its own.

    Raises:
        DatasetError: the dataset is missing or damaged, another one is there, or the network fails.

    Side effects: writes to the URL: the episodes, then ``episodes.json``, at last ``dataset.json``.
    """
    source = local_folder(path)
    dataset = Dataset.open(source)
    if url.startswith(SCHEME):
        return push_to_hub(dataset, url)
    folder = RemoteFolder(url)
    listed = check_grows(dataset, folder)
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
    folder.write(INDEX_FILE, index_content(dataset.episodes))
    folder.write(METADATA_FILE, (source / METADATA_FILE).read_bytes())
    return PushSummary(folder.url, len(dataset), len(missing), sum(sizes))


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
