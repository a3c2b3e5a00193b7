"""The linear probe of ``benchmarks/probe.py`` on features that are made up."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from wm_gym.vector import VectorField

probe = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "probe.py")))


def test_a_linear_map_is_read_out_and_nothing_where_there_is_none(rng):
    features = rng.normal(size=(2_000, 12))
    features[:, 3] = 1.0  # one that never varies
    field = VectorField(name="speed", unit="m/s", low=-10, high=10)
    speed = features @ rng.normal(size=12) + 4.0
    fitted = probe.read_out(features[:1_500], speed[:1_500, None], features[1_500:])
    assert np.abs(fitted[:, 0] - speed[1_500:]).max() < 0.05
    noise = rng.normal(size=2_000)
    unknown = probe.read_out(features[:1_500], noise[:1_500, None], features[1_500:])
    assert np.abs(unknown[:, 0] - noise[1_500:]).mean() > 0.7
    assert probe.describe(field, fitted, speed[1_500:]).startswith("speed: mean error 0.0")


def test_classes_are_counted(rng):
    field = VectorField.of_classes("light", ("none", "red", "green"))
    true = rng.integers(0, 2, 400)
    scores = np.eye(3)[np.where(np.arange(400) < 100, 2, true)]
    told = probe.describe(field, scores, true)
    assert told.startswith("light: 0.750 of 400 right (none 0.7")
    assert "green" not in told
