"""Threads beside other processes: fewer where those compute, and what a user has set stays."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wm_gym.shared_cores import threads_beside

SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "WM_GYM_SHARE_CORES")

BESIDE_OTHERS = """
import os, subprocess, sys, time
import torch
from wm_gym import shared_cores

shared_cores._INTERVAL_S = 0.2
torch.set_num_threads(4)
seconds, wish = float(sys.argv[1]), int(sys.argv[2])
others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
try:
    shared_cores.adapt_threads()
    if wish:
        torch.set_num_threads(wish)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and torch.get_num_threads() != 1:
        sum(range(10_000))
        shared_cores.adapt_threads()
finally:
    for other in others:
        other.kill()
print(torch.get_num_threads())
"""


def run(code: str, *arguments: str, **settings: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment | settings, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what their cores do")
def test_threads_give_way_to_other_processes_and_stay_where_a_user_set_them():
    assert run(BESIDE_OTHERS, "60", "0") == "1"
    assert run(BESIDE_OTHERS, "1", "3") == "3"
    for name, value in (("OMP_NUM_THREADS", "4"), ("WM_GYM_SHARE_CORES", "0")):
        assert run(BESIDE_OTHERS, "1", "0", **{name: value}) == "4"


@pytest.mark.parametrize(
    ("others", "cores", "most", "threads"),
    [(0, 2, 2, 2), (0.4, 2, 2, 2), (0.9, 2, 2, 1), (5, 2, 2, 1), (2.7, 8, 8, 5), (2.7, 8, 4, 4), (0.3, 2, 4, 4)],
)
def test_threads_beside_others(others, cores, most, threads):
    assert threads_beside(others, cores, most) == threads


@given(st.floats(0, 1e3), st.integers(1, 256), st.integers(1, 256))
def test_there_is_always_a_thread_and_never_more_than_wanted(others, cores, most):
    assert 1 <= threads_beside(others, cores, most) <= most
    assert threads_beside(others, cores, most) >= threads_beside(others + 1, cores, most)
