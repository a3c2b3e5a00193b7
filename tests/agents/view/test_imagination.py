"""What a world model makes of recorded episodes."""

import numpy as np
import pytest
import torch
from own_data import SPEC, small_episode

from wm_gym.agents.view.episodes import PIECE
from wm_gym.agents.view.imagination import MAX_DREAM_STEPS, Imagination
from wm_gym.agents.view.loading import load_view
from wm_gym.data_collection import Dataset, DatasetMetadata, FrameCodec
from wm_gym.errors import ConfigError, DatasetError
from wm_gym.frames import tensor_to_frames
from wm_gym.observation import Observation
from wm_gym.rollouts import dream, follow
from wm_gym.state import LatentState


@pytest.fixture
def imagination(model, shelf):
    return Imagination(model, shelf)


@pytest.fixture
def states(model, episodes):
    """The states at all frames of the first episode, one after another."""
    first = episodes[0]
    with torch.no_grad():
        return follow(model, Observation(first.frames, first.vectors), first.actions)


def test_reconstructions_are_of_the_filtered_states_in_any_order(imagination, model, states, episodes):
    with torch.no_grad():
        expected = tensor_to_frames(model.decode(LatentState.cat(states))).numpy()
        vectors = model.decode_vector(LatentState.cat(states)).numpy()
    for number in (2, 0, 1, 2):
        shown = imagination.reconstruct(0, number)
        part = slice(number * PIECE, (number + 1) * PIECE)
        # Rounding differs with the number of frames that are decoded at once.
        assert np.abs(shown.frames.astype(int) - expected[part]).max() <= 1
        np.testing.assert_allclose(shown.vectors, vectors[part], atol=1e-4)
        error = (episodes[0].frames[part].astype(float) - shown.frames) ** 2
        np.testing.assert_allclose(shown.psnr, 10 * np.log10(255**2 / error.mean((1, 2, 3))))
        assert shown.rewards is None


def test_a_dream_is_that_of_the_model_from_the_filtered_state(imagination, model, states, episodes):
    start, steps = 37, 20
    actions = torch.from_numpy(episodes[0].actions[start : start + steps])[None]
    expected = dream(model, states[start], actions, torch.Generator().manual_seed(3))
    shown = imagination.dream(0, start, steps, 3)
    assert shown.frames.shape == (steps, 64, 64, 3)
    np.testing.assert_allclose(shown.rewards, expected.rewards[0], atol=1e-4)
    np.testing.assert_allclose(shown.continuations, expected.continuations[0], atol=1e-5)
    error = (episodes[0].frames[start + 1 : start + 1 + steps].astype(float) - shown.frames) ** 2
    np.testing.assert_allclose(shown.psnr, 10 * np.log10(255**2 / error.mean((1, 2, 3))))


def test_a_dream_ends_with_its_episode(imagination, episodes):
    last = len(episodes[3])
    assert len(imagination.dream(3, last - 5, 50, 0).frames) == 5
    assert len(imagination.dream(3, 0, MAX_DREAM_STEPS, 0).frames) == last


def test_equal_seeds_give_equal_dreams(imagination):
    first, again = (imagination.dream(1, 4, 10, 0).frames for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_frames_of_another_size_are_brought_to_the_models(model, tmp_path):
    recorded = small_episode()
    spec = SPEC.model_copy(update={"frame_size": (32, 48)})
    metadata = DatasetMetadata(simulator=spec, codec=FrameCodec(name="raw"))
    Dataset.create(tmp_path / "small", metadata, [recorded])
    imagination = load_view(tmp_path / "small", str(model.save_pretrained(tmp_path / "model"))).imagination
    shown = imagination.reconstruct(0, 0)
    assert shown.frames.shape == (6, 64, 64, 3)
    assert np.isfinite(shown.psnr).all()
    assert imagination.dream(0, 2, 9, 0).frames.shape == (3, 64, 64, 3)


def test_more_episodes_than_are_kept(imagination, shelf):
    for position in (0, 1, 2, 3, 0, 1):
        imagination.reconstruct(position, 0)
    assert len(imagination._marks) <= 4


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ((3, 12, 5, 0), "has no step after frame 12"),
        ((3, 10**30, 5, 0), "has no step after frame"),
        ((3, 0, 0, 0), "use 1 to"),
        ((3, 0, MAX_DREAM_STEPS + 1, 0), "use 1 to"),
        ((3, 0, 5, 10**30), "the seed"),
    ],
)
def test_what_cannot_be_dreamt(imagination, asked, sentence):
    with pytest.raises(ConfigError, match=sentence):
        imagination.dream(*asked)


def test_there_is_nothing_after_the_end(imagination):
    with pytest.raises(DatasetError, match="none from"):
        imagination.reconstruct(3, 1)
