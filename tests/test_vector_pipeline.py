"""A simulator that tells numbers beside its picture, through every command and every carrier; on the real CarRacing."""

import csv
import shutil

import cv2
import numpy as np
import pytest
import torch

from wm_gym.agents import Driver
from wm_gym.agents.baselines.simulator_training import PixelAgentConfig, train_in_simulator
from wm_gym.agents.bundles.export import agent_parts
from wm_gym.agents.bundles.folder import load_agent
from wm_gym.cli.main import main
from wm_gym.data_collection import Dataset, DownloadCache, import_folder, push
from wm_gym.envs import make_simulator
from wm_gym.envs.simulators import describe_simulator, make_simulator_from_spec
from wm_gym.errors import ConfigError, DatasetError, SimulatorError
from wm_gym.export.folder import ExportSettings, export_parts
from wm_gym.export.parts import model_parts
from wm_gym.world_model import WorldModel

NAMES = ["speed", "yaw_rate", "steering"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A dataset, a world model of both phases with mirrored clips, an agent and a clone, made by the commands."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("vector")
    data, model = str(folder / "data"), str(folder / "model")
    collect = ["collect", "--env", "car-racing", "--env-set", "vector=[speed, yaw_rate, steering]", "--out", data]
    collect += ["--behaviour", "noisy:0.6,random:0.4", "--episodes", "4", "--max-episode-steps", "30", "--quiet"]
    assert main(collect) == 0
    train = ["train-model", "--data", data, "--config", "debug", "--out", model, "--device", "cpu", "--quiet"]
    for change in ("training.latent.steps=6", "training.latent.clip_length=8", "training.mirror_share=0.5"):
        train += ["--set", change]
    assert main(train) == 0
    dream = ["train-agent", "--model", model, "--steps", "320", "--out", str(folder / "agent"), "--quiet"]
    assert main([*dream, "--set", "num_envs=16", "--set", "horizon=10", "--select-drives", "1"]) == 0
    clone = ["train-agent", "--in", "data", "--data", data, "--model", model, "--steps", "50", "--quiet"]
    assert main([*clone, "--out", str(folder / "clone")]) == 0
    return folder


def test_what_is_recorded_is_what_the_simulator_told(run):
    dataset = Dataset.open(run / "data")
    assert [field.name for field in dataset.metadata.simulator.vector] == NAMES
    episode = dataset.read_episode(1)
    env = make_simulator_from_spec(dataset.metadata.simulator)
    observed, info = env.reset(seed=episode.seed)
    assert env.observation_space.contains(observed)
    seen = [(observed, info)]
    for action in episode.actions:
        observed, *_, info = env.step(action)
        seen.append((observed, info))
    env.close()
    assert episode.vectors.shape == (len(episode) + 1, 3)
    for t, (observed, info) in enumerate(seen):
        np.testing.assert_array_equal(episode.vectors[t], observed["vector"])
        np.testing.assert_array_equal(episode.frames[t], observed["image"])
        assert observed["vector"][0] == pytest.approx(info["speed"], abs=1e-4)
    # Steering to the right turns the wheels and the car to the right: both numbers grow.
    steered = episode.actions[5:, 0]
    assert np.corrcoef(steered, episode.vectors[6:, 2])[0, 1] > 0.3


def test_clips_carry_the_vectors_of_their_frames(run):
    dataset = Dataset.open(run / "data", cache_bytes=0)
    clip = dataset.read_clip(2, 4, 7)
    np.testing.assert_array_equal(clip.vectors[0], dataset.read_episode(2).vectors[4:11])
    cached = Dataset.open(run / "data").read_clip(2, 4, 7)
    for ours, theirs in zip(clip[:5], cached[:5], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_dataset_without_vectors_is_written_as_before(car_racing_data, run):
    plain, other = Dataset.open(car_racing_data), Dataset.open(run / "data")
    assert b'"version":"1"' in plain.episodes[0].path.read_bytes()[:2000]
    assert b'"version":"2"' in other.episodes[0].path.read_bytes()[:2000]
    assert plain.read_episode(0).vectors.shape == (plain.episodes[0].length + 1, 0)
    assert "vector" not in (car_racing_data / "dataset.json").read_text()


def test_the_commands_go_on_from_there(run, capsys, tmp_path):
    assert main(["dataset", "verify", str(run / "data")]) == 0
    for agent in ("agent", "clone"):
        evaluate = ["evaluate", "--agent", str(run / agent), "--episodes", "1", "--max-episode-steps", "25", "--quiet"]
        assert main([*evaluate, "--json", str(tmp_path / f"{agent}.json")]) == 0
    collect = ["collect", "--env", "car-racing", "--env-set", "vector=[speed]", "--out", str(run / "data")]
    assert main([*collect, "--episodes", "5"]) == 2
    assert "vector" in capsys.readouterr().err
    metrics = WorldModel.from_pretrained(run / "model").metrics
    assert set(metrics["vector"]) == set(NAMES)
    capsys.readouterr()


def test_a_driver_takes_what_its_simulator_gives(run):
    driver = Driver.load(run / "agent")
    env = make_simulator("car-racing", vector=NAMES)
    observed, _ = env.reset(seed=3)
    driver.reset()
    action = driver.act(observed)
    assert env.action_space.contains(action)
    driver.reset()
    other = driver.act({**observed, "vector": observed["vector"] + np.float32(3)})
    assert not np.array_equal(action, other)
    with pytest.raises(SimulatorError, match=r"takes 3 finite numbers .*\(speed, yaw_rate, steering\), but a vector"):
        driver.act(observed["image"])
    with pytest.raises(SimulatorError, match="gives these numbers beside its frames: none"):
        driver.check_simulator(describe_simulator(make_simulator("car-racing")))
    with pytest.raises(ConfigError, match="names a field twice"):
        make_simulator("car-racing", vector=["speed", "speed"])
    with pytest.raises(ConfigError, match=r"knows no 'sped' \(did you mean 'speed'\?\)"):
        make_simulator("car-racing", vector=["sped"])


def test_ppo_from_frames_and_vector_on_the_simulator(tmp_path):
    small = PixelAgentConfig(steps=32, num_envs=2, n_steps=8, batch_size=8, n_epochs=1, features_dim=16, net_arch=(8,))
    simulator = {"max_frames": 26, "vector": ["speed"]}
    trained = train_in_simulator(
        "car-racing", out=tmp_path / "run", config=small, simulator_kwargs=simulator, progress=False, device="cpu"
    )
    agent = load_agent(trained.path)
    assert type(agent.policy).__name__ == "MultiInputActorCriticPolicy"
    env = make_simulator("car-racing", **simulator)
    observed, _ = env.reset(seed=1)
    driver = Driver.load(trained.path)
    driver.reset()
    assert env.action_space.contains(driver.act(observed))


@pytest.mark.slow
@pytest.mark.parametrize("back_end", ["torchscript", "onnx"])
def test_exports_have_a_second_input(run, tmp_path, back_end):
    agent = load_agent(run / "agent")
    parts = (*agent_parts(agent), *model_parts(agent.model))
    settings = ExportSettings(formats=(back_end,), repeats=1)
    result = export_parts(parts, agent.model, tmp_path / "export", settings, progress=False)
    files = {file["part"]: file for file in result.manifest["files"]}
    assert set(files) == {"driver", "encoder", "observe", "step", "decoder", "vector_decoder", "policy"}
    assert all(file["check"]["max_difference"] < 1e-3 for file in files.values())
    named = {part.name: [spec.name for spec in part.inputs] for part in parts}
    assert named["driver"][-1] == named["encoder"][-1] == "vector"


def test_minari_and_back(run, tmp_path, monkeypatch):
    pytest.importorskip("minari")
    from wm_gym.data_collection import export_minari, import_minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    dataset = Dataset.open(run / "data")
    export_minari(dataset, "car-racing/vector-v0")
    again = import_minari("car-racing/vector-v0", tmp_path / "back")
    assert again.metadata.simulator == dataset.metadata.simulator
    np.testing.assert_array_equal(again.read_episode(0).vectors, dataset.read_episode(0).vectors)


def test_object_storage(run, tmp_path):
    url = f"file://{tmp_path}/bucket/car"
    shutil.rmtree(tmp_path / "bucket", ignore_errors=True)
    push(run / "data", url)
    remote = Dataset.open(url, downloads=DownloadCache(tmp_path / "cache"))
    np.testing.assert_array_equal(remote.read_episode(3).vectors, Dataset.open(run / "data").read_episode(3).vectors)


def write_recording(folder, vectors):
    (folder / "frames").mkdir(parents=True)
    for t in range(4):
        cv2.imwrite(str(folder / "frames" / f"{t}.png"), np.full((16, 16, 3), 10 * t, np.uint8))
    with (folder / "actions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["steering", "acceleration"], *[[0.1 * t, 0.5] for t in range(3)]])
    with (folder / "vectors.csv").open("w", newline="") as file:
        csv.writer(file).writerows(vectors)


def test_own_recordings_may_have_vectors(tmp_path):
    rows = [["speed", "gps_x"], *[[t, -2.0 * t] for t in range(4)]]
    write_recording(tmp_path / "own" / "first", rows)
    dataset = import_folder(tmp_path / "own", tmp_path / "data")
    np.testing.assert_array_equal(dataset.read_episode(0).vectors, [[0, 0], [1, -2], [2, -4], [3, -6]])
    field = dataset.metadata.simulator.vector[1]
    assert (field.name, field.low, field.high) == ("gps_x", -6.0, 0.0)
    write_recording(tmp_path / "short" / "first", rows[:-1])
    with pytest.raises(DatasetError, match="has 3 rows, but there are 4 frames"):
        import_folder(tmp_path / "short", tmp_path / "other")
    assert not (tmp_path / "other").exists()
