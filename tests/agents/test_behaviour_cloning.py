"""Cloning: a known policy is recovered from recordings, and a clone is an agent as any other."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_world import PointWorld

from wm_gym.agents.baselines.behaviour_cloning import CloningConfig, best_episodes, clone, clone_behaviour, watch
from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.bundles.folder import load_agent
from wm_gym.agents.evaluation.evaluation import evaluate
from wm_gym.agents.policies.observers import LatentObserver
from wm_gym.cli.main import main
from wm_gym.data_collection import Dataset, DatasetMetadata, Episode, FrameCodec
from wm_gym.errors import ConfigError, DatasetError, TrainingError
from wm_gym.training.log import read_metrics

QUICK = CloningConfig(steps=40, validate_every=10, net_arch=(8,), batch_size=16, validation_fraction=0.25)
NOISE = 0.1


def linear_policy(position):
    """Steering and acceleration for a position in [-1, 1]."""
    return np.stack((0.7 * position - 0.1, 0.2 - 0.5 * position), axis=-1)


def make_dataset(path, spec, lengths, rng):
    """Drives of a noisy linear policy that sees how bright the picture is."""

    def episodes():
        for index, steps in enumerate(lengths):
            levels = rng.integers(0, 256, steps + 1, dtype=np.uint8)
            frames = np.broadcast_to(levels[:, None, None, None], (steps + 1, *spec.frame_size, 3)).copy()
            chosen = linear_policy(levels[:-1] / 127.5 - 1) + rng.normal(scale=NOISE, size=(steps, 2))
            truncated = np.zeros(steps, bool)
            truncated[-1] = True
            yield Episode(
                frames=frames,
                actions=spec.action.to_stored(chosen, "steer_accel"),
                rewards=np.full(steps, index, np.float32),
                terminated=np.zeros(steps, bool),
                truncated=truncated,
                index=index,
            )

    return Dataset.create(path, DatasetMetadata(simulator=spec, codec=FrameCodec.parse("raw")), episodes())


def test_a_linear_policy_is_recovered_from_noisy_recordings(tmp_path, rng):
    world = PointWorld()
    dataset = make_dataset(tmp_path / "data", world.simulator, [120] * 20, rng)
    train, validation = dataset.split(0.2)
    seen, held_out = (watch(world, part, range(len(part)), "steer_accel") for part in (train, validation))
    config = CloningConfig(steps=600, net_arch=(16,), validate_every=50, action="steer_accel")
    space = world.simulator.action.space("steer_accel")
    policy, figures = clone(seen, held_out, config, space, log_folder=tmp_path)

    levels = np.arange(10, 246, dtype=np.uint8)
    pictures = np.broadcast_to(levels[:, None, None, None], (len(levels), 8, 8, 3))
    observer = LatentObserver(world)
    features = np.stack([observer.observation(picture.copy(), None) for picture in pictures])
    actions, _ = policy.predict(features, deterministic=True)
    assert np.abs(actions - linear_policy(levels / 127.5 - 1)).max() < 0.05
    assert figures["validation_loss"] == pytest.approx(NOISE**2, rel=0.2)
    assert figures["mean_action_loss"] > 5 * figures["validation_loss"]
    assert policy.log_std.exp().tolist() == pytest.approx([NOISE, NOISE], rel=0.2)


def test_of_disturbed_drives_the_intention_is_copied(tmp_path, rng):
    world = PointWorld()
    dataset = make_dataset(tmp_path / "data", world.simulator, [6], rng)
    episode = dataset.read_episode(0)
    done = watch(world, dataset, [0], "steer_accel").actions
    np.testing.assert_allclose(done, world.simulator.action.from_stored(episode.actions, "steer_accel"))
    steering = np.array((0.5, np.nan, -0.25, np.nan, 0.0, 1.0), np.float32)  # NaN: not disturbed in this step
    episode.infos = {"intended_action.0": steering}
    disturbed = Dataset.create(tmp_path / "disturbed", dataset.metadata, [episode])
    meant = watch(world, disturbed, [0], "steer_accel").actions
    np.testing.assert_allclose(meant[:, 0], np.where(np.isnan(steering), done[:, 0], steering))
    np.testing.assert_allclose(meant[:, 1], done[:, 1])


def test_the_policy_of_the_last_update_is_kept_though_an_earlier_one_copied_better(tmp_path, rng):
    """Labels without a cause: whatever is learned of them is wrong for the held-out ones."""
    world = PointWorld()
    dataset = make_dataset(tmp_path / "data", world.simulator, [20] * 4, rng)
    steps = watch(world, dataset, range(4), "steer_accel")
    shuffled = steps._replace(actions=torch.randn(len(steps.actions), 2))
    held_out = steps._replace(actions=torch.randn(len(steps.actions), 2))
    config = CloningConfig(steps=400, net_arch=(64,), validate_every=20, action="steer_accel", learning_rate=1e-2)
    space = world.simulator.action.space("steer_accel")
    policy, figures = clone(shuffled, held_out, config, space, log_folder=tmp_path)
    losses = {row["updates"]: row["validation_loss"] for row in read_metrics(tmp_path / "metrics.jsonl")}
    assert figures["validation_loss"] == losses[400] > min(losses.values())
    with torch.no_grad():
        told = policy.get_distribution(held_out.features).distribution.mean
    assert float((told - held_out.actions).square().mean()) == pytest.approx(losses[400])


def test_recordings_are_seen_as_a_driver_sees_the_road(tiny_model, tmp_path, rng):
    """Episodes of different lengths, side by side, against one after another with the driver's observer."""
    dataset = make_dataset(tmp_path / "data", tiny_model.simulator, [5, 9, 2, 9], rng)
    positions = [0, 2, 3]
    seen = watch(tiny_model, dataset, positions, "steer_accel")
    observer, features, actions = LatentObserver(tiny_model), [], []
    for position in positions:
        episode = dataset.read_episode(position)
        for step, stored in enumerate(episode.actions):
            features.append(observer.observation(episode.frames[step], episode.actions[step - 1] if step else None))
            actions.append((stored[0], stored[1] - stored[2]))
    assert seen.features.shape == (16, tiny_model.feature_dim)
    np.testing.assert_allclose(seen.features.numpy(), np.stack(features), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(seen.actions.numpy(), np.asarray(actions, np.float32))


def test_a_clone_is_an_agent_as_any_other(car_racing_data, tiny_model, tmp_path):
    summary = clone_behaviour(car_racing_data, tiny_model, out=tmp_path / "clone", config=QUICK, progress=False)
    assert (summary.steps, summary.episodes, summary.was_finished) == (40, 3, False)
    assert math.isfinite(summary.validation_loss)
    agent = load_agent(tmp_path / "clone")
    assert (agent.manifest.observation, agent.manifest.trained_in) == ("latent", "data")
    assert agent.model.fingerprint == tiny_model.fingerprint
    assert agent.metrics["actions"] == 90
    assert "cloned from recorded episodes" in (tmp_path / "clone" / "README.md").read_text()
    frame = np.zeros((64, 64, 3), np.uint8)
    assert Driver.load(tmp_path / "clone").act(frame).shape == (4,)
    result = evaluate(str(tmp_path / "clone"), episodes=1, max_episode_steps=4, progress=False)
    assert result.lengths == [4]

    again = clone_behaviour(car_racing_data, tiny_model, out=tmp_path / "clone", config=QUICK, progress=False)
    assert (again.was_finished, again.validation_loss) == (True, summary.validation_loss)


def test_an_unfinished_clone_is_begun_again_and_comes_to_the_same(car_racing_data, tiny_model, tmp_path):
    whole = clone_behaviour(car_racing_data, tiny_model, out=tmp_path / "whole", config=QUICK, progress=False)
    clone_behaviour(car_racing_data, tiny_model, out=tmp_path / "cut", config=QUICK, progress=False)
    for name in ("agent.yaml", "policy.safetensors"):  # as if it had been killed before its last moves
        (tmp_path / "cut" / name).unlink()
    again = clone_behaviour(car_racing_data, tiny_model, out=tmp_path / "cut", config=QUICK, progress=False)
    assert not again.was_finished
    first, second = (load_agent(path).policy.state_dict() for path in (whole.path, again.path))
    assert all(torch.equal(first[name], second[name]) for name in first)
    rows = read_metrics(again.path / "metrics.jsonl")
    assert [row["updates"] for row in rows] == [10, 20, 30, 40]


def test_only_the_best_drives_are_copied_where_that_is_asked(tiny_model, tmp_path, rng):
    dataset = make_dataset(tmp_path / "data", tiny_model.simulator, [2, 9, 2, 1, 2, 2, 2, 2], rng)
    # Their returns: 0, 9, 4, 3, 8, 10, 12, 14.
    assert best_episodes(dataset, 1.0) == list(range(8))
    assert best_episodes(dataset, 0.5) == [1, 5, 6, 7]
    assert best_episodes(dataset, 0.01) == [7]
    tiny_model.save_pretrained(tmp_path / "model")
    command = ["train-agent", "--in", "data", "--data", str(tmp_path / "data"), "--model", str(tmp_path / "model")]
    command += ["--out", str(tmp_path / "clone"), "--steps", "10", "--top-fraction", "0.5", "--quiet"]
    assert main([*command, "--set", "validation_fraction=0.25", "--device", "cpu"]) == 0
    # Held out are 3 and 7; the best half of the other six are those with 9, 10 and 12.
    metrics = load_agent(tmp_path / "clone").metrics
    assert (metrics["episodes"], metrics["actions"], metrics["top_fraction"]) == (3, 13, 0.5)
    assert metrics["mean_return"] == pytest.approx(31 / 3)


def test_only_some_drivers_are_copied_where_that_is_asked(tiny_model, tmp_path, rng):
    made = make_dataset(tmp_path / "made", tiny_model.simulator, [2] * 8, rng)
    drivers = ["noisy", "random", "noisy", "noisy(reckless)"] * 2
    episodes = [replace(made.read_episode(number), behaviour=name) for number, name in enumerate(drivers)]
    dataset = Dataset.create(tmp_path / "data", made.metadata, episodes)
    assert best_episodes(dataset, 1.0, ("noisy",)) == [0, 2, 4, 6]
    assert best_episodes(dataset, 0.5, ("noisy", "noisy(reckless)")) == [4, 6, 7]
    assert best_episodes(dataset, 1.0, ("noisy(*)",)) == best_episodes(dataset, 1.0, ("noisy(reckless)",))
    tiny_model.save_pretrained(tmp_path / "model")
    command = ["train-agent", "--in", "data", "--data", str(dataset.path), "--model", str(tmp_path / "model")]
    command += ["--out", str(tmp_path / "clone"), "--steps", "5", "--quiet", "--device", "cpu"]
    assert main([*command, "--set", "validation_fraction=0.25", "--set", "behaviours=[noisy, noisy(reckless)]"]) == 0
    held_out = dataset.split(0.25)[1]
    left = sum(name != "random" for name in drivers) - sum(h.behaviour != "random" for h in held_out.episodes)
    assert load_agent(tmp_path / "clone").metrics["episodes"] == left
    for behaviours, message in (
        (
            ("noisi",),
            r"was driven by 'noisi' \(did you mean 'noisy'\?\); its drivers are noisy, noisy\(reckless\), rand",
        ),
        (("random",), "none was driven by random; change validation_fraction, or name more behaviours"),
    ):
        config = CloningConfig(behaviours=behaviours, validation_fraction=0.01)
        with pytest.raises(DatasetError, match=message):
            clone_behaviour(dataset.path, tiny_model, out=tmp_path / "other", config=config, progress=False)
    assert not (tmp_path / "other" / "agent.yaml").exists()


def test_what_does_not_fit_is_refused_before_anything_is_written(tiny_model, car_racing_data, tmp_path, rng):
    small = make_dataset(tmp_path / "small", PointWorld().simulator, [2, 2], rng)
    native = make_dataset(tmp_path / "one", tiny_model.simulator, [2], rng)
    with pytest.raises(DatasetError, match="are 8x8, but the world model was trained with 64x64"):
        clone_behaviour(small.path, tiny_model, out=tmp_path / "clone", progress=False)
    with pytest.raises(DatasetError, match="has 2 steps, but 3 are the least that can be split by time"):
        clone_behaviour(native.path, tiny_model, out=tmp_path / "clone", progress=False)
    with pytest.raises(ConfigError, match=r"wrong at 'top_fraction'"):
        clone_behaviour(car_racing_data, tiny_model, out=tmp_path / "clone", top_fraction=0.0, progress=False)
    assert not (tmp_path / "clone").exists()
    clone_behaviour(car_racing_data, tiny_model, out=tmp_path / "clone", config=QUICK, steps=1, progress=False)
    with torch.no_grad():
        tiny_model.reward_head.mlp[-1].weight += 1
    with pytest.raises(TrainingError, match="a run in another world model"):
        clone_behaviour(car_racing_data, tiny_model, out=tmp_path / "clone", config=QUICK, steps=1, progress=False)
