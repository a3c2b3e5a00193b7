"""Large blocks that were freed are used again without the system's help."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource, sys
import torch
from wm_gym.training.freed_memory import keep_freed_memory
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages: a fault is a page of 4 KiB
keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.zeros(5_000_000) for _ in range(6)]  # 120 MB, 29,297 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(6):  # what other blocks have left of the heap is used up after a few rounds
    faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
@pytest.mark.parametrize(
    ("variables", "is_kept"),
    # With a threshold of the user's glibc maps each large block and hands it back, whatever else lies in its heap.
    [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "1000000"}, False)],
)
def test_freed_blocks_are_kept_unless_the_user_has_set_up_the_allocator(variables, is_kept):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (int(found.stdout) < 5_000) == is_kept
