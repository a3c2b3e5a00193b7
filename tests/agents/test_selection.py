"""Choosing a checkpoint by drives on training tracks of the real simulator."""

from __future__ import annotations

import pytest
import torch

from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.bundles.folder import load_agent
from wm_gym.agents.policies.config import make_agent_config
from wm_gym.agents.training.dream_training import train_agent
from wm_gym.agents.training.selection import FIRST_SEED, DriveSelection
from wm_gym.data_collection.recording.plan import HELD_OUT_FROM
from wm_gym.envs.simulators import make_simulator_from_spec
from wm_gym.errors import ConfigError

CONFIG = make_agent_config({"steps": 96, "num_envs": 4, "horizon": 8, "net_arch": (8,), "validate_every": 32})


@pytest.fixture
def short_spec(driving_spec):
    """CarRacing, cut after 6 actions."""
    return driving_spec.model_copy(update={"kwargs": {"max_frames": 24}})


def test_a_score_is_the_mean_return_of_the_drives(tiny_model, short_spec, tmp_path):
    path = train_agent(tiny_model, out=tmp_path / "run", config=CONFIG, progress=False).path
    driver = Driver.load(path)
    with DriveSelection(short_spec, 2) as selection:
        score = selection(driver)
        assert selection.frames == 12
        assert selection(driver) == score  # the same tracks again
    with DriveSelection(short_spec, 2, max_episode_steps=1) as selection:
        selection(driver)
        assert selection.frames == 2

    returns = []
    env = make_simulator_from_spec(short_spec)
    for seed in (FIRST_SEED, FIRST_SEED + 1):
        frame, _ = env.reset(seed=seed)
        driver.reset(env, seed)
        total = 0.0
        for _ in range(6):
            frame, reward, *_ = env.step(driver.act(frame))
            total += float(reward)
        returns.append(total)
    env.close()
    assert score == pytest.approx(sum(returns) / 2)


def test_the_agent_that_is_kept_is_the_checkpoint_that_drove_best(tiny_model, tmp_path):
    """The scores are given here, so that the best one is known; the drives themselves are tested above."""
    seen: list[torch.Tensor] = []
    scores = iter((1.0, 5.0, 3.0))

    def validate(driver: Driver) -> float:
        seen.append(driver.policy.action_net.weight.detach().clone())
        return next(scores)

    summary = train_agent(tiny_model, out=tmp_path / "run", config=CONFIG, progress=False, on_checkpoint=validate)
    assert summary.score == 5.0
    kept = load_agent(tmp_path / "run", torch.device("cpu")).policy.action_net.weight
    torch.testing.assert_close(kept, seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_held_out_seeds_and_no_drives_are_refused(short_spec):
    with pytest.raises(ConfigError, match="held out for evaluation"):
        DriveSelection(short_spec, 2, seed=HELD_OUT_FROM - 1)
    with pytest.raises(ConfigError, match="give at least 1"):
        DriveSelection(short_spec, 0)
