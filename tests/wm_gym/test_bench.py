import json
import os

import pytest
import torch

from wm_gym.bench import render_markdown
from wm_gym.bench.components import _Memory, _while_fast_enough, measure_components, measure_sequences
from wm_gym.bench.loader import measure_loader
from wm_gym.bench.peak import matmul_peak, measure_peak
from wm_gym.bench.scaling import measure_scaling
from wm_gym.bench.table import Table
from wm_gym.bench.timing import median_seconds, peak_memory_mb, steps_per_second
from wm_gym.config import load_config
from wm_gym.data_collection.datasets.training_data import open_training_data
from wm_gym.provenance import measured_on
from wm_gym.world_model import WorldModel


def test_the_median_is_over_calls_that_are_warm():
    calls = []

    def call():
        calls.append(None)

    assert 0 <= median_seconds(call, 0.0) < 1
    assert len(calls) >= 4  # at least one before, and three that count
    assert steps_per_second(lambda: 5, 0.01) > 5


def test_memory_is_that_of_this_process():
    before = peak_memory_mb("cpu")
    held = torch.ones(50_000_000)  # 200 MB, written to
    assert peak_memory_mb("cpu") >= before
    assert peak_memory_mb("cpu") > held.nbytes / 1e6


def test_components_count_what_the_model_has():
    table = measure_components(["debug"], 0.01, device="cpu", limit_s=5)
    assert [row["component"] for row in table.rows] == ["encoder", "dynamics", "decoder", "total"]
    model = WorldModel(load_config("debug").model, _simulator())
    assert table.rows[-1]["parameters"] == model.num_parameters()["total"]
    assert sum(row["parameters"] for row in table.rows[:-1]) == table.rows[-1]["parameters"]
    assert all(row["latency_ms"] > 0 and row["memory_mb"] >= 0 for row in table.rows)


@pytest.mark.slow
def test_sequences_are_left_out_where_a_call_would_take_too_long():
    table = measure_sequences(["debug"], 0.01, device="cpu", limit_s=60, batches=(1, 2))
    assert [(row["batch"], row["sequences_per_s"] > 0, row["updates_sequences_per_s"] > 0) for row in table.rows] == [
        (1, True, True),
        (2, True, True),
    ]
    short = measure_sequences(["debug"], 0.01, device="cpu", limit_s=1e-6, batches=(1, 2))
    assert "sequences_per_s" in short.rows[0]
    assert "sequences_per_s" not in short.rows[1]
    assert "| debug | 2 | - | - | - | - | - |" in render_markdown([short], {}, measured_on("cpu"))


def test_batches_that_do_not_fit_in_the_memory_are_left_out():
    def call_of(batch):
        def call():
            if batch > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        return call

    rows = [{"batch": 1}, {"batch": 2}, {"batch": 4}, {"batch": 8}]
    measured = _while_fast_enough(rows, call_of, 0.01, 60, _Memory("cpu"))
    assert [row["batch"] for row, *_ in measured] == [1, 2]


@pytest.mark.slow
def test_the_share_of_the_peak_is_of_a_peak_measured_beside_it():
    assert matmul_peak(torch.float32, "cpu", 0.1) > 1e8
    table = measure_peak(("debug",), [4], 0.05, device="cpu")
    fp32 = [row for row in table.rows if row["precision"] == "fp32"]
    assert len(fp32) == 2  # as it is, and accelerated
    assert all(0 < row["share"] < 1.5 for row in fp32)


@pytest.mark.slow
def test_scaling_trains_in_several_processes():
    table = measure_scaling("debug", 0.1, device="cpu", devices=(1, 2))
    assert [row["devices"] for row in table.rows] == [1, 2]
    assert all(row["sequences_per_s"] > 0 for row in table.rows)
    assert table.rows[0]["speedup"] == 1


def test_a_table_shows_its_numbers():
    table = Table(
        "t", "Title", (("a", "A", ""), ("b", "B", ",.1f")), [{"a": "x", "b": 1234.56}, {"a": "y"}], ("Note.",)
    )
    shown = render_markdown([table], {"seconds": 1}, measured_on("cpu"))
    assert "## Title" in shown
    assert "| x | 1,234.6 |\n| y | - |" in shown
    assert "Note." in shown
    assert f"cores {os.cpu_count()}" in shown
    assert "torch " + torch.__version__.split("+")[0] in shown
    json.dumps(table.rows)


@pytest.mark.parametrize("missing", ["environmen", "speed"])
def test_an_unknown_part_is_named(missing):
    from wm_gym.cli.main import main

    assert main(["bench", "--parts", missing, "--quiet"]) != 0


def _simulator():
    from wm_gym.actions import ActionFormat
    from wm_gym.simulator import SimulatorSpec

    return SimulatorSpec(id="x", frame_size=load_config("debug").model.frame_size, action=ActionFormat.driving())


def test_the_loader_is_measured_from_the_disk_to_the_gradient(car_racing_data):
    config = load_config("debug")
    data = open_training_data(car_racing_data, config.training.validation_fraction)
    table = measure_loader("debug", config, data.train, 0.05, device="cpu")
    assert [row["pass"] for row in table.rows] == ["first", "second"]
    for row in table.rows:
        assert row["frames_per_s"] == pytest.approx(row["clips_per_s"] * config.training.clip_length)
        assert 0 <= row["waiting"] < 1
