import json

import numpy as np
import pytest
from episode_factory import make_episode, make_metadata

from wm_gym.data_collection import Dataset
from wm_gym.data_collection.datasets.statistics import describe, render


def test_counts_by_hand(tmp_path):
    episodes = [make_episode(i, steps=4, behaviour=name, terminated=i == 0) for i, name in enumerate("aab")]
    for value, episode in enumerate(episodes):
        episode.rewards[:] = value
        episode.actions[:, 0] = [-1, 0, 0, 1]
    found = describe(Dataset.create(tmp_path / "data", make_metadata(), episodes))
    assert (found.episodes, found.steps) == (3, 12)
    assert (found.length_min, found.length_mean, found.length_max) == (4, 4.0, 4)
    assert (found.return_min, found.return_mean, found.return_max) == (0.0, 4.0, 8.0)
    assert found.ends == {"terminated": 1, "truncated": 2}
    assert found.hours == pytest.approx(12 * 0.05 / 3600)
    assert (found.behaviours["a"].episodes, found.behaviours["a"].mean_return) == (2, 2.0)
    assert (found.behaviours["b"].terminated, found.behaviours["a"].terminated) == (0, 1)
    steering = found.actions[0]
    assert steering.name == "steering"
    assert (steering.minimum, steering.maximum, steering.mean) == (-1.0, 1.0, 0.0)
    assert sum(steering.counts) == sum(found.reward.counts) == 12
    assert (steering.counts[0], steering.counts[-1]) == (3, 3)
    assert found.infos == ["speed"]


def test_text_and_json(dataset):
    found = describe(dataset)
    text = render(found)
    for word in ("Toy-v0", "16x24", "calm", "wild", "steering", "reward", "5 episodes", dataset.fingerprint):
        assert word in text
    assert json.loads(json.dumps(found.to_dict()))["steps"] == dataset.num_steps


def warnings_of(tmp_path, episodes, codec="png"):
    return " ".join(describe(Dataset.create(tmp_path / "data", make_metadata(codec), episodes)).warnings)


def test_a_rich_dataset_has_no_warning(tmp_path):
    episodes = [make_episode(i, steps=600, size=(2, 2), behaviour="ab"[i % 2], terminated=i == 0) for i in range(4)]
    assert not describe(Dataset.create(tmp_path / "data", make_metadata(size=(2, 2)), episodes)).warnings


def test_a_poor_dataset_is_warned_of(tmp_path):
    episodes = [make_episode(i, steps=5) for i in (0, 2)]
    for episode in episodes:
        episode.actions[:, 0] = 0.25
        episode.rewards[:] = 1
        episode.infos["speed"][2] = np.nan
    text = warnings_of(tmp_path, episodes, codec="jpeg:90")
    for part in (
        "driven by 'calm'",
        "only 10 steps",
        "2 episodes have fewer than 10",
        "jpeg:90",
        "no episode terminated",
        "1 episodes below number 2 are missing",
        "'steering' never changes",
        "every reward is 1",
        "'speed' is not finite at 2 steps",
    ):
        assert part in text


def test_constant_actions_are_warned_of(tmp_path):
    episode = make_episode()
    episode.actions[:] = (0, 1, 0, 1)
    assert "every action is the same" in warnings_of(tmp_path, [episode])


def test_values_that_another_writer_left_not_finite_are_warned_of(tmp_path, monkeypatch):
    episodes = [make_episode(0), make_episode(1)]
    episodes[0].actions[3, 1] = np.inf
    episodes[1].rewards[2:4] = np.nan
    with monkeypatch.context() as patch:
        patch.setattr("wm_gym.data_collection.datasets.episode.np.isfinite", lambda values: np.ones(values.shape, bool))
        patch.setattr("wm_gym.data_collection.datasets.writer.check_actions", lambda *_: None)
        dataset = Dataset.create(tmp_path / "data", make_metadata(), episodes)
    text = " ".join(describe(dataset).warnings)
    assert "action 'throttle' are not finite at 1 steps" in text
    assert "rewards are not finite at 2 steps" in text
    assert "reward" in render(describe(dataset))
