import json
import sys

import gymnasium as gym
import numpy as np
import pytest
from episode_factory import assert_same_episode, make_episode, make_metadata

from wm_gym.data_collection import Dataset
from wm_gym.data_collection.conversion.minari_io import export_minari, import_minari
from wm_gym.errors import DatasetError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")

minari = pytest.importorskip("minari")
EpisodeBuffer = pytest.importorskip("minari.data_collector").EpisodeBuffer


@pytest.fixture(autouse=True)
def storage(tmp_path, monkeypatch):
    folder = tmp_path / "minari"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    return folder


@pytest.fixture
def source(tmp_path):
    # Frames of 32 pixels and more are what Minari would code as JPEG by itself.
    names, seeds = ("calm", "wild", "calm"), (-1, 7, 9)
    episodes = [
        make_episode(i, steps=4 + i, size=(40, 48), behaviour=names[i], seed=seeds[i], terminated=i == 1)
        for i in range(3)
    ]
    episodes[2].index = 12
    return Dataset.create(tmp_path / "source", make_metadata(size=(40, 48)), episodes)


def test_round_trip_keeps_everything(source, tmp_path):
    export_minari(source, "toy/mixed-v0")
    back = import_minari("toy/mixed-v0", tmp_path / "back")
    assert back.num_episodes == 3
    for i in range(3):
        assert_same_episode(back.read_episode(i), source.read_episode(i))
    assert back.metadata.simulator == source.metadata.simulator
    assert back.fingerprint == source.fingerprint


def test_minari_reads_what_was_exported(source):
    export_minari(source, "toy/mixed-v0")
    loaded = minari.load_dataset("toy/mixed-v0")
    assert (loaded.total_episodes, loaded.total_steps) == (3, source.num_steps)
    assert loaded.action_space == source.metadata.simulator.action.space()
    episode = next(iter(loaded.iterate_episodes([1])))
    np.testing.assert_array_equal(episode.observations, source.read_episode(1).frames)
    np.testing.assert_array_equal(episode.terminations, source.read_episode(1).terminated)
    assert len(episode.infos["speed"]) == len(episode.observations)


ACTIONS = gym.spaces.Box(-2.0, 2.0, (2,), np.float32)


def buffer(observations, infos=None, seed=None):
    steps = len(observations) - 1
    return EpisodeBuffer(
        seed=seed,
        observations=observations,
        actions=np.full((steps, 2), 1.5, np.float32),
        rewards=np.full(steps, 0.5),
        terminations=np.zeros(steps, bool),
        truncations=np.arange(steps) == steps - 1,
        infos=infos,
    )


def test_a_dataset_that_another_program_wrote(tmp_path):
    frames = np.broadcast_to(np.arange(5, 12, dtype=np.uint8)[:, None, None, None], (7, 32, 32, 3))
    infos = {
        "phase": np.arange(7.0),
        "gear": np.arange(6),
        "label": {"nested": np.zeros(7)},
        "position": np.zeros((7, 2)),
        "words": ["a"] * 7,
    }
    minari.create_dataset_from_buffers(
        "colour-v0",
        buffer=[buffer(frames, infos, seed=3), buffer(frames + 1, infos)],
        observation_space=gym.spaces.Box(0, 255, (32, 32, 3), np.uint8),
        action_space=ACTIONS,
        jpeg_encoding=False,
    )
    dataset = import_minari("colour-v0", tmp_path / "out", frame_size=(16, 16))
    first, second = (dataset.read_episode(i) for i in range(2))
    np.testing.assert_array_equal(first.frames[:, 0, 0, 0], np.arange(5, 12))
    np.testing.assert_array_equal(first.infos["phase"], np.arange(1, 7, dtype=np.float32))
    np.testing.assert_array_equal(first.infos["gear"], np.arange(6, dtype=np.float32))
    assert first.infos.keys() == {"phase", "gear"}
    assert (first.actions == 1.5).all()
    assert (first.behaviour, first.seed, second.seed) == ("minari", 3, -1)
    simulator = dataset.metadata.simulator
    assert (simulator.action.kind, simulator.action.high, simulator.frame_size) == ("native", (2.0, 2.0), (16, 16))


def test_a_dataset_without_images_is_refused(tmp_path):
    minari.create_dataset_from_buffers(
        "vector-v0",
        buffer=[buffer(np.zeros((3, 4), np.float32))],
        observation_space=gym.spaces.Box(-1, 1, (4,), np.float32),
        action_space=ACTIONS,
    )
    with pytest.raises(DatasetError, match="images are needed"):
        import_minari("vector-v0", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dataset_that_would_make_an_environment_is_refused(source, storage, tmp_path):
    export_minari(source, "toy-v0")
    path = storage / "toy-v0" / "data" / "metadata.json"
    content = json.loads(path.read_text())
    del content["observation_space"]
    content["env_spec"] = json.dumps({"id": "Evil-v0", "entry_point": "os:system"})
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="does not say its spaces"):
        import_minari("toy-v0", tmp_path / "out")


def test_names_taken_missing_or_bad(source, tmp_path):
    export_minari(source, "toy-v0")
    with pytest.raises(DatasetError, match="already"):
        export_minari(source, "toy-v0")
    with pytest.raises(DatasetError, match="no local dataset 'other-v0'"):
        import_minari("other-v0", tmp_path / "out")
    with pytest.raises(DatasetError, match="no name for a Minari dataset"):
        export_minari(source, "no version")
    with pytest.raises(DatasetError, match="already"):
        import_minari("toy-v0", source.path)


def test_a_damaged_source_leaves_no_half_dataset(source):
    source.episodes[2].path.write_bytes(source.episodes[2].path.read_bytes()[:-1])
    with pytest.raises(DatasetError, match="damaged"):
        export_minari(source, "toy-v0")
    assert not minari.list_local_datasets()


def test_without_minari_the_way_to_install_it_is_named(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(DatasetError, match=r"pip install wm_gym\[minari\]"):
        export_minari(source, "toy-v0")
