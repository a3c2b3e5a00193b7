import warnings

import pytest
import torch
from toy_world import PointWorld

from wm_gym.agents.dream_check import check_dream
from wm_gym.agents.training.dream_training import train_agent
from wm_gym.data_collection.datasets.training_data import open_training_data
from wm_gym.state import LatentState

RECORDED = {
    "random_driving": {
        "episodes": 7,
        "mean_reward": 2.0,
        "returns": {
            "5": {"mean": 0.0, "high": 5.0},
            "15": {"mean": 0.4, "high": 13.0},
            "30": {"mean": 0.5, "high": 15},
        },
    }
}


class Road(PointWorld):
    """Pays for being on the road, of which the memory counts the steps left; ``pays`` where the road has ended."""

    def __init__(self, pays):
        super().__init__()
        self.pays = pays
        self.start_states = LatentState(torch.zeros(8, 1), torch.full((8, 1), 10.0))

    def imagine(self, state, action, noise=None):
        reward = torch.where(state.memory[:, 0] > 0, 3.0, self.pays)
        return LatentState(state.latent, state.memory - 1), reward, torch.ones(len(reward))


def check(pays, horizon=30, metrics=RECORDED):
    world = Road(pays)
    return check_dream(world, world.start_states, metrics, horizon)


def test_a_dream_in_which_random_driving_stays_on_the_road_is_told():
    with pytest.warns(UserWarning, match="the dream pays 30.0 over 15 steps of random driving, but recorded random"):
        found = check(2.0)
    assert found.warning.endswith("or train the world model longer.")
    assert "got 0.4 in as many, and hardly ever more than 13.0" in found.warning
    assert (found.steps, found.paid, found.recorded, found.high, found.tolerance) == (15, 30.0, 0.4, 13.0, 3.0)


@pytest.mark.parametrize(("horizon", "steps"), [(30, 15), (45, 15), (60, 30)])
def test_the_road_that_the_recorded_drivers_left_the_car_on_is_no_sign(horizon, steps):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = check(-0.3, horizon)  # the first ten steps pay 30, more than any recorded random driving
    assert found.warning is None
    assert (found.steps, found.paid) == (steps, pytest.approx(-0.3 * steps))


@pytest.mark.parametrize("metrics", [{}, {"random_driving": None}, {"random_driving": {"returns": [1]}}, RECORDED])
def test_without_a_figure_for_dreams_so_short_nothing_is_said(metrics):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check(100.0, 30 if metrics is not RECORDED else 9, metrics) is None


def test_a_training_begins_with_the_check_and_is_the_same_for_it(tiny_model, small_config, tmp_path):
    config = small_config.model_copy(update={"horizon": 10})

    def train(name):
        return train_agent(tiny_model, out=tmp_path / name, config=config, progress=False)

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the dream pays")
        unchecked = train("unchecked")
    worse = {"mean": -1e6, "high": -1e5}
    tiny_model.metrics = {"random_driving": {"episodes": 1, "mean_reward": 1.0, "returns": {"5": worse}}}
    with pytest.warns(UserWarning, match="of random driving, but recorded random driving got -1000000.0 in as many"):
        checked = train("checked")
    assert checked.dream_return == unchecked.dream_return
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the dream pays")
        assert train("checked").was_finished


def test_recordings_are_measured_when_a_model_is_trained_on_them(car_racing_data):
    found = open_training_data(car_racing_data, 0.25).metrics()["random_driving"]
    assert found["episodes"] == 2
    assert list(found["returns"]) == ["5"]  # of ten steps there are too few windows
    assert found["returns"]["5"]["mean"] <= found["returns"]["5"]["high"]
