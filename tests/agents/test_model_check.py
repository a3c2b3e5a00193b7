import warnings

import pytest

from wm_gym.agents.baselines.behaviour_cloning import clone_behaviour
from wm_gym.agents.training.dream_training import train_agent
from wm_gym.model_check import model_faults, warn_of_faults
from wm_gym.world_model import WorldModel

GOOD = {"r2_reconstruction": 0.66, "held_wheel": {"lost": 0.83}}
BLIND = {**GOOD, "r2_reconstruction": 0.14}


def test_a_model_that_does_not_see_the_road_is_told():
    (sentence,) = model_faults(BLIND)
    assert "does not see what a driver must see: its reconstructions have 14 % of what differs" in sentence


def test_a_model_whose_road_follows_the_wheel_is_told():
    (sentence,) = model_faults({**GOOD, "held_wheel": {"lost": -0.02}})
    assert "held far to one side, it costs 0 % of the return" in sentence


@pytest.mark.parametrize(
    "metrics",
    [
        GOOD,
        {},
        {"r2_reconstruction": None, "held_wheel": {"lost": None}},
        {"r2_reconstruction": "0.1", "held_wheel": "much"},
        {"r2_reconstruction": float("nan"), "held_wheel": []},
    ],
)
def test_nothing_is_said_of_good_models_and_of_what_was_not_measured(metrics):
    assert model_faults(metrics) == []


def test_the_bundled_model_has_no_fault():
    assert model_faults(WorldModel.from_pretrained("bundled").metrics) == []


def test_a_process_says_it_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        for _ in range(3):
            warn_of_faults(BLIND)
    assert len(caught) == 1


def test_agents_are_warned_before_they_learn(tiny_model, small_config, car_racing_data, tmp_path):
    tiny_model.metrics = BLIND
    with pytest.warns(UserWarning, match="does not see what a driver must see"):
        train_agent(tiny_model, out=tmp_path / "dream", config=small_config, progress=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the world model does not see")
        assert train_agent(tiny_model, out=tmp_path / "dream", config=small_config, progress=False).was_finished
        with pytest.raises(UserWarning, match="14 %"):
            clone_behaviour(car_racing_data, tiny_model, out=tmp_path / "clone", steps=1, progress=False)
    assert not (tmp_path / "clone" / "metrics.json").exists()
