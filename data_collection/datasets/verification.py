"""Checking a dataset file by file."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from wm_gym.data_collection.datasets.dataset import list_episode_files
from wm_gym.data_collection.datasets.download_cache import DownloadCache
from wm_gym.data_collection.datasets.episode_file import read_header, verify_episode
from wm_gym.data_collection.datasets.metadata import DatasetMetadata
from wm_gym.data_collection.datasets.remote import open_remote
from wm_gym.data_collection.datasets.remote_folder import is_url
from wm_gym.data_collection.datasets.writer import check_actions, check_sizes
from wm_gym.errors import DatasetError


@dataclass
class Verification:
    """What :func:`verify` found.

    Attributes:
        path: The dataset's folder, or its URL as text.
        num_episodes: Episodes without a fault.
        num_steps: Their steps.
        problems: One sentence for each bad file.
    """

    path: Path | str
    num_episodes: int = 0
    num_steps: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def is_valid(self) -> bool:
        """Whether no problem was found."""
        return not self.problems


def verify(path: str | Path) -> Verification:
    """Read every episode whole: checksum, shapes, finite numbers, every frame decodes, header agrees with content.

    Bad episodes do not raise; each becomes a sentence in ``problems``. Of a dataset on object storage every episode is
    downloaded anew, whatever the cache holds, and not kept.

    Args:
        path: The dataset's folder or URL.

    Raises:
        DatasetError: the folder is missing or no dataset, or its ``dataset.json`` is bad.
    """
    if is_url(path):
        return _verify_remote(str(path))
    folder = Path(path)
    metadata = DatasetMetadata.read(folder)
    found = Verification(folder)
    for file in list_episode_files(folder):
        try:
            found.num_steps += _verify_episode(file, metadata)
            found.num_episodes += 1
        except DatasetError as error:
            found.problems.append(str(error))
    if not found.num_episodes and not found.problems:
        found.problems.append(f"{folder} has no episodes; run the collection again.")
    return found


def _verify_remote(url: str) -> Verification:
    with TemporaryDirectory(prefix="wm_gym-") as folder:
        downloads = DownloadCache(Path(folder))
        shown, metadata, headers = open_remote(url, downloads)
        found = Verification(shown)
        for header in headers:
            try:
                found.num_steps += header.read(partial(_verify_episode, metadata=metadata))
                found.num_episodes += 1
            except DatasetError as error:
                found.problems.append(str(error))
            downloads.discard(header.path)
    return found


def _verify_episode(path: Path, metadata: DatasetMetadata) -> int:
    header = read_header(path)
    check_sizes(str(path), header.frame_size, header.action_dim, header.vector_dim, metadata)
    header, steps = verify_episode(path)
    check_actions(str(path), steps["actions"], metadata)
    end = "terminated" if steps["terminated"][-1] else "truncated" if steps["truncated"][-1] else "none"
    if header.end != end or not np.isclose(header.return_, np.sum(steps["rewards"], dtype=np.float64)):
        raise DatasetError(f"{path} has a header that does not agree with its content; delete the file.")
    return header.length
