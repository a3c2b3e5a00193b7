"""What all ways to push a dataset share: it only grows there, and has a list of its episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.episode_file import EpisodeHeader
from wm_gym.data_collection.datasets.hub_folder import HubFolder
from wm_gym.data_collection.datasets.metadata import METADATA_FILE, DatasetMetadata, difference
from wm_gym.data_collection.datasets.remote import DatasetIndex, IndexEntry, read_index
from wm_gym.data_collection.datasets.remote_folder import RemoteFolder
from wm_gym.errors import DatasetError


@dataclass(frozen=True)
class PushSummary:
    """What :func:`~wm_gym.data_collection.push` did.

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


def check_grows(dataset: Dataset, folder: RemoteFolder | HubFolder) -> set[int]:
    """Check that a push of a dataset to a folder would take nothing away from what is there.

    Returns:
        The indices of the episodes that are listed there, each of which is one of the dataset's.

    Raises:
        DatasetError: Another dataset is there, or one with other episodes; or it is damaged, or cannot be read.
    """
    try:
        there = DatasetMetadata.parse(folder.read(METADATA_FILE), folder.url)
    except FileNotFoundError:
        return set()
    differs = difference(there, dataset.metadata)
    if differs:
        raise DatasetError(f"there is another dataset at {folder.url} ({differs}); choose another URL.")
    index = read_index(folder)
    if index is None:
        return set()
    own = {header.index: header.sha256 for header in dataset.episodes}
    for entry in index.episodes:
        if own.get(entry.index) != entry.sha256:
            what = "is not in this dataset" if entry.index not in own else "differs from this dataset's"
            raise DatasetError(
                f"episode {entry.index} at {folder.url} {what}, and a dataset there only grows; choose another URL."
            )
    return {entry.index for entry in index.episodes}


def index_content(headers: Sequence[EpisodeHeader]) -> bytes:
    """The content of ``episodes.json``."""
    entries = [IndexEntry(**{name: getattr(header, name) for name in IndexEntry.model_fields}) for header in headers]
    return DatasetIndex(episodes=entries).model_dump_json().encode()
