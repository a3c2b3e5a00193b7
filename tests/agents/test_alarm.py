import warnings

import gymnasium as gym
import numpy as np
import pytest

from wm_gym.agents.alarm import DreamReturnAlarm, best_recorded_return
from wm_gym.data_collection import Dataset
from wm_gym.data_collection.datasets.episode import Episode
from wm_gym.data_collection.datasets.metadata import DatasetMetadata
from wm_gym.envs.simulators import describe_simulator, make_simulator, return_ceiling
from wm_gym.errors import ConfigError


def ceiling_of(name, steps, **kwargs):
    env = make_simulator(name, **kwargs)
    env.close()
    return return_ceiling(describe_simulator(env), steps)


def test_an_exploiting_dream_rings_once():
    alarm = DreamReturnAlarm(ceiling_of("car-racing", 250), None, 250)
    assert alarm.check(None) is None
    assert alarm.check(918.0) is None  # a good lap
    with pytest.warns(UserWarning, match="the dream pays 1585 over 250 steps, but the task can give at most 970: the"):
        sentence = alarm.check(1585.3)
    assert "--select-drives" in sentence
    assert sentence.endswith(".")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert alarm.check(2000.0) is None


def test_a_short_dream_is_judged_by_what_was_recorded():
    alarm = DreamReturnAlarm(ceiling_of("car-racing", 30), 160.0, 30)
    assert alarm.check(121.0) is None
    with pytest.warns(UserWarning, match="pays 212 over 30 steps, but no recorded drive got more than 160 in as many"):
        assert "unless the policy drives better" in alarm.check(212.0)


def test_without_bounds_and_without_numbers_it_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert DreamReturnAlarm(None, None, 1).check(1e9) is None
        assert DreamReturnAlarm(970.0, None, 1).check(float("nan")) is None
    with pytest.raises(ConfigError, match="steps=0 must be"):
        DreamReturnAlarm(None, None, 0)


def test_the_ceiling_follows_from_the_rules():
    assert ceiling_of("car-racing", 1) == pytest.approx(999.6)
    assert ceiling_of("car-racing", 30) == pytest.approx(988.0)
    assert ceiling_of("car-racing", 30, action_repeat=1) == pytest.approx(997.0)
    assert ceiling_of("car-racing", 250) == ceiling_of("car-racing", 10_000) == pytest.approx(970.0)
    assert ceiling_of("CarRacing-v3", 250) is None
    with pytest.raises(ConfigError, match="steps=0 must be"):
        ceiling_of("car-racing", 0)


@pytest.mark.slow
def test_no_track_is_so_short_and_no_car_so_fast_that_a_lap_beats_the_ceiling():
    simulation = gym.make("CarRacingDriving-v0").unwrapped.simulation
    for seed in range(20):
        simulation.reset(seed=seed)
        centre = np.asarray(simulation.track)[:, 2:4]
        assert np.hypot(*(centre - np.roll(centre, 1, axis=0)).T).sum() > 600
    friction = type("Road", (), {"road_friction": 1.0})()
    places = []
    for _ in range(300):
        for wheel in simulation.car.wheels:
            wheel.tiles.add(friction)
        simulation.step(np.array([0, 1, 0], np.float32))
        places.append(simulation.car.hull.position.copy())
    travelled = np.hypot(*np.diff(np.asarray(places), axis=0).T)
    assert 1.9 < travelled.max() < 2.001
    assert travelled.sum() < 600


@pytest.fixture
def dataset(tmp_path, driving_spec, rng):
    def episode(index, rewards, *, terminated):
        steps = len(rewards)
        ends = np.arange(steps) == steps - 1
        return Episode(
            rng.integers(0, 256, (steps + 1, 64, 64, 3), np.uint8),
            rng.uniform(0, 1, (steps, 4)).astype(np.float32),
            np.float32(rewards),
            ends & terminated,
            ends & (not terminated),
            index=index,
        )

    episodes = [
        episode(0, [0, 3, 4, 0, 1], terminated=False),
        episode(1, [-1, 2, 8], terminated=True),
        episode(2, [50], terminated=False),
    ]
    return Dataset.create(tmp_path / "data", DatasetMetadata(simulator=driving_spec), episodes)


def test_the_best_recorded_window(dataset):
    assert best_recorded_return(dataset, 1) == 50
    assert best_recorded_return(dataset, 2) == 10
    # The task ended the second episode: the 10 of its last two steps are all that three steps could have given.
    assert best_recorded_return(dataset, 3) == 10
    assert best_recorded_return(dataset, 100) == 10
    with pytest.raises(ConfigError, match="steps=0"):
        best_recorded_return(dataset, 0)


def test_episodes_that_were_cut_short_say_nothing_of_longer_windows(dataset):
    cut = dataset._subset([True, False, False])
    assert best_recorded_return(cut, 5) == 8
    assert best_recorded_return(cut, 6) is None
