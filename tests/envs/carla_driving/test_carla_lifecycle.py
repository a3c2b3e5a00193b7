"""Whatever ends a process or an episode: no actor stays on the server, its settings are put back, nothing grows."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

DRIVE = np.array([0.0, 0.6, 0.0, 1.0], np.float32)

SCRIPT = """
import signal, sys, gymnasium as gym, numpy as np, wm_gym
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores Ctrl-C
env = gym.make("CarlaDriving-v0", host="127.0.0.1", port=int(sys.argv[1]), frame_size=32, timeout_s=30.0,
               traffic={"vehicles": 3}, disable_env_checker=True)
print("ready", flush=True)
if sys.argv[2] == "raise":
    env.reset(seed=1)
    env.step(np.zeros(5, np.float32))
while True:
    env.reset()
    for _ in range(3):
        env.step(np.array([0, 0.5, 0, 1], np.float32))
"""


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def run_script(server, what: str, *, own_group: bool = False) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(server.port), what],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=own_group,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["INT", "TERM", "KILL"])
def test_a_signal_at_any_moment_leaves_nothing(server, number):
    # From before the connection, over spawning, to driving and between episodes.
    for delay_s in (0.1, 0.9, 1.3, 1.7, 2.2):
        process = run_script(server, "drive")
        time.sleep(delay_s)
        process.send_signal(number)
        assert process.wait(timeout=180) != 0
        assert server.wait_until_clean(), (delay_s, server.spawned(), server.summary()["synchronous"])


def test_ctrl_c_to_the_whole_terminal_leaves_nothing(server):
    """A terminal sends the signal to every process of the group."""
    process = run_script(server, "drive", own_group=True)
    assert server.wait_until_in_use()
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=180)
    assert server.wait_until_clean()


def test_an_exception_in_the_users_program_leaves_nothing(server):
    process = run_script(server, "raise")
    assert process.wait(timeout=180) == 1
    assert server.wait_until_clean()


LOST = """
import sys, gymnasium as gym, numpy as np, wm_gym
env = gym.make("CarlaDriving-v0", host="127.0.0.1", port=int(sys.argv[1]), frame_size=32, timeout_s=3.0,
               traffic={"vehicles": 2}, disable_env_checker=True)
for _ in range(20):
    try:
        env.reset(seed=1)
        break
    except wm_gym.errors.SimulatorLostError:  # so short a time may not do on a busy machine
        pass
print("ready", flush=True)
sys.stdin.readline()
try:
    env.step(np.array([0, 0.5, 0, 1], np.float32))
except wm_gym.errors.SimulatorLostError:
    print("lost", flush=True)
sys.stdin.readline()
"""


def test_a_server_that_was_overloaded_is_cleaned_up_at_the_end_of_the_program(server):
    process = subprocess.Popen(
        [sys.executable, "-c", LOST, str(server.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    server.faults(stall_at_frame=0)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "lost\n"
    server.faults(stall_at_frame=-1)
    assert server.spawned()
    process.stdin.close()
    process.wait(timeout=180)
    assert server.wait_until_clean()


def test_close_destroys_the_actors_and_puts_the_settings_back(server, make_env):
    before = server.summary()
    env = make_env(server, traffic={"vehicles": 4, "walkers": 2})
    env.reset(seed=1)
    env.step(DRIVE)
    assert server.summary()["synchronous"]
    assert len(server.spawned()) > 5
    env.close()
    after = server.summary()
    assert [actor[0] for actor in after["actors"]] == [actor[0] for actor in before["actors"]]
    assert (after["synchronous"], after["fixed_delta"]) == (before["synchronous"], before["fixed_delta"])
    env.close()  # a second time does nothing
    env.reset(seed=2)  # and the environment can go on
    env.close()
    assert server.wait_until_clean()


@pytest.mark.slow
def test_five_hundred_resets_leave_the_actors_and_the_memory_as_they_were(server, make_env):
    env = make_env(server)
    env.reset(seed=0)
    actors = len(server.summary()["actors"])
    memory = []
    for seed in range(500):
        env.reset(seed=seed)
        env.step(DRIVE)
        if seed in (99, 499):
            gc.collect()
            client = env.unwrapped._client._process.pid
            memory.append({"client": rss_mib(client), "environment": rss_mib(os.getpid())})
    assert len(server.summary()["actors"]) == actors
    for name in ("client", "environment"):
        assert memory[1][name] - memory[0][name] < 8.0, memory
    env.close()
    assert server.wait_until_clean()
