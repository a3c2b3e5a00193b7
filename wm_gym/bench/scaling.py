"""Training on several devices: updates under ``torchrun``, GPUs where there are any, else processes on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from wm_gym.bench.components import GUIDE_DEVICES, GUIDE_FRAMES
from wm_gym.bench.table import Table
from wm_gym.bench.timing import median_seconds
from wm_gym.config import load_config
from wm_gym.errors import TrainingError

_BATCH_OF_A_DEVICE = 8


def measure_scaling(config: str, seconds: float, *, device: str, devices: Sequence[int] = GUIDE_DEVICES) -> Table:
    """Clips a second in training with 1, 2, 4, 8 processes, each on a GPU of its own or on its share of the cores.

    Args:
        config: A preset, or the path of a YAML file.
        seconds: Time for each measurement.
        device: ``"cpu"`` or ``"cuda"``; with GPUs, numbers beyond those that are there are left out.
        devices: Numbers of processes.

    Raises:
        TrainingError: A process failed.
    """
    is_cuda = device.startswith("cuda")
    rows: list[dict[str, Any]] = []
    for number in devices:
        if is_cuda and number > torch.cuda.device_count():
            continue
        speed = _run(config, number, seconds, "cuda" if is_cuda else "cpu")
        first = rows[0]["sequences_per_s"] if rows else speed
        rows.append({"devices": number, "sequences_per_s": speed, "speedup": speed / first})
    kind = "GPUs" if is_cuda else f"processes on {os.cpu_count()} cores"
    return Table(
        "scaling",
        f"Training of {config} on several {kind}",
        (
            ("devices", kind, ","),
            ("sequences_per_s", "clips/s", ",.2f"),
            ("speedup", "speedup", ".2f"),
        ),
        rows,
        (f"{_BATCH_OF_A_DEVICE} clips of {GUIDE_FRAMES} frames for each process and update.",),
    )


def _run(config: str, number: int, seconds: float, device: str) -> float:
    """Clips a second of ``number`` processes that train together."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "speed.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
        command += ["-m", "wm_gym.bench.scaling", config, str(seconds), device, str(result)]
        environment = dict(os.environ)
        if device == "cpu":
            environment["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // number))
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not result.exists():
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise TrainingError(f"the benchmark with {number} processes failed ({reason}); try --device cpu.")
        return float(json.loads(result.read_text(encoding="utf-8"))["sequences_per_s"])


def _worker(config: str, seconds: float, device: str, result: Path) -> None:
    """One of the processes; the first one writes the result."""
    from wm_gym.bench.updates import SyntheticTraining

    number = int(os.environ["WORLD_SIZE"])
    training = SyntheticTraining(load_config(config, ("loss.perceptual=0",)), device, number)
    update = training.update_of(_BATCH_OF_A_DEVICE, GUIDE_FRAMES)
    # Processes wait for each other in every update, so all must make as many of them.
    latency = training.fabric.all_reduce(torch.tensor(median_seconds(update, 0.0, device)), reduce_op="mean")
    assert isinstance(latency, torch.Tensor)
    updates = max(3, int(seconds / float(latency)))
    training.fabric.barrier()
    seconds_an_update = median_seconds(lambda: [update() for _ in range(updates)], 0.0, device) / updates
    if training.fabric.is_global_zero:
        speed = number * _BATCH_OF_A_DEVICE / seconds_an_update
        result.write_text(json.dumps({"sequences_per_s": speed}), encoding="utf-8")


if __name__ == "__main__":
    _worker(sys.argv[1], float(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
