"""Writing a new dataset from episodes in memory: the whole folder or nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from wm_gym.actions import FloatArray
from wm_gym.data_collection.datasets.episode import Episode
from wm_gym.data_collection.datasets.episode_file import episode_file_name, write_episode
from wm_gym.data_collection.datasets.metadata import EPISODES_FOLDER, METADATA_FILE, DatasetMetadata
from wm_gym.errors import DatasetError
from wm_gym.files import check_writable, describe_os_error, folder_written_atomically, is_free


def write_dataset(target: Path, metadata: DatasetMetadata, episodes: Iterable[Episode]) -> None:
    """Write a dataset under a temporary name and rename it at the end; an error leaves nothing behind.

    Raises:
        DatasetError: the target is in use, an episode does not fit, or the disk refuses it.
    """
    check_is_free(target)
    try:
        with folder_written_atomically(target.absolute()) as folder:
            metadata.write(folder)
            for episode in episodes:
                episode.check()
                name = f"episode {episode.index}"
                check_sizes(name, episode.frame_size, episode.actions.shape[1], episode.vectors.shape[1], metadata)
                check_actions(name, episode.actions, metadata)
                if (folder / EPISODES_FOLDER / episode_file_name(episode.index)).exists():
                    raise DatasetError(f"two episodes have the index {episode.index}; number them apart.")
                write_episode(folder / EPISODES_FOLDER, episode, metadata.codec)
    except OSError as error:
        raise DatasetError(f"the dataset {target} cannot be written: {describe_os_error(error)}") from error


def holds_dataset(target: Path) -> bool:
    """Whether a folder holds a dataset; if not, it is missing or empty, but for what a killed process may have left.

    Raises:
        DatasetError: It holds something else.
    """
    free = is_free(target, own=(EPISODES_FOLDER,))
    if (target / METADATA_FILE).exists():
        return True
    if not free:
        raise DatasetError(f"{target} is not empty and no dataset; choose a new or empty folder.")
    return False


def check_is_free(target: Path) -> None:
    """Check that a folder does not exist or is empty, but for what a killed process may have left.

    Raises:
        DatasetError: It holds a dataset or something else.
    """
    if holds_dataset(target):
        raise DatasetError(f"there is a dataset at {target} already; choose another folder.")


def check_target(target: Path) -> None:
    """Check, before anything is read, that a new dataset can be written into a folder.

    Raises:
        DatasetError: It holds something already.
        OutputError: It cannot be written.
    """
    check_is_free(target)
    check_writable(target, is_folder=True)


def check_actions(name: str, actions: FloatArray, metadata: DatasetMetadata) -> None:
    """Check actions ``(T, A)`` against the bounds of the dataset's action format.

    Raises:
        DatasetError: a value lies outside; the sentence names the first.
    """
    action = metadata.simulator.action
    low, high = np.asarray(action.low, np.float32), np.asarray(action.high, np.float32)
    outside = np.argwhere(~((actions >= low) & (actions <= high)))
    if len(outside):
        step, value = outside[0]
        raise DatasetError(
            f"{name} has the action value {actions[step, value]:g} at step {step}, outside its bounds "
            f"{low[value]:g} to {high[value]:g}; clip the actions, or record it again."
        )


def check_sizes(
    name: str, frame_size: tuple[int, int], action_dim: int, vector_dim: int, metadata: DatasetMetadata
) -> None:
    """Check frame size and the lengths of actions and vectors against the dataset's.

    ``name`` is what the message calls the episode.

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
    if vector_dim != len(simulator.vector):
        raise DatasetError(
            f"{name} has {vector_dim} numbers beside each frame, but the dataset has {len(simulator.vector)}; move it "
            "out."
        )
