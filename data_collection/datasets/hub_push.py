"""Sending a dataset to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.episode_file import check_episode_file
from wm_gym.data_collection.datasets.hub_card import CARD, PICTURE, hub_card, picture_strip
from wm_gym.data_collection.datasets.hub_folder import HubFolder
from wm_gym.data_collection.datasets.metadata import EPISODES_FOLDER, METADATA_FILE
from wm_gym.data_collection.datasets.publishing import PushSummary, check_grows, index_content
from wm_gym.data_collection.datasets.remote import INDEX_FILE
from wm_gym.data_collection.datasets.remote_folder import local_folder
from wm_gym.errors import DatasetError
from wm_gym.hub import check_is_pushable, list_files, parse_dataset, upload


def push_to_hub(dataset: Dataset, repository: str, *, private: bool = False, message: str | None = None) -> PushSummary:
    """Send a dataset of this machine; arguments and errors as for :meth:`Dataset.push_to_hub`.

    The repository's name may also be written as a URL, ``hf://datasets/owner/name``.
    """
    reference = parse_dataset(repository)
    check_is_pushable(reference)
    source = local_folder(str(dataset.path))
    if dataset.is_cut:
        raise DatasetError(f"a part of {source} that was split by time cannot be pushed; push the whole dataset.")
    there = list_files(reference)
    listed: Collection[int] = ()
    card = ""
    if METADATA_FILE in there:
        folder = HubFolder(str(reference))
        listed = check_grows(dataset, folder)
        with suppress(FileNotFoundError):
            card = folder.read(CARD).decode(errors="replace")
    names = {header.index: f"{EPISODES_FOLDER}/{header.path.name}" for header in dataset.episodes}
    missing = [header for header in dataset.episodes if header.index not in listed or names[header.index] not in there]
    for header in missing:
        check_episode_file(header.path)
    address = upload(
        {
            **{names[header.index]: header.path for header in missing},
            PICTURE: picture_strip(dataset),
            CARD: hub_card(dataset, reference, card).encode(),
            INDEX_FILE: index_content(dataset.episodes),
            METADATA_FILE: source / METADATA_FILE,
        },
        reference,
        what="dataset",
        manifest=METADATA_FILE,
        private=private,
        message=message,
    )
    return PushSummary(address, len(dataset), len(missing), sum(header.file_bytes for header in missing))
