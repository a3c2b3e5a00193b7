"""Adding episodes to a dataset one by one, as they are recorded."""

from __future__ import annotations

from pathlib import Path

from wm_gym.data_collection.datasets.dataset import list_episode_files
from wm_gym.data_collection.datasets.episode_file import (
    EpisodeHeader,
    EpisodeRecorder,
    read_header,
    write_episode_file,
)
from wm_gym.data_collection.datasets.metadata import EPISODES_FOLDER, METADATA_FILE, DatasetMetadata, difference
from wm_gym.data_collection.datasets.writer import holds_dataset
from wm_gym.errors import DatasetError
from wm_gym.lock import locked_folder


class GrowingDataset:
    """A dataset folder that takes one episode after another, each whole or not at all.

    The folder is made with its first episode, and held by its lock only while one is written, so that several processes
    may add to it in turn.

    Args:
        folder: The dataset's folder: missing, empty, or a dataset with the same record.
        metadata: The record; what it says of the simulator, the codec and the source must be what the folder says.

    Raises:
        DatasetError: The folder holds something else.
    """

    def __init__(self, folder: Path, metadata: DatasetMetadata) -> None:
        self.folder = folder
        self.metadata = metadata
        self._check()

    def add(self, recorder: EpisodeRecorder) -> EpisodeHeader:
        """Write a recorded episode with the next free index.

        Raises:
            DatasetError: The episode has no step, the folder holds something else by now, another process is writing
                to it, or the disk refuses it.
        """
        with locked_folder(self.folder, self._check, raises=DatasetError):
            files = list_episode_files(self.folder)
            recorder.index = 1 + max((read_header(file).index for file in files[-1:]), default=-1)
            content = recorder.content()
            if not (self.folder / METADATA_FILE).exists():
                self.metadata.write(self.folder)
            return write_episode_file(self.folder / EPISODES_FOLDER, recorder.index, content)

    def _check(self) -> None:
        if not holds_dataset(self.folder):
            return
        existing = DatasetMetadata.read(self.folder)
        if existing.collection is not None or existing.source != self.metadata.source:
            raise DatasetError(
                f"the dataset {self.folder} comes from elsewhere ({existing.source or 'it does not say where'}), and "
                "episodes of another kind are not mixed into it; choose another folder."
            )
        different = difference(existing, self.metadata)
        if different:
            raise DatasetError(
                f"the dataset {self.folder} has another setting: {different}; choose another folder, or the same "
                "simulator."
            )
