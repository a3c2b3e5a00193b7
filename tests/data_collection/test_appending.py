"""Episodes that are added to a dataset one by one."""

import multiprocessing

import numpy as np
import pytest

from wm_gym.data_collection import CollectionSettings, Dataset, DatasetMetadata, verify
from wm_gym.data_collection.datasets import writer
from wm_gym.data_collection.datasets.appending import GrowingDataset
from wm_gym.data_collection.datasets.codec import FrameCodec
from wm_gym.data_collection.datasets.episode_file import EpisodeRecorder
from wm_gym.errors import DatasetError
from wm_gym.files import is_free
from wm_gym.lock import exclusive_lock
from wm_gym.observation import Observation

NO_VECTOR = np.zeros(0, np.float32)


def recorded(steps=2, value=0):
    """An episode of plain frames."""
    frame = np.full((64, 64, 3), value, np.uint8)
    recorder = EpisodeRecorder(FrameCodec(), Observation(frame, NO_VECTOR), seed=1, behaviour="hand", index=0)
    for _ in range(steps):
        recorder.add(
            np.array([0, 1, 0, 1], np.float32), Observation(frame, NO_VECTOR), 0.5, terminated=False, truncated=False
        )
    return recorder


@pytest.fixture
def metadata(driving_spec):
    return DatasetMetadata(simulator=driving_spec, source="driven in a test")


def test_the_folder_is_made_with_the_first_episode_and_grows(tmp_path, metadata):
    folder = tmp_path / "drives"
    growing = GrowingDataset(folder, metadata)
    assert not folder.exists()
    assert growing.add(recorded(2)).index == 0
    assert growing.add(recorded(3)).index == 1
    assert GrowingDataset(folder, metadata).add(recorded(4)).index == 2
    assert verify(folder).problems == []
    assert [header.length for header in Dataset.open(folder).episodes] == [2, 3, 4]
    # An episode that was taken out leaves its number free; the ones after it keep theirs.
    (folder / "episodes" / "episode-000001.safetensors").unlink()
    assert growing.add(recorded(5)).index == 3
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_an_episode_without_a_step_leaves_nothing_behind(tmp_path, metadata):
    growing = GrowingDataset(tmp_path / "drives", metadata)
    with pytest.raises(DatasetError, match="no step"):
        growing.add(recorded(0))
    assert not (tmp_path / "drives").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"source": "driven elsewhere"}, "comes from elsewhere"),
        ({"collection": CollectionSettings(seed=0, behaviours={"random": 1.0})}, "comes from elsewhere"),
        ({"codec": FrameCodec(name="webp")}, "codec.name is 'webp' there and 'png' here"),
    ],
)
def test_a_dataset_of_another_kind_is_left_alone(tmp_path, metadata, change, sentence):
    metadata.model_copy(update=change).write(tmp_path / "drives")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DatasetError, match=sentence):
        GrowingDataset(tmp_path / "drives", metadata)
    assert sorted(tmp_path.rglob("*")) == before


def test_one_writer_at_a_time(tmp_path, metadata):
    growing = GrowingDataset(tmp_path / "drives", metadata)
    growing.add(recorded())
    with (
        exclusive_lock(tmp_path / "drives" / ".lock"),
        pytest.raises(DatasetError, match="another process is writing"),
    ):
        growing.add(recorded())
    assert growing.add(recorded()).index == 1


@pytest.mark.parametrize("first", [True, False])
def test_a_folder_that_another_process_begins_meanwhile_is_no_strangers(tmp_path, metadata, monkeypatch, first):
    other = GrowingDataset(tmp_path / "drives", metadata)

    def is_free_meanwhile(folder, own=()):
        monkeypatch.undo()
        if first:
            other.add(recorded())
        free = is_free(folder, own)
        if not first:
            other.add(recorded())
        return free

    monkeypatch.setattr(writer, "is_free", is_free_meanwhile)
    growing = GrowingDataset(tmp_path / "drives", metadata)
    assert growing.add(recorded()).index == 1


def _add_some(folder, metadata):
    growing, added = GrowingDataset(folder, metadata), 0
    while added < 5:
        try:
            growing.add(recorded())
        except DatasetError:  # the other one is writing
            continue
        added += 1


def test_two_processes_add_in_turn(tmp_path, metadata):
    spawning = multiprocessing.get_context("fork")
    processes = [spawning.Process(target=_add_some, args=(tmp_path / "drives", metadata)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert verify(tmp_path / "drives").problems == []
    assert [header.index for header in Dataset.open(tmp_path / "drives").episodes] == list(range(10))
