"""PPO from pixels on the real CarRacing, with very few steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wm_gym.agents.baselines import simulator_training
from wm_gym.agents.baselines.simulator_training import PixelTrainer, StackedFrames, train_in_simulator
from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.bundles.folder import PixelAgentManifest, agent_simulator, load_agent, read_agent_manifest
from wm_gym.agents.evaluation.evaluation import evaluate
from wm_gym.agents.policies.pixel_config import PixelAgentConfig, make_pixel_config
from wm_gym.cli.main import main
from wm_gym.data_collection.recording.plan import HELD_OUT_FROM
from wm_gym.envs.simulators import make_simulator, make_simulator_from_spec
from wm_gym.errors import BundleError, ConfigError, TrainingError
from wm_gym.training.log import read_metrics

SMALL = PixelAgentConfig(
    steps=64, num_envs=2, n_steps=16, batch_size=16, n_epochs=1, features_dim=16, net_arch=(8,), checkpoint_overhead=1.0
)
SHORT = {"max_frames": 26}  # 7 actions, of which the last one is cut to 2 frames


def train(out, config=SMALL, **arguments):
    arguments = {"simulator_kwargs": SHORT, "progress": False, "device": "cpu", **arguments}
    return train_in_simulator("car-racing", out=out, config=config, **arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.set_num_threads(1)
    return train(tmp_path_factory.mktemp("pixels") / "run")


def policies_equal(first, second):
    first, second = (load_agent(path).policy.state_dict() for path in (first, second))
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_folder_becomes_an_agent_and_its_frames_are_counted(trained):
    # Each of the two simulators makes 32 actions: four episodes of 26 frames, and 4 actions of a fifth one.
    assert (trained.steps, trained.frames, trained.was_finished) == (64, 2 * (4 * 26 + 4 * 4), False)
    rows = read_metrics(trained.path / "metrics.jsonl")
    assert [row["steps"] for row in rows] == [32, 64]
    assert rows[-1]["frames"] == trained.frames
    assert {"ep_rew_mean", "value_loss", "approx_kl", "learning_rate", "fps"} <= rows[0].keys()
    assert [row["ep_len_mean"] for row in rows] == [7.0, 7.0]
    assert rows[0]["learning_rate"] == pytest.approx(3e-4)
    assert rows[1]["learning_rate"] == pytest.approx(3e-4 * 0.55)  # linear decay to a tenth
    manifest = read_agent_manifest(trained.path)[1]
    assert isinstance(manifest, PixelAgentManifest)
    assert (manifest.observation, manifest.trained_in, manifest.config.frame_stack) == ("pixels", "simulator", 4)
    assert agent_simulator(trained.path).kwargs == SHORT
    assert load_agent(trained.path).metrics["episodes"] == 8


def test_the_agent_is_evaluated_as_any_other(trained):
    result = evaluate(str(trained.path), episodes=1, max_episode_steps=5, progress=False)
    assert (result.lengths, result.seeds) == ([5], [HELD_OUT_FROM])
    assert result.simulator == agent_simulator(trained.path)


def test_a_driver_sees_what_the_policy_saw_in_training(trained):
    """The stack of the driver against that of the training's environment, and equal actions after loading."""
    agent, driver = load_agent(trained.path), Driver.load(trained.path)
    spec = agent_simulator(trained.path)
    stacked = StackedFrames(make_simulator_from_spec(spec, action="steer_accel"), spec, 4)
    raw = make_simulator_from_spec(spec)
    for seed in (3, 4):
        observation, _ = stacked.reset(seed=seed)
        track = int(np.random.default_rng(seed).integers(HELD_OUT_FROM))
        frame, _ = raw.reset(seed=track)
        driver.reset()
        seen = [frame] * 4
        truncated = False
        while not truncated:
            assert observation.shape == (12, 64, 64)
            assert np.array_equal(observation, np.concatenate([image.transpose(2, 0, 1) for image in seen]))
            chosen, _ = agent.policy.predict(observation, deterministic=True)
            action = driver.act(frame)
            assert np.array_equal(action, spec.action.to_stored(chosen, "steer_accel"))
            observation, *_ = stacked.step(chosen)
            frame, _, _, truncated, _ = raw.step(action)
            seen = [*seen[1:], frame]


def test_tracks_are_drawn_below_those_held_out(driving_spec):
    seeds = []
    env = make_simulator("car-racing", max_frames=4, action="steer_accel")
    reset = env.reset
    env.reset = lambda *, seed, options: (seeds.append(seed), reset(seed=seed, options=options))[1]
    wrapped = StackedFrames(env, driving_spec, 2)
    wrapped.reset(seed=0)
    wrapped.reset()
    wrapped.reset(seed=0)
    assert seeds[0] == seeds[2] != seeds[1]
    assert all(0 <= seed < HELD_OUT_FROM for seed in seeds)


def test_the_same_seed_gives_the_same_agent_and_another_one_another(trained, tmp_path):
    assert policies_equal(trained.path, train(tmp_path / "again").path)
    assert not policies_equal(trained.path, train(tmp_path / "other", seed=1).path)


@pytest.mark.slow
def test_workers_do_not_change_the_result(trained, tmp_path):
    assert policies_equal(trained.path, train(tmp_path / "two", workers=2).path)


def test_every_decision_is_made_in_rollouts_of_nearly_equal_length(driving_spec):
    spec = driving_spec.model_copy(update={"kwargs": SHORT})
    with PixelTrainer(spec, SMALL.model_copy(update={"steps": 70})) as trainer:
        steps = []
        while trainer.steps < 70:
            trainer.train_round()
            steps.append(trainer.steps)
    assert steps == [34, 70]


def test_a_stopped_run_goes_on(trained, tmp_path, monkeypatch):
    train_round = PixelTrainer.train_round

    def stopped(self):
        if self.steps:
            raise KeyboardInterrupt
        return train_round(self)

    with monkeypatch.context() as patch:
        patch.setattr(PixelTrainer, "train_round", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run")
    with pytest.raises(BundleError, match="its training has not finished; run the same training again"):
        load_agent(tmp_path / "run")
    resumed = train(tmp_path / "run")
    assert (resumed.steps, resumed.was_finished) == (64, False)
    rows, whole = (read_metrics(path / "metrics.jsonl") for path in (resumed.path, trained.path))
    assert [row["steps"] for row in rows] == [32, 64]
    assert rows[0]["value_loss"] == whole[0]["value_loss"]
    # 16 actions of each simulator in its first life, and 16 in the second.
    assert resumed.frames == 2 * 2 * (2 * 26 + 2 * 4)


def test_the_same_command_again_says_that_it_is_done(tmp_path, capsys):
    options = ["--steps", "32", "--set", "num_envs=2", "--set", "n_steps=16", "--set", "n_epochs=1"]
    command = ["train-agent", "--in", "simulator", "--env", "car-racing", "--env-set", "max_frames=26", *options]
    command += ["--out", str(tmp_path / "run"), "--seed", "5", "--quiet", "--device", "cpu"]
    assert main(command) == 0
    assert "agent trained in" in (printed := capsys.readouterr().out)
    assert "32 decisions, 120 simulator frames" in printed
    assert main(command) == 0
    assert "agent was finished already; 32 decisions, 120 simulator frames" in capsys.readouterr().out


def test_a_folder_of_another_run_is_refused(trained, tmp_path, monkeypatch):
    with pytest.raises(TrainingError, match=r"other settings \(seed was 0 and is now 7\)"):
        train(trained.path, seed=7)
    with pytest.raises(TrainingError, match="a run with another simulator"):
        train(trained.path, simulator_kwargs={"max_frames": 30})
    (tmp_path / "thesis.txt").write_text("1")
    with pytest.raises(TrainingError, match="is not empty and holds no training run"):
        train(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]
    monkeypatch.setattr(simulator_training, "_KIND", "another")
    with pytest.raises(TrainingError, match="holds another kind of run"):
        train(trained.path)


@pytest.mark.parametrize(
    ("changes", "arguments", "sentence"),
    [
        ({"steps": 33}, {}, r"steps=33 cannot be shared out among num_envs=2 .* a multiple of 2 from 4 on"),
        ({}, {"workers": 3}, "workers=3 is neither 1, .* nor num_envs=2"),
        ({}, {"simulator_kwargs": {"frame_size": 32}}, "frames of 32x32 are too small"),
        ({"action": "native"}, {}, "'native' is not offered"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, changes, arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        train(tmp_path / "run", SMALL.model_copy(update=changes), **arguments)
    assert not (tmp_path / "run").exists()


def test_an_unknown_setting_is_named():
    with pytest.raises(ConfigError, match=r"unknown key 'frame_stak' \(did you mean 'frame_stack'\?\)"):
        make_pixel_config(changes=["frame_stak=2"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model", "m", "--env", "car-racing"], "--env belongs to --in simulator, not to --in dream; leave it out."),
        (["--model", "m", "--data", "d"], "--data belongs to --rounds; give that as well, or leave it out."),
        ([], "--in dream needs --model, the world model to dream in; give it as well."),
        (["--in", "simulator"], "--in simulator needs --env, the simulator; give it as well."),
        (["--in", "simulator", "--env", "car-racing", "--model", "m"], "--model belongs to --in dream and data, not"),
        (["--in", "simulator", "--env", "car-racing", "--algo", "sac"], "--in simulator trains ppo only, not --algo"),
        (["--in", "simulator", "--env", "car-racing", "--select-drives", "1"], "--select-drives belongs to --in dream"),
        (["--in", "data", "--model", "m"], "--in data needs --data, the recorded episodes; give it as well."),
        (["--in", "data", "--data", "d"], "--in data needs --model, the world model that the policy sees through; gi"),
        (
            ["--in", "data", "--data", "d", "--model", "m", "--workers", "2"],
            "--workers belongs to --in simulator and dream, not",
        ),
    ],
)
def test_options_of_another_place_give_one_sentence(tmp_path, capsys, options, sentence):
    assert main(["train-agent", *options, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
