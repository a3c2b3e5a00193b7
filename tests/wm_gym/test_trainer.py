"""The training loop on real CarRacing episodes: resume, kill, several processes, failures."""

import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.carla_server.process import free_port
from wm_gym.config import load_config
from wm_gym.data_collection import DownloadCache, push
from wm_gym.data_collection.datasets.training_data import open_training_data
from wm_gym.errors import TrainingError
from wm_gym.losses import WorldModelLoss, unroll
from wm_gym.models.dynamics.rssm import CategoricalDraw
from wm_gym.training.checkpoint import load_checkpoint, save_checkpoint
from wm_gym.training.clips import ClipLoader, EncodedClipLoader, encode_episodes, to_tensors
from wm_gym.training.log import read_metrics
from wm_gym.training.shared_noise import SharedNoise
from wm_gym.training.trainer import WorldModelTrainer, learning_rate_at
from wm_gym.world_model import WorldModel


def make_trainer(data, out, *changes, kind=WorldModelTrainer, **further):
    config = load_config("debug", changes)
    opened = open_training_data(data, config.training.validation_fraction)
    return kind(
        config,
        opened.simulator,
        opened.train,
        opened.validation,
        out,
        data_info=opened.info,
        data_metrics=opened.metrics,
        device="cpu",
        progress=False,
        **further,
    )


def train(data, out, *changes):
    return make_trainer(data, out, *changes).run()


def losses(out) -> dict[int, float]:
    return {row["update"]: row["loss"] for row in read_metrics(out / "metrics.jsonl") if row["kind"] == "train"}


def cli(data, out, *changes) -> list[str]:
    settings = [part for change in changes for part in ("--set", change)]
    return ["train-model", "--data", str(data), "--config", "debug", "--out", str(out), "--device", "cpu", *settings]


def run_environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_a_run_folder_holds_everything(car_racing_data, tmp_path):
    model = train(car_racing_data, tmp_path / "run")
    out = tmp_path / "run"
    expected = {"run_config.yaml", "run.json", "metrics.jsonl", "tensorboard", "checkpoints", "config.yaml"}
    expected |= {"model.safetensors", "start_states.safetensors", "metrics.json", "README.md"}
    assert expected <= {entry.name for entry in out.iterdir()}
    record = json.loads((out / "run.json").read_text())
    assert record["data"]["fingerprint"]
    assert record["provenance"]["packages"]["torch"]
    loaded = WorldModel.from_pretrained(out)
    assert loaded.start_states.batch_size == 32
    assert loaded.fingerprint == model.fingerprint
    rows = read_metrics(out / "metrics.jsonl")
    validations = [row for row in rows if row["kind"] == "validation"]
    assert [row["update"] for row in validations] == [10, 20]
    assert set(validations[-1]["psnr"]) == {"1", "5"}
    assert math.isfinite(validations[-1]["reward"]["absolute_error"]["5"])
    assert loaded.metrics["random_driving"]["episodes"] == 2


def test_a_training_ends_with_what_is_wrong_with_its_model(car_racing_data, tmp_path):
    with pytest.warns(UserWarning, match="does not see what a driver must see"):
        model = train(car_racing_data, tmp_path / "run")
    assert model.metrics["r2_reconstruction"] < 0.25  # after 20 updates


def test_a_finished_run_called_again_is_left_as_it_is(car_racing_data, tmp_path):
    out = tmp_path / "run"
    first = train(car_racing_data, out)
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in out.rglob("*") if file.is_file()}
    again = train(car_racing_data, out)
    assert again.fingerprint == first.fingerprint
    assert again.metrics == first.metrics
    after = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in out.rglob("*") if file.is_file()}
    assert after == before
    (out / "start_states.safetensors").unlink()  # what is missing is made again, from the checkpoints
    train(car_racing_data, out)
    file = out / "start_states.safetensors"
    assert file.read_bytes() == before[file][1]


class Ending:
    """Episodes that the task ends with their last step."""

    def __init__(self, source):
        self.source = source

    def __getattr__(self, name):
        return getattr(self.source, name)

    def read_clips(self, draws, length):
        clips = self.source.read_clips(draws, length)
        reaches = draws[:, 1] + length == self.source.episode_lengths()[draws[:, 0]] + 1
        return clips._replace(terminated=clips.terminated | (reaches[:, None] & (np.arange(length - 1) == length - 2)))


def test_the_termination_head_is_trained_at_the_end(car_racing_data, tmp_path):
    def train_to_ends(out, steps):
        trainer = make_trainer(car_racing_data, out, f"training.termination_steps={steps}")
        trainer.train_source = Ending(trainer.train_source)
        return trainer.run()

    plain, out = train_to_ends(tmp_path / "plain", 0), tmp_path / "run"
    model = train_to_ends(out, 5)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, plain.state_dict()[name])}
    assert changed == {name for name, _ in model.named_parameters() if name.startswith("continuation_head")}
    assert model.metrics["psnr"] == plain.metrics["psnr"]
    (out / "config.yaml").unlink()  # as if it had been killed before it was saved
    assert train_to_ends(out, 5).fingerprint == model.fingerprint


def test_training_goes_on_from_a_model(car_racing_data, tmp_path):
    first = train(car_racing_data, tmp_path / "first", "training.steps=40", "training.learning_rate=5e-3")
    simulator = open_training_data(car_racing_data, 0.0).simulator

    def further(initial):
        changes = ("training.steps=4", "training.seed=1")
        return make_trainer(car_racing_data, tmp_path / "second", *changes, initial=initial)

    model = further(WorldModel.from_pretrained(tmp_path / "first")).run()
    assert losses(tmp_path / "second")[1] < 0.6 * losses(tmp_path / "first")[1]
    assert model.provenance["initial_model"] == first.fingerprint
    assert model.fingerprint != first.fingerprint
    with pytest.raises(TrainingError, match="began from another model"):
        further(None).run()
    other = WorldModel(load_config("tiny").model, simulator)
    with pytest.raises(TrainingError, match="another architecture or simulator"):
        further(other)


@pytest.mark.parametrize(("setting", "first"), [("beginning_share", 0), ("ending_share", 26)])
def test_beginnings_and_ends_of_episodes_have_their_share(car_racing_data, setting, first):
    source = open_training_data(car_racing_data, 0.0).train
    assert set(source.episode_lengths().tolist()) == {30}
    seen = []

    class Spy:
        def episode_lengths(self):
            return source.episode_lengths()

        def draw_clips(self, rng, batch_size, length):
            return source.draw_clips(rng, batch_size, length)

        def read_clips(self, draws, length):
            seen.append(draws.copy())
            return source.read_clips(draws, length)

    for share in (0.0, 0.5, 1.0):
        seen.clear()
        ClipLoader(Spy(), 200, 5, accumulation=1, seed=0, **{setting: share}).read(0, 0)
        found = float(np.mean(seen[0][:, 1] == first))
        assert found == pytest.approx(share + (1 - share) / 27, abs=0.1)  # 27 clips in an episode of 30 steps


def test_ends_of_episodes_are_at_any_step_of_a_clip(car_racing_data):
    """At the last one alone they would look like the ends of clips, and be missed in a drive."""
    source = open_training_data(car_racing_data, 0.0).train
    sizes = {"accumulation": 1, "seed": 0, "ending_share": 1.0, "mirror_share": 0.5}
    clips = ClipLoader(source, 400, 5, **sizes).read(0, 0)
    last = clips.is_real.sum(axis=1)  # frame at which the episode ends
    assert set(last) == {1, 2, 3, 4}
    assert np.bincount(last)[1:] == pytest.approx(np.full(4, 100), abs=35)
    for row in range(20):
        end = last[row]
        assert clips.is_real[row].tolist() == [True] * end + [False] * (4 - end)
        assert (clips.frames[row, end:] == clips.frames[row, end]).all()
    whole = ClipLoader(source, 400, 5, **{**sizes, "ending_share": 0.0}).read(0, 0)
    assert whole.is_real is None

    model = WorldModel(load_config("debug").model, source.datasets[0].metadata.simulator).eval()
    encoded = EncodedClipLoader(
        source, 16, 5, episodes=encode_episodes(model, source, mirrored=True), shown=5, **sizes
    ).read(0, 0)
    seen = to_tensors(encoded, "cpu")
    torch.testing.assert_close(model.encode(seen.observations), encoded.latents, atol=2e-3, rtol=1e-3)
    assert encoded.is_real.shape == (16, 4)


def test_training_learns(car_racing_data, tmp_path):
    train(car_racing_data, tmp_path / "run", "training.steps=60", "training.learning_rate=5e-3")
    curve = losses(tmp_path / "run")
    first = sum(curve[update] for update in range(1, 6)) / 5
    last = sum(curve[update] for update in range(56, 61)) / 5
    assert last < 0.6 * first


def test_a_training_begins_at_the_mean_colour(car_racing_data, tmp_path):
    """From grey on, a channel whose pixels lie on both sides of it can be stuck at the wrong end of tanh."""
    unchanged = "training.learning_rate=1e-12"
    begun = train(car_racing_data, tmp_path / "first", "training.steps=1", unchanged)
    recorded = to_tensors(read_all(open_training_data(car_racing_data, 0.0).train), "cpu").frames
    colour = torch.tanh(begun.decoder.output.bias)
    torch.testing.assert_close(colour, recorded.mean(dim=(0, 1, 3, 4)), atol=0.1, rtol=0)
    assert colour.abs().min() > 0.15, "or grey would pass"

    other = make_trainer(car_racing_data, tmp_path / "second", "training.steps=1", unchanged, initial=dyed(begun)).run()
    torch.testing.assert_close(other.decoder.output.bias, torch.full((3,), -2.0))


class ShareWatcher(WorldModelTrainer):
    """Keeps with which share the KL terms counted in each update."""

    def _update(self, wrapped, gradients, optimizer, micro_batches, update):
        def watched(clips, draws):
            self.shares.append(None if draws.kl_share is None else float(draws.kl_share))
            return gradients(clips, draws)

        self.shares = getattr(self, "shares", [])
        return super()._update(wrapped, watched, optimizer, micro_batches, update)


def test_the_kl_counts_from_an_update_on_but_not_where_training_goes_on(car_racing_data, tmp_path):
    changes = ("model.dynamics.kind=rssm", "model.dynamics.groups=4", "training.steps=8")

    def shares(out, *further, initial=None):
        trainer = make_trainer(car_racing_data, tmp_path / out, *changes, *further, kind=ShareWatcher, initial=initial)
        return trainer.run(), trainer.shares

    model, counted = shares("plain")
    assert counted == [None] * 8
    _, counted = shares("late", "training.kl_start=3")
    assert counted == [0.0] * 3 + [1.0] * 5
    _, counted = shares("short", "training.kl_start=100")
    assert counted == [0.0] * 4 + [1.0] * 4, "at most half of the training goes without"
    _, counted = shares("further", "training.kl_start=3", initial=model)
    assert counted == [None] * 8


def read_all(source):
    episodes = np.arange(len(source.episode_lengths()))
    return source.read_clips(np.stack([episodes, np.zeros_like(episodes)], axis=1), 31)


def dyed(model):
    torch.nn.init.constant_(model.decoder.output.bias, -2.0)
    return model


def test_resumed_training_equals_uninterrupted(car_racing_data, tmp_path):
    whole = train(car_racing_data, tmp_path / "whole")

    class StoppingTrainer(WorldModelTrainer):
        def _update(self, wrapped, gradients, optimizer, micro_batches, update):
            if update == 13:
                raise KeyboardInterrupt
            return super()._update(wrapped, gradients, optimizer, micro_batches, update)

    stopping = make_trainer(car_racing_data, tmp_path / "cut", kind=StoppingTrainer)
    with pytest.raises(KeyboardInterrupt):
        stopping.run()
    assert load_checkpoint(tmp_path / "cut" / "checkpoints" / "last.pt")["update"] == 13
    resumed = train(car_racing_data, tmp_path / "cut")
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    for (name, expected), value in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, msg=name)


LATENT_PHASE = (
    "training.steps=6",
    "training.latent.steps=8",
    "training.latent.clip_length=12",
    "training.latent.batch_size=4",
)


def test_the_latent_phase_leaves_the_encoder_alone(car_racing_data, tmp_path):
    config = load_config("debug", LATENT_PHASE)
    assert [learning_rate_at(update, config) for update in (0, 6)] == [pytest.approx(2e-4), pytest.approx(1e-5)]
    whole = train(car_racing_data, tmp_path / "whole", *LATENT_PHASE, "training.validation_fraction=0")
    short = train(car_racing_data, tmp_path / "short", "training.steps=6", "training.validation_fraction=0")
    before = short.state_dict()
    changed = {name for name, value in whole.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("encoder") for name in changed)
    for part in ("dynamics", "decoder", "reward_head", "continuation_head"):
        assert any(name.startswith(part) for name in changed)
    assert max(losses(tmp_path / "whole")) == 14


@pytest.mark.parametrize("stop", [6, 9])
def test_the_latent_phase_resumes_exactly(car_racing_data, tmp_path, stop):
    changes = (*LATENT_PHASE, "training.mirror_share=0.5", "model.dynamics.kind=rssm")
    train(car_racing_data, tmp_path / "whole", *changes)

    class StoppingTrainer(WorldModelTrainer):
        def _update(self, wrapped, gradients, optimizer, micro_batches, update):
            if update == stop:
                raise KeyboardInterrupt
            return super()._update(wrapped, gradients, optimizer, micro_batches, update)

    with pytest.raises(KeyboardInterrupt):
        make_trainer(car_racing_data, tmp_path / "cut", *changes, kind=StoppingTrainer).run()
    train(car_racing_data, tmp_path / "cut", *changes)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


@pytest.mark.parametrize("kind", ["gru", "rssm"])
def test_encoded_clips_give_the_loss_of_their_frames(car_racing_data, kind):
    config = load_config("debug", [f"model.dynamics.kind={kind}"])
    data = open_training_data(car_racing_data, 0.0)
    model = WorldModel(config.model, data.simulator).eval()
    episodes = encode_episodes(model, data.train, mirrored=True)
    sizes = {"accumulation": 1, "seed": 3, "mirror_share": 0.5}
    plain = to_tensors(ClipLoader(data.train, 4, 6, **sizes).read(0, 0), "cpu")
    encoded = to_tensors(EncodedClipLoader(data.train, 4, 6, episodes=episodes, shown=6, **sizes).read(0, 0), "cpu")
    loss = WorldModelLoss(config.loss, context=2)
    with torch.no_grad():
        expected, terms = loss(model, plain)
        total, encoded_terms = loss(model, encoded)
        torch.testing.assert_close(total, expected)
        # With some time steps alone, the pictures' terms are those of the steps that are shown.
        few = encoded._replace(frames=plain.frames[:, [1, 4]], shown=torch.tensor([1, 4]))
        _, few_terms = loss(model, few)
        unrolled = unroll(model, plain, 2)
        shown = model.decode_latent(unrolled.observed[:, [1, 4]].flatten(0, 1)).unflatten(0, (4, 2))
    assert encoded_terms.keys() == terms.keys() == few_terms.keys()
    torch.testing.assert_close(few_terms["reconstruction"], (shown - few.frames).abs().mean())
    torch.testing.assert_close(few_terms["reward"], terms["reward"])


def test_mirrored_clips(car_racing_data):
    source = open_training_data(car_racing_data, 0.0).train
    sizes = {"accumulation": 1, "seed": 0}
    straight = ClipLoader(source, 64, 5, mirror_share=1e-9, **sizes).read(0, 0)
    turned = ClipLoader(source, 64, 5, mirror_share=1.0, **sizes).read(0, 0)
    np.testing.assert_array_equal(turned.frames, straight.frames[:, :, :, ::-1])
    np.testing.assert_array_equal(turned.actions[..., 0], -straight.actions[..., 0])
    np.testing.assert_array_equal(turned.actions[..., 1:], straight.actions[..., 1:])
    some = ClipLoader(source, 64, 5, mirror_share=0.5, **sizes).read(0, 0)
    changed = np.any(some.frames != straight.frames, axis=(1, 2, 3, 4))
    assert 0.3 < changed.mean() < 0.7


def test_mirroring_needs_driving_actions(car_racing_data, tmp_path):
    opened = open_training_data(car_racing_data, 0.0)
    action = opened.simulator.action.model_copy(update={"kind": "native"})
    native = opened.simulator.model_copy(update={"action": action})
    config = load_config("debug", ["training.mirror_share=0.5"])
    with pytest.raises(TrainingError, match="mirror_share=0"):
        WorldModelTrainer(config, native, opened.train, None, tmp_path / "run", data_info=opened.info, device="cpu")


KILLED_IN_THE_MIDDLE = """
import os, signal, sys, threading, time
from pathlib import Path
from wm_gym.cli.main import main

metrics = Path(sys.argv.pop(1))

def kill():
    while not metrics.exists() or metrics.read_text().count('"kind": "train"') < 15:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill, daemon=True).start()
sys.exit(main())
"""
"""It kills itself, so that no other process has to be in time for it."""


@pytest.mark.slow
def test_kill_9_and_the_same_command_again(car_racing_data, tmp_path):
    changes = ["training.steps=40"]
    whole = tmp_path / "whole"
    train(car_racing_data, whole, *changes)
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "wm_gym", *cli(car_racing_data, killed, *changes), "--quiet"]
    first = [sys.executable, "-c", KILLED_IN_THE_MIDDLE, str(killed / "metrics.jsonl"), *command[3:]]
    finished = subprocess.run(first, env=run_environment(), capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == -signal.SIGKILL, finished.stderr
    done_at_kill = max(losses(killed))
    saved = load_checkpoint(killed / "checkpoints" / "last.pt")["update"]
    assert saved <= done_at_kill
    assert not (killed / "model.safetensors").exists()

    again = subprocess.run(command, env=run_environment(), capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    assert losses(killed) == pytest.approx(losses(whole), rel=1e-4)
    expected = WorldModel.from_pretrained(whole).state_dict()
    for name, value in WorldModel.from_pretrained(killed).state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def train_with_two_processes(data, out, *changes, **environment):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "wm_gym"]
    command += [*cli(data, out, *changes), "--quiet"]
    surroundings = run_environment() | environment
    finished = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr[-2000:]


@pytest.mark.slow
def test_two_processes_follow_the_same_curve_as_one(car_racing_data, tmp_path):
    changes = ["training.steps=8", "training.accumulation=2"]
    train(car_racing_data, tmp_path / "one", *changes)
    train_with_two_processes(car_racing_data, tmp_path / "two", *changes)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    assert WorldModel.from_pretrained(tmp_path / "two").start_states is not None


@pytest.mark.slow
def test_two_hosts_follow_the_same_curve_as_one(car_racing_data, tmp_path):
    """As docs/scaling.md starts it: ``torchrun`` on each host, which meet at an address."""
    changes = ["training.steps=8"]
    train(car_racing_data, tmp_path / "one", *changes)
    meeting = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", meeting, "--local-addr", "127.0.0.1", "-m", "wm_gym"]
    command += [*cli(car_racing_data, tmp_path / "two", *changes), "--quiet"]
    hosts = [subprocess.Popen(command, env=run_environment(), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for host in hosts:
            assert host.wait(timeout=300) == 0, host.stderr.read()[-2000:]
    finally:
        for host in hosts:
            host.kill()
            host.communicate()
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)


STOCHASTIC = (
    *LATENT_PHASE,
    "training.accumulation=2",
    "training.mirror_share=0.5",
    "training.beginning_share=0.2",
    "training.context_range=[1,3]",
    "training.decode_fraction=0.5",
    "training.learning_rate=5e-3",
    "training.latent.learning_rate=5e-3",
    "loss.prediction=0.5",
    "training.ending_share=0.4",
    "model.dynamics.kind=rssm",
    "model.dynamics.groups=8",
    "model.dynamics.classes=8",
)


@pytest.mark.slow
def test_two_processes_draw_the_same_stochastic_states_as_one_in_both_phases(car_racing_data, tmp_path):
    """Clips, decoded steps, mirrored clips and drawn states hang on seed and update alone, wherever the data are."""
    train(car_racing_data, tmp_path / "one", *STOCHASTIC)
    url = f"file://{tmp_path}/elsewhere"
    push(car_racing_data, url, progress=False)
    train_with_two_processes(url, tmp_path / "two", *STOCHASTIC, WM_GYM_CACHE=str(tmp_path / "cache"))
    assert len(list((tmp_path / "cache").glob("??/*/episode-*.safetensors"))) == 4
    one = losses(tmp_path / "one")
    assert sorted(one) == list(range(1, 15))
    assert losses(tmp_path / "two") == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_a_run_resumed_with_more_processes_goes_on_exactly(car_racing_data, tmp_path):
    train(car_racing_data, tmp_path / "whole", *STOCHASTIC)

    class StoppingTrainer(WorldModelTrainer):
        def _update(self, wrapped, gradients, optimizer, micro_batches, update):
            if update == 9:
                raise KeyboardInterrupt
            return super()._update(wrapped, gradients, optimizer, micro_batches, update)

    with pytest.raises(KeyboardInterrupt):
        make_trainer(car_racing_data, tmp_path / "cut", *STOCHASTIC, kind=StoppingTrainer).run()
    train_with_two_processes(car_racing_data, tmp_path / "cut", *STOCHASTIC)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def test_processes_share_out_the_clips_of_one_draw(car_racing_data):
    source = open_training_data(car_racing_data, 0.0).train
    sizes = {"accumulation": 2, "seed": 5, "beginning_share": 0.2, "mirror_share": 0.5}
    for update, micro in ((0, 0), (7, 1)):
        whole = ClipLoader(source, 8, 5, **sizes).read(update, micro)
        for rank in range(4):
            part = ClipLoader(source, 8, 5, **sizes, rank=rank, world_size=4).read(update, micro)
            for name in ("frames", "actions", "rewards", "terminated"):
                np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[rank::4])


def test_a_process_downloads_what_it_draws(car_racing_data, tmp_path):
    url = f"file://{tmp_path}/elsewhere"
    push(car_racing_data, url, progress=False)
    for rank in range(2):
        cache = DownloadCache(tmp_path / str(rank))
        source = open_training_data(url, 0.0, downloads=cache).train
        loader = ClipLoader(source, 2, 5, accumulation=1, seed=1, rank=rank, world_size=2)
        loader.read(3, 0)
        (drawn,) = source.draw_clips(np.random.default_rng((1, 3, 0)), 2, 5)[rank::2, 0]
        (kept,) = cache.folder.glob("??/*/*")
        assert kept.name == f"episode-{drawn:06d}.safetensors"


def test_shared_noise_is_that_of_a_single_process():
    draw = CategoricalDraw(4).train()
    probabilities = torch.full((6, 3, 4), 0.25)
    torch.manual_seed(9)
    expected = [draw(probabilities), draw(probabilities)]
    for rank in range(3):
        noise = SharedNoise(draw, rank, 3, torch.device("cpu"))
        noise.manual_seed(9)
        torch.manual_seed(rank)
        for whole in expected:
            torch.testing.assert_close(draw(probabilities[rank::3]), whole[rank::3], rtol=0, atol=0)
        given = torch.zeros(2, 3)
        assert (draw(probabilities[rank::3], given).argmax(-1) == 0).all()
        noise.close()
    torch.manual_seed(9)
    torch.testing.assert_close(draw(probabilities), expected[0], rtol=0, atol=0)


def test_processes_that_see_other_data_than_the_first_are_stopped(car_racing_data, tmp_path, monkeypatch):
    trainer = make_trainer(car_racing_data, tmp_path / "run")
    monkeypatch.setattr(trainer.fabric, "broadcast", lambda value: "that of the first")
    with pytest.raises(TrainingError, match="other data than the first one"):
        trainer.run()
    assert not (tmp_path / "run").exists()


def test_nan_stops_training_and_keeps_the_last_good_checkpoint(car_racing_data, tmp_path):
    class Poisoned(WorldModelTrainer):
        def _update(self, wrapped, gradients, optimizer, micro_batches, update):
            if update == 4:
                micro_batches[0].rewards[:] = float("nan")
            return super()._update(wrapped, gradients, optimizer, micro_batches, update)

    trainer = make_trainer(car_racing_data, tmp_path / "run", kind=Poisoned)
    with pytest.raises(TrainingError, match=r"loss became nan at update 5.*last good checkpoint"):
        trainer.run()
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert 1 <= state["update"] <= 4
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_other_settings_or_data_are_refused(car_racing_data, tmp_path):
    train(car_racing_data, tmp_path / "run", "training.steps=2")
    with pytest.raises(TrainingError, match="other settings"):
        train(car_racing_data, tmp_path / "run", "training.steps=3")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(TrainingError, match="not empty"):
        train(car_racing_data, tmp_path / "full")
    assert [entry.name for entry in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_frames_of_another_size_are_refused_before_anything_is_written(car_racing_data, tmp_path):
    with pytest.raises(TrainingError, match=r"64x64.*32x32"):
        train(car_racing_data, tmp_path / "run", "model.frame_size=[32,32]")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"update": 1, "evil": Evil()}, tmp_path / "last.pt")
    with pytest.raises(TrainingError, match="cannot be read"):
        load_checkpoint(tmp_path / "last.pt")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_has_changed_or_is_of_another_run_is_refused(tmp_path, rng):
    file, run = tmp_path / "last.pt", {"seed": 3}
    save_checkpoint(file, {"update": 1, "model": {"weight": torch.ones(50)}}, run)
    assert load_checkpoint(file, run)["update"] == 1
    with pytest.raises(TrainingError, match="belongs to another run"):
        load_checkpoint(file, {"seed": 4})
    with pytest.raises(TrainingError, match="no checkpoint of this kind"):
        load_checkpoint(file, run, keys=("optimizer",))
    content = file.read_bytes()
    (tmp_path / "best.pt").write_bytes(content)
    with pytest.raises(TrainingError, match="belongs to another run"):
        load_checkpoint(tmp_path / "best.pt", run)
    for position in rng.integers(len(content), size=40):
        changed = bytearray(content)
        changed[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(changed)
        with pytest.raises(TrainingError, match="cannot be read"):
            load_checkpoint(file, run)
    torch.save({"update": 1}, tmp_path / "older.pt")
    with pytest.warns(UserWarning, match="written by an older wm_gym, without checksums"):
        assert load_checkpoint(tmp_path / "older.pt", run) == {"update": 1}


def test_warm_up_and_decay():
    config = load_config(
        "debug", ["training.warmup_steps=10", "training.steps=101", "training.final_learning_rate=0.1"]
    )
    base = config.training.learning_rate
    assert learning_rate_at(0, config) == pytest.approx(base / 10, rel=0.01)
    assert learning_rate_at(9, config) == pytest.approx(base, rel=0.05)
    assert learning_rate_at(100, config) == pytest.approx(base / 10)
