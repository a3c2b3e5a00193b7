import numpy as np
import pytest
from episode_factory import make_episode

from wm_gym.data_collection import FrameCodec
from wm_gym.data_collection.episode_file import write_episode
from wm_gym.data_collection.verification import verify
from wm_gym.errors import DatasetError


def test_a_good_dataset_has_no_problem(dataset):
    found = verify(dataset.path)
    assert found.is_valid
    assert (found.num_episodes, found.num_steps) == (5, dataset.num_steps)


def test_every_bad_file_is_reported(dataset):
    episodes = dataset.path / "episodes"
    cut, changed = (dataset.episodes[i].path for i in (1, 3))
    cut.write_bytes(cut.read_bytes()[:-5])
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 0xFF
    changed.write_bytes(content)
    write_episode(episodes, make_episode(8, size=(8, 8)), FrameCodec())
    (episodes / "episode-000009.safetensors").write_text("hello")
    found = verify(dataset.path)
    assert not found.is_valid
    assert found.num_episodes == 3
    assert len(found.problems) == 4
    for problem, name in zip(found.problems, ("000001", "000003", "000008", "000009"), strict=True):
        assert name in problem
        assert "\n" not in problem


def test_an_empty_or_missing_dataset(dataset, tmp_path):
    for header in dataset.episodes:
        header.path.unlink()
    assert "no episodes" in verify(dataset.path).problems[0]
    with pytest.raises(DatasetError, match="there is no dataset"):
        verify(tmp_path / "nowhere")


def test_a_header_that_lies_is_reported(dataset, monkeypatch):
    from wm_gym.data_collection.episode_file import EpisodeRecorder

    monkeypatch.setattr(EpisodeRecorder, "return_", property(lambda self: 1e6))
    write_episode(dataset.path / "episodes", make_episode(5), FrameCodec())
    problems = verify(dataset.path).problems
    assert len(problems) == 1
    assert "does not agree" in problems[0]
    assert np.isfinite(dataset.episodes[0].return_)
