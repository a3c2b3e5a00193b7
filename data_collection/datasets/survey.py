"""What a dataset holds, damaged files included: for browsing it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wm_gym.data_collection.datasets.dataset import Dataset, list_episode_files
from wm_gym.data_collection.datasets.download_cache import DownloadCache
from wm_gym.data_collection.datasets.episode_file import EpisodeHeader, read_header
from wm_gym.data_collection.datasets.metadata import DatasetMetadata
from wm_gym.data_collection.datasets.remote_folder import is_url
from wm_gym.data_collection.datasets.writer import check_sizes
from wm_gym.errors import DatasetError


@dataclass(frozen=True)
class Survey:
    """What :func:`survey` found.

    Attributes:
        path: The dataset's folder, or its URL without a password.
        metadata: What ``dataset.json`` says.
        headers: Of the episodes whose header can be read, in the order of their indices.
        problems: A sentence for every file whose header cannot, by the file's name.
    """

    path: Path | str
    metadata: DatasetMetadata
    headers: list[EpisodeHeader]
    problems: dict[str, str]


def survey(path: str | Path, downloads: DownloadCache | None = None) -> Survey:
    """Read all headers of a dataset; a damaged one is a sentence, no error.

    The contents of the episodes are not read, so that a damaged one may be among the headers.

    Args:
        path: The dataset's folder or URL; see :meth:`~wm_gym.data_collection.datasets.dataset.Dataset.open`.
        downloads: Where downloaded episodes are kept; ``None``: :meth:`DownloadCache.default`.

    Raises:
        DatasetError: The folder is missing, is no dataset or has no episodes, or the network fails.
    """
    dataset = Dataset.open(path, downloads=downloads)
    if is_url(path):
        return Survey(dataset.path, dataset.metadata, dataset.episodes, {})
    found = Survey(dataset.path, dataset.metadata, [], {})
    for file in list_episode_files(Path(path)):
        try:
            header = read_header(file)
            check_sizes(str(file), header.frame_size, header.action_dim, header.vector_dim, dataset.metadata)
            found.headers.append(header)
        except DatasetError as error:
            found.problems[file.name] = str(error)
    return found
