"""Each long command is killed before its file operations, one after another; the same command again ends well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Every so many operations; WM_GYM_EVERY_KILL=1 takes each one, which takes some ten minutes.
IS_EVERY = bool(os.environ.get("WM_GYM_EVERY_KILL"))
AGENT = [f"--set={change}" for change in ("num_envs=4", "horizon=8", "batch_size=16", "n_epochs=1", "net_arch=[8]")]
MODEL = [f"--set=training.{change}" for change in ("steps=2", "validate_every=2", "validation_fraction=0.3")]
ROUNDS = [f"--set-rounds={change}" for change in ("model_updates=2", "select_drives=0", "patience=5")]


def killed(root: Path, stride: int, *command: str) -> list[int]:
    """Run ``killing.py``; the numbers of the operations before which the command was killed."""
    root.mkdir()
    script = Path(__file__).with_name("killing.py")
    finished = subprocess.run(
        [sys.executable, str(script), str(root), str(1 if IS_EVERY else stride), *command],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout.splitlines()[-1])
    assert report["problems"] == []
    return report["kills"]


@pytest.fixture
def model_folder(tiny_model, tmp_path):
    return tiny_model.save_pretrained(tmp_path / "model")


def test_collect(tmp_path):
    kills = killed(tmp_path / "root", 1, "collect-toy", "{out}")
    assert kills.count(1) == 2  # in the main process and in a worker
    assert len(kills) >= 8


@pytest.mark.slow
def test_train_model(car_racing_data, tmp_path):
    command = ["train-model", "--data", str(car_racing_data), "--config", "debug", *MODEL, "--out", "{out}", "--quiet"]
    assert len(killed(tmp_path / "root", 4, *command)) >= 10


@pytest.mark.slow
def test_train_agent(model_folder, tmp_path):
    command = ["train-agent", "--model", str(model_folder), "--steps", "64", *AGENT, "--out", "{out}", "--quiet"]
    assert len(killed(tmp_path / "root", 3, *command)) >= 15


@pytest.mark.slow
def test_export(model_folder, tmp_path):
    command = ["export", "--model", str(model_folder), "--format", "torchscript", "--repeats", "1", "--quiet"]
    assert len(killed(tmp_path / "root", 12, *command, "--out", "{out}")) >= 2


@pytest.mark.slow
def test_rounds(car_racing_data, tmp_path):
    from wm_gym.cli.main import main

    model = str(tmp_path / "model")
    data = ["--data", str(car_racing_data)]
    assert main(["train-model", *data, "--config", "debug", *MODEL, "--out", model, "--quiet"]) == 0
    rounds = ["--rounds", "1", "--frames", "20", "--steps", "64", *ROUNDS, *AGENT]
    command = ["train-agent", "--model", model, *data, *rounds, "--out", "{out}", "--quiet"]
    assert len(killed(tmp_path / "root", 200, *command)) >= 2
