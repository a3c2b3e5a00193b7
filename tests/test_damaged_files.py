import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("damaged_files.py")
KINDS = 11


def test_no_damaged_file_crashes_hangs_fills_memory_or_is_accepted(tmp_path):
    # In a process of its own: of the other tests' memory nothing is counted.
    code = f"import runpy; runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    arguments = [str(tmp_path / "files"), "0", "10"]
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout)
    assert found["faults"] == []
    assert len(found["tries"]) == KINDS
    assert min(found["tries"].values()) > 20
