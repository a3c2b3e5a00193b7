"""Choosing a checkpoint by drives on training tracks of the real simulator."""

from __future__ import annotations

import pytest
import torch

from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.bundles.folder import load_agent, save_agent
from wm_gym.agents.policies.config import make_agent_config
from wm_gym.agents.policies.from_config import resolve
from wm_gym.agents.training.dream_training import train_agent
from wm_gym.agents.training.imagination import ImaginationTrainer
from wm_gym.agents.training.selection import FIRST_SEED, DriveSelection
from wm_gym.data_collection.recording.plan import HELD_OUT_FROM
from wm_gym.envs.simulators import make_simulator_from_spec
from wm_gym.errors import ConfigError
from wm_gym.training.log import read_metrics

CONFIG = make_agent_config({"steps": 96, "num_envs": 4, "horizon": 8, "net_arch": (8,), "validate_every": 32})


@pytest.fixture
def short_spec(driving_spec):
    """CarRacing, cut after 6 actions."""
    return driving_spec.model_copy(update={"kwargs": {"max_frames": 24}})


def test_a_score_is_the_mean_return_of_the_drives(tiny_model, short_spec, tmp_path):
    path = train_agent(tiny_model, out=tmp_path / "run", config=CONFIG, progress=False).path
    driver = Driver.load(path)
    with DriveSelection(short_spec, 2) as selection:
        score = selection.start(path)()
        assert selection.frames == 12
        assert selection.start(path)() == score  # the same tracks again
    with DriveSelection(short_spec, 2, max_episode_steps=1, workers=2) as selection:
        selection.start(path)()
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


def test_drives_beside_the_training_choose_what_drives_between_its_rounds_do(tiny_model, short_spec, tmp_path):
    with DriveSelection(short_spec, 2) as selection:
        beside = train_agent(
            tiny_model, out=tmp_path / "beside", config=CONFIG, progress=False, on_checkpoint=selection
        )
        assert selection.frames == 36  # three checkpoints

        def score(driver: Driver) -> float | None:
            save_agent(tmp_path / "scored", driver.policy, tiny_model, resolve(CONFIG, tiny_model.simulator.action))
            return selection.start(tmp_path / "scored")()

        between = train_agent(tiny_model, out=tmp_path / "between", config=CONFIG, progress=False, on_checkpoint=score)
    assert beside.score == between.score
    rows = [
        [row for row in read_metrics(summary.path / "metrics.jsonl") if row["kind"] == "validation"]
        for summary in (beside, between)
    ]
    assert [(row["dream_steps"], row["score"]) for row in rows[0]] == [
        (row["dream_steps"], row["score"]) for row in rows[1]
    ]
    kept = [load_agent(summary.path).policy.action_net.weight for summary in (beside, between)]
    torch.testing.assert_close(*kept, rtol=0, atol=0)


@pytest.mark.slow
def test_a_training_that_is_stopped_while_drives_are_on_their_way_makes_them_anew(
    tiny_model, short_spec, tmp_path, monkeypatch
):
    with DriveSelection(short_spec, 2) as selection:
        whole = train_agent(tiny_model, out=tmp_path / "whole", config=CONFIG, progress=False, on_checkpoint=selection)
    original, rounds = ImaginationTrainer.train_round, []

    def interrupted(trainer):
        rounds.append(trainer.dream_steps)
        if len(rounds) == 2:
            raise KeyboardInterrupt
        return original(trainer)

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch, DriveSelection(short_spec, 2) as selection:
        patch.setattr(ImaginationTrainer, "train_round", interrupted)
        patch.setattr(selection, "start", lambda agent: selection.close)  # which never comes to a score
        with pytest.raises(KeyboardInterrupt):
            train_agent(tiny_model, out=out, config=CONFIG, progress=False, on_checkpoint=selection)
    with DriveSelection(short_spec, 2) as selection:
        resumed = train_agent(tiny_model, out=out, config=CONFIG, progress=False, on_checkpoint=selection)
        assert selection.frames == 36
    assert resumed.score == whole.score


def test_a_training_that_spoils_its_policy_keeps_the_one_that_it_began_from(tiny_model, tmp_path):
    first = train_agent(tiny_model, out=tmp_path / "first", config=CONFIG, progress=False)
    scores = iter((9.0, 1.0, 5.0, 3.0))
    second = train_agent(
        tiny_model,
        out=tmp_path / "second",
        config=CONFIG,
        initial=first.path,
        progress=False,
        on_checkpoint=lambda _: next(scores),
    )
    assert second.score == 9.0
    agents = [load_agent(summary.path) for summary in (first, second)]
    torch.testing.assert_close(*(agent.policy.action_net.weight for agent in agents), rtol=0, atol=0)
    assert agents[1].metrics["saved_at_dream_steps"] == 0
    assert agents[1].metrics["dream_steps"] == 96


def test_a_simulator_that_cannot_be_made_is_refused_before_the_training(short_spec):
    broken = short_spec.model_copy(update={"kwargs": {"max_frames": -1}})
    with pytest.raises(ConfigError, match="max_frames=-1 must be a whole number"):
        DriveSelection(broken, 2)


def test_held_out_seeds_and_no_drives_are_refused(short_spec):
    with pytest.raises(ConfigError, match="held out for evaluation"):
        DriveSelection(short_spec, 2, seed=HELD_OUT_FROM - 1)
    with pytest.raises(ConfigError, match="give at least 1"):
        DriveSelection(short_spec, 0)
