import pytest

from wm_gym.agents.training.benchmark import measure_ppo
from wm_gym.world_model import WorldModel


@pytest.mark.slow
def test_ppo_is_measured_with_every_kind_of_model():
    table = measure_ppo(WorldModel.from_pretrained("bundled"), 0.01, seed=0)
    assert [row["model"] for row in table.rows] == ["as it is", "accelerated, fp32", "accelerated, bf16"]
    assert all(row["steps_per_s"] > 0 and 0 < row["products"] < 1 for row in table.rows)
