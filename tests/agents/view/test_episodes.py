"""Episodes as a page asks for them."""

import json

import numpy as np
import pytest

from wm_gym.agents.view.episodes import PIECE, STRIP_FRAMES, EpisodeShelf
from wm_gym.data_collection import Dataset, DatasetMetadata, Episode, FrameCodec
from wm_gym.data_collection.datasets.survey import survey
from wm_gym.errors import DatasetError
from wm_gym.simulator import SimulatorSpec


def test_the_listing_is_json_that_says_what_there_is(shelf, episodes):
    listing = json.loads(json.dumps(shelf.listing(), allow_nan=False))
    assert listing["simulator"] == "Toy-v0"
    assert listing["actions"] == ["steering", "throttle", "brake", "gear"]
    assert [field["name"] for field in listing["vector"]] == ["speed", "light"]
    assert listing["vector"][1]["classes"] == ["none", "red", "green"]
    told = listing["episodes"]
    assert [entry["length"] for entry in told] == [len(episode) for episode in episodes]
    assert [entry["end"] for entry in told] == ["truncated"] * 3 + ["terminated"]
    assert [entry["behaviour"] for entry in told] == ["calm", "wild", "calm", "wild"]
    assert [entry["return"] for entry in told] == pytest.approx([episode.return_ for episode in episodes], abs=1e-3)


def test_pieces_give_every_frame_once(shelf, episodes):
    for position, episode in enumerate(episodes):
        pieces = [shelf.piece(position, number) for number in range(len(episode) // PIECE + 1)]
        np.testing.assert_array_equal(np.concatenate([piece.image for piece in pieces]), episode.frames)
        np.testing.assert_array_equal(np.concatenate([piece.vector for piece in pieces]), episode.vectors)
        with pytest.raises(DatasetError, match="none from"):
            shelf.piece(position, len(pieces))


def test_a_strip_goes_from_the_first_frame_to_the_last(shelf, episodes):
    strip = shelf.strip(0)
    assert strip.shape == (64, STRIP_FRAMES * 64 + (STRIP_FRAMES - 1) * 2, 3)
    np.testing.assert_array_equal(strip[:, :64], episodes[0].frames[0])
    np.testing.assert_array_equal(strip[:, -64:], episodes[0].frames[-1])


def test_a_strip_of_large_frames_is_small(tmp_path, episodes):
    ends = np.array([False, True])
    episode = Episode(
        frames=np.full((3, 200, 300, 3), 90, np.uint8),
        actions=np.zeros((2, 3), np.float32),
        rewards=np.ones(2, np.float32),
        terminated=ends,
        truncated=ends,
    )
    spec = SimulatorSpec(
        id="Big-v0", frame_size=(200, 300), action={"kind": "native", "low": (-1, -1, -1), "high": (1, 1, 1)}
    )
    Dataset.create(tmp_path / "big", DatasetMetadata(simulator=spec, codec=FrameCodec(name="raw")), [episode])
    shelf = EpisodeShelf(survey(tmp_path / "big"))
    assert shelf.strip(0).shape == (96, STRIP_FRAMES * 144 + (STRIP_FRAMES - 1) * 2, 3)
    assert shelf.listing()["actions"] == ["value 0", "value 1", "value 2"]
    assert shelf.steps(0)["vectors"] == []


def test_steps_are_json_and_gaps_are_none(shelf, episodes):
    steps = json.loads(json.dumps(shelf.steps(2), allow_nan=False))
    np.testing.assert_allclose(np.array(steps["actions"]).T, episodes[2].actions, rtol=1e-5)
    np.testing.assert_allclose(np.array(steps["vectors"]).T, episodes[2].vectors, rtol=1e-5)
    assert steps["rewards"] == [2.5] * len(episodes[2])
    assert steps["infos"] == {"progress": [None, None] + [0.25] * (len(episodes[2]) - 2)}


def test_a_damaged_episode_is_named_and_others_are_read(dataset, damaged):
    path = damaged(dataset, 1)
    shelf = EpisodeShelf(survey(dataset.path))
    for read in (shelf.strip, shelf.steps, shelf.actions, lambda position: shelf.piece(position, 0)):
        with pytest.raises(DatasetError, match=f"{path} is damaged: its checksum"):
            read(1)
        read(0)


@pytest.mark.parametrize("position", [-1, 4, 10**30])
def test_an_episode_that_is_not_there(shelf, position):
    with pytest.raises(DatasetError, match="there is no episode at position"):
        shelf.strip(position)
