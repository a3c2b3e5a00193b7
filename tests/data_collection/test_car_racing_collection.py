import numpy as np
import pytest

from wm_gym.agents.behaviours import make_behaviour
from wm_gym.data_collection import Dataset
from wm_gym.data_collection.datasets.verification import verify
from wm_gym.data_collection.recording.collector import collect
from wm_gym.errors import DatasetError


def test_car_racing_gives_the_same_episodes_with_one_and_two_workers(tmp_path):
    fingerprints = []
    for workers in (1, 2):
        out = tmp_path / f"{workers}"
        collect(
            out,
            "car-racing",
            make_behaviour=make_behaviour,
            episodes=5,
            behaviour="noisy:0.4,random:0.3,autopilot:0.3",
            workers=workers,
            simulator_kwargs={"frame_size": 64},
            max_episode_steps=12,
            progress=False,
        )
        fingerprints.append(Dataset.open(out).fingerprint)
    assert fingerprints[0] == fingerprints[1]
    assert verify(out).is_valid
    dataset = Dataset.open(out)
    assert {header.behaviour for header in dataset.episodes} == {"noisy", "random", "autopilot"}
    clips = dataset.sample_clips(np.random.default_rng(0), 8, 10)
    assert clips.frames.shape == (8, 10, 64, 64, 3)
    assert clips.actions.shape == (8, 9, 4)
    assert clips.frames.std() > 10
    assert np.isin(clips.actions[..., 3], (-1, 0, 1)).all()
    assert "speed" in dataset.read_episode(0).infos


def test_an_episode_is_cut_when_nothing_is_gained_for_long(tmp_path):
    """CarRacing pays for new tiles: a car that stands still is cut, one that drives is not."""
    still = collect(
        tmp_path / "still",
        "car-racing",
        make_behaviour=_standing,
        episodes=1,
        patience=15,
        simulator_kwargs={"frame_size": 16},
        progress=False,
    )
    assert still.num_steps == 15 + 1  # the tiles under the wheels pay in the first step
    driving = collect(
        tmp_path / "driving",
        "car-racing",
        make_behaviour=make_behaviour,
        episodes=1,
        behaviour="autopilot",
        patience=15,
        max_episode_steps=40,
        simulator_kwargs={"frame_size": 16},
        progress=False,
    )
    assert driving.num_steps == 40
    with pytest.raises(DatasetError, match="patience=0"):
        collect(tmp_path / "never", "car-racing", make_behaviour=make_behaviour, episodes=1, patience=0)


def _standing(name, spec):
    return _Standing()


class _Standing:
    name = "random"

    def reset(self, env, seed):
        pass

    def act(self, observation):
        return np.zeros(4, np.float32)
