import json

import numpy as np
import pytest
from episode_factory import make_episode

from wm_gym.data_collection import FrameCodec
from wm_gym.data_collection.datasets.episode_file import write_episode
from wm_gym.data_collection.datasets.verification import verify
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
    from wm_gym.data_collection.datasets.episode_file import EpisodeRecorder

    monkeypatch.setattr(EpisodeRecorder, "return_", property(lambda self: 1e6))
    write_episode(dataset.path / "episodes", make_episode(5), FrameCodec())
    problems = verify(dataset.path).problems
    assert len(problems) == 1
    assert "does not agree" in problems[0]
    assert np.isfinite(dataset.episodes[0].return_)


def test_values_out_of_their_bounds_are_reported(dataset, monkeypatch):
    episode = make_episode(5)
    episode.actions[3, 1] = 1e30
    write_episode(dataset.path / "episodes", episode, FrameCodec())
    (problem,) = verify(dataset.path).problems
    assert "the action value 1e+30 at step 3, outside its bounds 0 to 1" in problem


def test_an_image_of_another_format_or_size_is_not_decoded(dataset, monkeypatch):
    for index, codec, frame_size in ((5, "webp", (16, 24)), (6, "png", (4096, 4096))):
        coded = FrameCodec.parse(codec).encode(np.zeros((*frame_size, 3), np.uint8))
        with monkeypatch.context() as patch:
            patch.setattr(FrameCodec, "encode", lambda self, frame, coded=coded: coded)
            write_episode(dataset.path / "episodes", make_episode(index), FrameCodec())
    monkeypatch.setattr(FrameCodec, "decode", lambda self, data: pytest.fail("it was decoded"))
    for header in dataset.episodes[:5]:
        header.path.unlink()
    other_format, other_size = verify(dataset.path).problems
    assert "a frame is coded as webp, but the codec is png" in other_format
    assert "a frame has 4096x4096 pixels in place of 16x24" in other_size


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda v: v["simulator"].update(step_s=0.06), "has changed since it was written"),
        (
            lambda v: (v.pop("sha256"), v["simulator"]["action"]["low"].__setitem__(0, float("nan"))),
            "the bounds of driving actions",
        ),
        (lambda v: (v.pop("sha256"), v["simulator"].update(frame_size=[2**20, 2**20])), "less than or equal to 4096"),
        (
            lambda v: (v.pop("sha256"), v.update(collection={"seed": 0, "behaviours": {"a": -1.0, "b": 2.0}})),
            "greater than or equal to 0",
        ),
        (lambda v: (v.pop("sha256"), v["simulator"].update(id="\x1b[2J")), "control characters"),
    ],
)
def test_what_the_dataset_says_of_itself_is_checked(dataset, change, sentence):
    file = dataset.path / "dataset.json"
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))
    with pytest.raises(DatasetError, match=sentence):
        verify(dataset.path)
