"""The GPU benchmark, rehearsed without a GPU: its page names what did not run, and it takes up what is left."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


def rehearse(out, parts, minutes):
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--device", "cpu", "--quick"]
    command += ["--parts", parts, "--minutes", str(minutes)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.slow
def test_parts_run_and_what_is_left_is_taken_up(tmp_path):
    cut = rehearse(tmp_path, "components", 1e-3)
    assert cut.returncode == 1
    assert "Did not come to an end: ran past its" in (tmp_path / "gpu.md").read_text()
    done = rehearse(tmp_path, "base,components", 4)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "gpu.md").read_text()
    assert "| debug | encoder |" in page
    assert "dB) | 1 step" in page
    assert "Did not come to an end" not in page
    assert page.count("Not run.") == 8
    assert "base" not in rehearse(tmp_path, "base,components", 4).stdout.replace(str(tmp_path), "")
