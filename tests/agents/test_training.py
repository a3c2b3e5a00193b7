import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from toy_world import PointWorld

from wm_gym.agents.bundles.folder import load_agent
from wm_gym.agents.training import dream_training
from wm_gym.agents.training.dream_training import train_agent
from wm_gym.agents.training.imagination import ImaginationTrainer
from wm_gym.errors import BundleError, ConfigError, TrainingError
from wm_gym.training.checkpoint import load_checkpoint, save_checkpoint
from wm_gym.training.log import read_metrics


def policy_of(path):
    return load_agent(path).policy.state_dict()


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def stop_after(monkeypatch, rounds, error):
    """Interrupt training in the middle of a round, as Ctrl-C does."""
    train_round = ImaginationTrainer.train_round

    def interrupted(self):
        if self.dream_steps >= rounds * 32:
            self._algorithm.collect_rollouts(
                self._env, _silent(self), self._algorithm.rollout_buffer, self._algorithm.n_steps
            )
            raise error
        return train_round(self)

    monkeypatch.setattr(ImaginationTrainer, "train_round", interrupted)


def _silent(trainer):
    from stable_baselines3.common.callbacks import ConvertCallback

    trainer._algorithm._setup_learn(32, None, reset_num_timesteps=False)
    callback = ConvertCallback(None)
    callback.init_callback(trainer._algorithm)
    return callback


def test_a_run_folder_becomes_the_agent(tiny_model, small_config, tmp_path):
    summary = train_agent(tiny_model, out=tmp_path / "run", config=small_config, steps=64, progress=False)
    assert (summary.dream_steps, summary.was_finished, summary.score) == (64, False, None)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["dream_steps"] for row in rows] == [32, 64]
    assert {"ep_rew_mean", "value_loss", "entropy_loss", "approx_kl", "fps", "wall_s"} <= rows[0].keys()
    assert summary.dream_return == rows[-1]["ep_rew_mean"]
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    agent = load_agent(tmp_path / "run")
    assert agent.metrics["dream_return"] == summary.dream_return
    assert agent.model.fingerprint == tiny_model.fingerprint
    assert (agent.manifest.config.steps, agent.manifest.config.action) == (64, "steer_accel")


def test_the_same_command_again_says_that_it_is_done(tiny_model, small_config, tmp_path):
    first = train_agent(tiny_model, out=tmp_path / "run", config=small_config, progress=False)
    changed = (tmp_path / "run" / "policy.safetensors").stat().st_mtime_ns
    again = train_agent(tiny_model, out=tmp_path / "run", config=small_config, progress=False)
    assert again.was_finished
    assert (again.dream_steps, again.dream_return) == (first.dream_steps, first.dream_return)
    assert (tmp_path / "run" / "policy.safetensors").stat().st_mtime_ns == changed


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TrainingError("diverged.")])
def test_a_stopped_run_resumes_to_what_it_would_have_been(tiny_model, small_config, tmp_path, monkeypatch, error):
    whole = train_agent(tiny_model, out=tmp_path / "whole", config=small_config, progress=False)
    with monkeypatch.context() as patch:
        stop_after(patch, 2, error)
        with pytest.raises(type(error)):
            train_agent(tiny_model, out=tmp_path / "cut", config=small_config, progress=False)
    with pytest.raises(BundleError, match="its training has not finished; run the same training again"):
        load_agent(tmp_path / "cut")
    resumed = train_agent(tiny_model, out=tmp_path / "cut", config=small_config, progress=False)
    assert not resumed.was_finished
    assert equal(policy_of(whole.path), policy_of(resumed.path))
    rows = [read_metrics(path / "metrics.jsonl") for path in (whole.path, resumed.path)]
    for first, second in zip(*rows, strict=True):
        for name in first.keys() - {"fps", "wall_s"}:
            assert first[name] == second[name]


@pytest.mark.slow
def test_a_killed_process_leaves_a_run_that_can_be_finished(tiny_model, small_config, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    config = small_config.model_copy(update={"steps": 320_000})
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from wm_gym.agents import AgentConfig, train_agent\n"
        "config = AgentConfig.model_validate_json(sys.argv[3])\n"
        "train_agent(sys.argv[1], out=sys.argv[2], config=config, device='cpu', progress=False)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model"), str(tmp_path / "run"), config.model_dump_json()]
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while len(read_metrics(metrics)) < 6 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    done = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)["snapshot"]["dream_steps"]
    assert done >= 32
    # The rest would take minutes, so the run is told to be as long as it got, plus two rounds.
    file = tmp_path / "run" / "run_config.yaml"
    shorter = config.model_copy(update={"steps": done + 64})
    text = file.read_text().replace("steps: 320000", f"steps: {done + 64}")
    file.write_text(text)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.pt"
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    del record["provenance"]
    save_checkpoint(checkpoint, load_checkpoint(checkpoint), {**record, "config": yaml.safe_load(text)})
    summary = train_agent(str(tmp_path / "model"), out=tmp_path / "run", config=shorter, progress=False)
    assert summary.dream_steps == done + 64
    steps = [row["dream_steps"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert steps == list(range(32, done + 65, 32))


def test_other_settings_are_refused_and_named(tiny_model, small_config, tmp_path):
    train_agent(tiny_model, out=tmp_path / "run", config=small_config, progress=False)
    with pytest.raises(
        TrainingError, match=r"other settings \(seed was 0 and is now 7\); repeat those of its run_config"
    ):
        train_agent(tiny_model, out=tmp_path / "run", config=small_config, seed=7, progress=False)
    with pytest.raises(TrainingError, match="holds a training run already"):
        train_agent(tiny_model, out=tmp_path / "run", config=small_config, resume=False, progress=False)
    with torch.no_grad():
        tiny_model.reward_head.mlp[-1].weight += 1
    with pytest.raises(TrainingError, match="holds a run in another world model"):
        train_agent(tiny_model, out=tmp_path / "run", config=small_config, progress=False)


def test_other_start_states_are_refused(tiny_model, small_config, tmp_path):
    train_agent(tiny_model, out=tmp_path / "run", config=small_config, progress=False)
    few = tiny_model.start_states.select(torch.arange(3))
    with pytest.raises(TrainingError, match="holds a run from other start states"):
        train_agent(tiny_model, out=tmp_path / "run", config=small_config, start_states=few, progress=False)


def test_a_folder_with_other_things_is_left_alone(tiny_model, small_config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("dear")
    with pytest.raises(TrainingError, match="is not empty and holds no training run"):
        train_agent(tiny_model, out=tmp_path / "run", config=small_config, progress=False)
    (tmp_path / "run" / "run.json").write_text(json.dumps({"kind": "wm_gym.model_run"}))
    with pytest.raises(TrainingError, match="holds another kind of run"):
        train_agent(tiny_model, out=tmp_path / "run", config=small_config, progress=False)


def test_nothing_is_written_when_the_arguments_are_wrong(tiny_model, small_config, tmp_path):
    for arguments, error in (
        ({"algo": "pp"}, ConfigError),
        ({"steps": 0}, ConfigError),
        ({"device": "cuda:77"}, ConfigError),
        ({"config": small_config.model_copy(update={"algorithm": {"x": 1}})}, ConfigError),
    ):
        with pytest.raises(error):
            train_agent(tiny_model, out=tmp_path / "run", progress=False, **arguments)
    with pytest.raises(BundleError, match="there is no world model at"):
        train_agent(tmp_path / "nothing", out=tmp_path / "run", config=small_config, progress=False)
    with pytest.raises(BundleError, match="an agent is saved with its WorldModel, which a PointWorld is not"):
        train_agent(PointWorld(), out=tmp_path / "run", config=small_config, progress=False)
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_named(tiny_model, small_config, tmp_path, monkeypatch):
    stop_after(monkeypatch, 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train_agent(tiny_model, out=tmp_path / "run", config=small_config, progress=False)
    file = tmp_path / "run" / "checkpoints" / "last.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"checkpoint .*last\.pt' cannot be read"):
        train_agent(tiny_model, out=tmp_path / "run", config=small_config, progress=False)


def test_the_policy_with_the_best_validation_score_is_saved(tiny_model, small_config, tmp_path):
    config = small_config.model_copy(update={"validate_every": 32})
    scores, seen = iter([1.0, 5.0, 2.0]), []

    def validate(driver):
        seen.append({name: value.clone() for name, value in driver.policy.state_dict().items()})
        assert driver.action == "steer_accel"
        return next(scores)

    summary = train_agent(tiny_model, out=tmp_path / "run", config=config, on_checkpoint=validate, progress=False)
    assert (len(seen), summary.score) == (3, 5.0)
    agent = load_agent(summary.path)
    assert equal(seen[1], agent.policy.state_dict())
    assert not equal(seen[2], agent.policy.state_dict())
    assert agent.metrics["saved_at_dream_steps"] == 64
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "validation"]
    assert [(row["dream_steps"], row["score"]) for row in rows] == [(32, 1.0), (64, 5.0), (96, 2.0)]


def test_validation_without_an_opinion_changes_nothing(tiny_model, small_config, tmp_path):
    plain = train_agent(tiny_model, out=tmp_path / "plain", config=small_config, progress=False)
    watched = train_agent(
        tiny_model,
        out=tmp_path / "watched",
        config=small_config,
        on_checkpoint=lambda driver: torch.rand(1) and None,
        progress=False,
    )
    assert watched.score is None
    assert equal(policy_of(plain.path), policy_of(watched.path))


def test_a_kill_while_the_agent_is_written_can_be_mended(tiny_model, small_config, tmp_path, monkeypatch):
    def half_written(path, *arguments):
        save_agent(path, *arguments)
        (path / "model").rename(tmp_path / "run" / "model")
        raise KeyboardInterrupt

    save_agent = dream_training.save_agent
    with monkeypatch.context() as patch:
        patch.setattr(dream_training, "save_agent", half_written)
        with pytest.raises(KeyboardInterrupt):
            train_agent(tiny_model, out=tmp_path / "run", config=small_config, progress=False)
    summary = train_agent(tiny_model, out=tmp_path / "run", config=small_config, progress=False)
    assert load_agent(summary.path).model.fingerprint == tiny_model.fingerprint
    assert sorted(path.name for path in summary.path.iterdir()) == [
        "README.md",
        "agent.yaml",
        "checkpoints",
        "metrics.json",
        "metrics.jsonl",
        "model",
        "policy.safetensors",
        "run.json",
        "run_config.yaml",
        "tensorboard",
    ]
    assert yaml.safe_load((summary.path / "run_config.yaml").read_text())["steps"] == 96
