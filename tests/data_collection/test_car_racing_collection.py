import numpy as np

from wm_gym.agents.behaviours import make_behaviour
from wm_gym.data_collection import Dataset
from wm_gym.data_collection.collector import collect
from wm_gym.data_collection.verification import verify


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
