"""Several datasets as one source of training clips."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from episode_factory import assert_same_episode, make_episode, make_metadata

from wm_gym.data_collection import Dataset
from wm_gym.data_collection.datasets.joined import JoinedDataset
from wm_gym.data_collection.datasets.training_data import open_training_data
from wm_gym.errors import DatasetError


@pytest.fixture
def parts(tmp_path):
    """Two datasets whose episodes can be told apart by their first frames."""
    datasets = []
    for name, lengths in (("first", (9, 12, 7)), ("second", (20, 5))):
        first_index = 10 * len(datasets)  # the index decides what is in an episode
        episodes = [make_episode(first_index + index, steps=steps) for index, steps in enumerate(lengths)]
        datasets.append(Dataset.create(tmp_path / name, make_metadata(), episodes))
    return datasets


def test_clips_are_those_of_the_datasets_they_come_from(parts):
    joined = JoinedDataset(parts)
    assert (joined.num_episodes, joined.num_steps) == (5, 53)
    draws = joined.draw_clips(np.random.default_rng(0), 60, 5)
    clips = joined.read_clips(draws, 5)
    for row, (position, start) in enumerate(draws):
        owner, local = (parts[0], position) if position < 3 else (parts[1], position - 3)
        expected = owner.read_clip(int(local), int(start), 5)
        for ours, theirs in zip(clips[:5], expected[:5], strict=True):
            np.testing.assert_array_equal(ours[row], theirs[0])


def test_episodes_are_those_of_the_datasets_one_after_another(parts):
    joined = JoinedDataset(parts)
    owners = [(parts[0], 0), (parts[0], 1), (parts[0], 2), (parts[1], 0), (parts[1], 1)]
    assert joined.episodes == [owner.episodes[local] for owner, local in owners]
    for position, (owner, local) in enumerate(owners):
        assert_same_episode(joined.read_episode(position), owner.read_episode(local))


def test_draws_are_uniform_over_the_clips_of_all_datasets(parts):
    joined = JoinedDataset(parts)
    total = sum(dataset.num_clips(6) for dataset in parts)
    draws = joined.draw_clips(np.random.default_rng(1), 200 * total, 6)
    counts = Counter(map(tuple, draws.tolist()))
    assert len(counts) == total
    chi_square = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert chi_square < total + 4 * np.sqrt(2 * total)


def test_shares_decide_how_much_each_dataset_gives(parts):
    joined = JoinedDataset(parts, shares=(1, 3))
    draws = joined.draw_clips(np.random.default_rng(1), 4000, 6)
    assert np.mean(draws[:, 0] >= 3) == pytest.approx(0.75, abs=0.03)
    # A dataset whose episodes are all too short gives nothing.
    assert np.all(joined.draw_clips(np.random.default_rng(1), 50, 16)[:, 0] >= 3)
    for shares in ((1,), (1, 0)):
        with pytest.raises(DatasetError, match="one positive number for each"):
            JoinedDataset(parts, shares)


def test_one_dataset_alone_is_drawn_from_as_ever(parts):
    alone = JoinedDataset(parts[:1])
    assert alone.fingerprint == parts[0].fingerprint
    ours = alone.draw_clips(np.random.default_rng(5), 8, 4)
    np.testing.assert_array_equal(ours, parts[0].draw_clips(np.random.default_rng(5), 8, 4))


def test_contents_name_the_join(parts):
    assert JoinedDataset(parts).fingerprint != JoinedDataset(parts[::-1]).fingerprint
    assert JoinedDataset(parts).fingerprint == JoinedDataset(parts).fingerprint


def test_each_dataset_is_split_by_itself(parts):
    data = open_training_data([part.path for part in parts], 0.5)
    assert data.validation is not None
    assert [len(part) for part in data.train.datasets] == [2, 1]
    assert [len(part) for part in data.validation.datasets] == [1, 1]
    assert data.info["num_episodes"] == 5
    assert str(parts[0].path) in data.info["path"]


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        ({"town": "A"}, {"town": ["B", "C"]}, None),
        ({}, {"traffic": {"vehicles": 80}}, None),
        (
            {"town": "A", "view": "camera"},
            {"town": "B", "view": "above"},
            "kwargs.view is 'camera' there and 'above' here",
        ),
        ({"reward": {"speed": 1.0}}, {"reward": {"speed": 2.0}}, "kwargs.reward.speed is 1.0 there and 2.0 here"),
    ],
)
def test_scenes_may_be_mixed_and_nothing_else(tmp_path, first, second, named):
    metadata = make_metadata()
    datasets = [
        Dataset.create(
            tmp_path / str(number),
            metadata.model_copy(update={"simulator": metadata.simulator.model_copy(update={"kwargs": kwargs})}),
            [make_episode(number)],
        )
        for number, kwargs in enumerate((first, second))
    ]
    scenes = {"Toy-v0": ("town", "traffic")}.__getitem__
    if named is None:
        paths = [dataset.path for dataset in datasets]
        assert open_training_data(paths, 0, scenes=scenes).simulator.kwargs == first
        with pytest.raises(DatasetError, match="must agree"):
            open_training_data(paths, 0)
    else:
        with pytest.raises(DatasetError, match=re.escape(named)):
            JoinedDataset(datasets, scenes=scenes)


def test_measured_steps_need_not_be_quite_equal(parts, tmp_path):
    metadata = make_metadata()
    step_s = 1.005 * metadata.simulator.step_s
    near = metadata.model_copy(update={"simulator": metadata.simulator.model_copy(update={"step_s": step_s})})
    second = Dataset.create(tmp_path / "near", near, [make_episode(0)])
    assert JoinedDataset([parts[0], second]).num_episodes == len(parts[0]) + 1


def test_what_does_not_fit_is_refused(parts, tmp_path):
    metadata = make_metadata()
    other = metadata.model_copy(update={"simulator": metadata.simulator.model_copy(update={"step_s": 1.0})})
    odd = Dataset.create(tmp_path / "odd", other, [make_episode(0)])
    with pytest.raises(DatasetError, match="must agree"):
        JoinedDataset([parts[0], odd])
    with pytest.raises(DatasetError, match="at least one"):
        JoinedDataset([])
    with pytest.raises(DatasetError, match="has 50 frames"):
        JoinedDataset(parts).draw_clips(np.random.default_rng(0), 2, 50)
