"""Trackers beside metrics.jsonl, with the real packages of those that are installed and without a network."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from wm_gym.agents.baselines.behaviour_cloning import clone_behaviour
from wm_gym.agents.demo import DemoSettings, run_demo
from wm_gym.agents.policies.config import make_agent_config
from wm_gym.agents.training.dream_training import train_agent
from wm_gym.cli import options
from wm_gym.cli.main import main
from wm_gym.errors import ConfigError, TrainingError
from wm_gym.training.log import MetricsLog, read_metrics
from wm_gym.training.trackers import TRACKERS


class Settings(BaseModel):
    learning_rate: float = 0.5
    sizes: dict[str, tuple[int, ...]] = {"net": (8, 8)}


@pytest.fixture
def wandb(monkeypatch):
    package = pytest.importorskip("wandb", reason="needs the extra `wandb`")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    yield package
    package.teardown()  # it keeps its settings


@pytest.fixture
def mlflow(monkeypatch):
    package = pytest.importorskip("mlflow", reason="needs the extra `mlflow`")
    pytest.importorskip("alembic", reason="needs the extra `mlflow`")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return package


@pytest.fixture
def trackio(monkeypatch, tmp_path_factory):
    if "trackio" not in sys.modules:  # it looks once where its folder is
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
    return pytest.importorskip("trackio", reason="needs the extra `trackio`")


def stopped_and_resumed(folder: Path, track: str) -> None:
    """A run that is stopped twice behind its checkpoint, each time at step 2, and whose scores come late."""
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.raises(KeyboardInterrupt), MetricsLog(folder, 0, Settings(), step_key="steps", track=track) as log:
        for step in range(1, 5):
            log.write("train", step, {"loss": 1 / step, "part": {"a": step}, "note": "text"})
        log.write("validation", 2, {"score": 7})
        raise KeyboardInterrupt
    for last in (3, 6):  # the second one stops before it has come to where the first one was
        with MetricsLog(folder, 3, Settings(), step_key="steps", track=track) as log:
            for step in range(3, last + 1):
                log.write("train", step, {"loss": 1 / step, "part": {"a": step}})
    rows = read_metrics(folder / "metrics.jsonl")
    assert [(row["kind"], row["steps"]) for row in rows] == [
        ("train", 1),
        ("train", 2),
        ("validation", 2),
        *(("train", step) for step in range(3, 7)),
    ]


def records_of(file: Path):
    """The records of a file of Weights & Biases: a log in LevelDB's format behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, position, parts = file.read_bytes(), 7, []
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:  # the rest of a block is empty
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        parts.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            parts.clear()
            yield record


def test_wandb_gets_every_step_once_in_one_run(wandb, tmp_path):
    stopped_and_resumed(tmp_path / "runs" / "a", "wandb")
    files = sorted((tmp_path / "runs" / "a" / "wandb").glob("offline-run-*/*.wandb"))
    records = [record for file in files for record in records_of(file)]
    runs = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    known = json.loads((tmp_path / "runs" / "a" / "tracker.json").read_text())["wandb"]
    assert {(run.run_id, run.project) for run in runs} == {(known["id"], "wm_gym")}
    assert runs[0].display_name == str(tmp_path / "runs" / "a")
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert (config["learning_rate"], config["sizes"]) == (0.5, {"net": [8, 8]})
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert [row["steps"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [(row["steps"], row["validation/score"]) for row in rows if "validation/score" in row] == [(2, 7)]
    assert rows[0]["train/part/a"] == 1
    axes = {record.metric.glob_name or record.metric.name: record.metric.step_metric for record in records}
    assert axes["*"] == "steps"
    ends = [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"]
    assert sorted(ends) == [0, 0, 1]


def test_wandb_without_a_login_is_one_sentence(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    with pytest.raises(TrainingError, match=r"Weights & Biases does not take the run \(.*WANDB_MODE=offline"):
        MetricsLog(tmp_path, 0, Settings(), track="wandb")
    assert not (tmp_path / "metrics.jsonl").exists()


def test_trackio_gets_every_step_once_in_one_run(trackio, tmp_path, capsys):
    stopped_and_resumed(tmp_path / "a", "trackio")
    known = json.loads((tmp_path / "a" / "tracker.json").read_text())["trackio"]
    assert known["id"].startswith("a-")
    (run,) = [run for run in trackio.Api().runs("wm_gym") if run.name == known["id"]]
    assert run.config["learning_rate"] == 0.5
    rows = trackio.SQLiteStorage.get_logs("wm_gym", known["id"])
    assert [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row] == [
        (step, 1 / step) for step in range(1, 7)
    ]
    assert [(row["step"], row["validation/score"]) for row in rows if "validation/score" in row] == [(2, 7)]
    assert capsys.readouterr().out == ""


def test_a_trackio_that_fails_is_one_sentence(trackio, tmp_path, monkeypatch):
    monkeypatch.setattr(trackio, "init", lambda **_: 1 / 0)
    with pytest.raises(TrainingError, match=r"Trackio does not take the run \(division by zero\); check TRACKIO_DIR"):
        MetricsLog(tmp_path, 0, Settings(), track="trackio")


def test_mlflow_gets_every_step_once_in_one_run(mlflow, tmp_path):
    stopped_and_resumed(tmp_path / "a", "mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'a' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("wm_gym")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == json.loads((tmp_path / "a" / "tracker.json").read_text())["mlflow"]["id"]
    assert (run.info.run_name, run.info.status) == (str(tmp_path / "a"), "FINISHED")
    assert run.data.params == {"learning_rate": "0.5", "sizes.net": "[8, 8]"}

    def history(name: str) -> list[tuple[int, float]]:
        return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]

    assert history("train/loss") == [(step, 1 / step) for step in range(1, 7)]
    assert history("train/part/a") == [(step, step) for step in range(1, 7)]
    assert history("validation/score") == [(2, 7)]


def test_a_server_of_mlflow_that_fails_does_not_end_a_training(mlflow, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise mlflow.exceptions.MlflowException("gone")

    log = MetricsLog(tmp_path, 0, Settings(), track="mlflow")
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", fail)
    with pytest.warns(UserWarning, match=r"metrics\.jsonl goes on: gone"):
        log.write("train", 1, {"loss": 1.0})
        log.close()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_a_server_of_mlflow_that_is_not_there_is_one_sentence(mlflow, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrainingError, match=r"MLflow does not take the run .* says http://127\.0\.0\.1:9\."):
        MetricsLog(tmp_path, 0, Settings(), track="mlflow")


@pytest.mark.parametrize("track", ["wandb", "trackio", "mlflow"])
def test_a_training_is_tracked_with_its_resolved_settings(request, track, tiny_model, tmp_path):
    request.getfixturevalue(track)
    config = make_agent_config({"steps": 64, "num_envs": 4, "horizon": 8, "net_arch": (8,)})
    summary = train_agent(tiny_model, out=tmp_path / "run", config=config, progress=False, track=track)
    assert len(read_metrics(summary.path / "metrics.jsonl")) == 2
    assert json.loads((summary.path / "tracker.json").read_text())[track]["logged"] == {}
    assert not (summary.path / "tensorboard").exists()


def test_the_command_line_offers_every_tracker():
    assert options.TRACKERS == TRACKERS


def test_tensorboard_is_the_default(tmp_path):
    with MetricsLog(tmp_path, 0, Settings()) as log:
        log.write("train", 1, {"loss": 1.0})
    assert list((tmp_path / "tensorboard").iterdir())
    assert not (tmp_path / "tracker.json").exists()


@pytest.mark.parametrize("name", TRACKERS[1:])
def test_a_package_that_is_not_installed_is_one_sentence_before_anything_is_written(
    name, tiny_model, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not there
    out = tmp_path / "out"
    said = rf"the tracker {name} needs the package {name}; install it with `pip install 'wm_gym\[{name}\]'`\."
    with pytest.raises(ConfigError, match=said):
        train_agent(tiny_model, out=out, progress=False, track=name)
    with pytest.raises(ConfigError, match=said):
        clone_behaviour(tmp_path / "data", tiny_model, out=out, track=name)
    with pytest.raises(ConfigError, match=said):
        run_demo(out, DemoSettings(), track=name)
    for command in (
        ["train-model", "--data", "data"],
        ["train-agent", "--model", "bundled"],
        ["train-agent", "--in", "simulator", "--env", "car-racing"],
        ["train-agent", "--model", "bundled", "--data", "data", "--rounds", "1"],
        ["demo"],
    ):
        assert main([*command, "--out", str(out), "--track", name]) == 2
        assert f"wm_gym[{name}]" in capsys.readouterr().err
    assert not out.exists()


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no tracker 'wandd' \(did you mean 'wandb'\?\)"):
        MetricsLog(tmp_path, 0, Settings(), track="wandd")


def test_a_damaged_state_is_refused(tmp_path, wandb):
    (tmp_path / "tracker.json").write_text('{"wandb": {"id": 3}}')
    with pytest.raises(TrainingError, match=r"tracker\.json' is damaged.*tracked as a new one"):
        MetricsLog(tmp_path, 0, Settings(), track="wandb")
