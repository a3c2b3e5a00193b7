"""Writing a new dataset from episodes in memory: the whole folder or nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from wm_gym.data_collection.episode import Episode
from wm_gym.data_collection.episode_file import episode_file_name, write_episode
from wm_gym.data_collection.metadata import EPISODES_FOLDER, METADATA_FILE, DatasetMetadata
from wm_gym.errors import DatasetError
from wm_gym.files import TEMPORARY_SUFFIX


@contextmanager
def new_dataset(target: Path, metadata: DatasetMetadata) -> Iterator[Callable[[Episode], None]]:
    """Write a dataset under a temporary name and rename it at the end; an error leaves nothing behind.

    Yields:
        A function that adds one episode.

    Raises:
        DatasetError: the target is in use, an episode does not fit, or the disk refuses it.
    """
    check_is_free(target)
    folder = target.absolute().with_name(f".{target.absolute().name}.{os.getpid()}{TEMPORARY_SUFFIX}")

    def add(episode: Episode) -> None:
        check_fits(episode, metadata)
        if (folder / EPISODES_FOLDER / episode_file_name(episode.index)).exists():
            raise DatasetError(f"two episodes have the index {episode.index}; number them apart.")
        write_episode(folder / EPISODES_FOLDER, episode, metadata.codec)

    try:
        metadata.write(folder)
        yield add
        try:
            if target.exists():
                target.rmdir()  # it is empty
            folder.rename(target)
        except OSError as error:
            raise DatasetError(f"the dataset {target} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_is_free(target: Path) -> None:
    """Check that a folder does not exist or is empty.

    Raises:
        DatasetError: it holds a dataset or something else.
    """
    if (target / METADATA_FILE).exists():
        raise DatasetError(f"there is a dataset at {target} already; choose another folder.")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise DatasetError(f"{target} is not empty and no dataset; choose a new or empty folder.")


def check_fits(episode: Episode, metadata: DatasetMetadata) -> None:
    """Check an episode by itself and against the dataset's frame size and action format.

    Raises:
        DatasetError: it does not fit.
    """
    episode.check()
    check_sizes(f"episode {episode.index}", episode.frame_size, episode.actions.shape[1], metadata)


def check_sizes(name: str, frame_size: tuple[int, int], action_dim: int, metadata: DatasetMetadata) -> None:
    """Check frame size and action length against the dataset's; ``name`` is what the message calls the episode.

    Raises:
        DatasetError: they differ.
    """
    simulator = metadata.simulator
    if frame_size != simulator.frame_size:
        raise DatasetError(
            f"{name} has frames of {frame_size[0]}x{frame_size[1]} pixels, but the dataset has "
            f"{simulator.frame_size[0]}x{simulator.frame_size[1]}; move it out or resize it."
        )
    if action_dim != simulator.action.dim:
        raise DatasetError(
            f"{name} has actions of {action_dim} values, but the dataset has {simulator.action.dim}; move it out."
        )
