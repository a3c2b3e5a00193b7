"""The tables of seeds in the documents are those of the files that hold every return."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCORES = ROOT / "docs" / "scores"


def benchmark(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", sorted(SCORES.glob("equal_frames*.json")), ids=lambda file: file.stem)
def test_tables_of_equal_frames_are_those_of_their_returns(file):
    equal_frames = benchmark("equal_frames")
    cells = json.loads(file.read_text())["cells"]
    for cell in cells:
        assert cell["mean_return"] == pytest.approx(sum(cell["returns"]) / len(cell["returns"]))
    page = (ROOT / "docs" / "experiments.md").read_text()
    assert equal_frames.render(cells) in page
    assert equal_frames.render_seeds(cells) in page


@pytest.mark.parametrize("file", sorted(SCORES.glob("nocrash*.json")), ids=lambda file: file.stem)
def test_tables_of_nocrash_are_those_of_their_routes(file):
    page = (ROOT / "docs" / "experiments.md").read_text()
    assert benchmark("nocrash_table").render(json.loads(file.read_text())["cells"]) in page
