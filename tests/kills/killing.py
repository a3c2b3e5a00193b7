"""Runs a command again and again, each time killed one file operation later, and once more to its end; prints JSON.

Every rename and every file opened for writing below the root folder counts, in the process itself and, by
way of :data:`KILL_FILE`, in the workers of a collection. A kill is that of the system: nothing of Python runs any more.

Usage: ``python killing.py ROOT STRIDE COMMAND...`` where ``{out}`` in the command is the folder that it writes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "data_collection"))

import toy_simulator

KILL_VARIABLE = "WM_GYM_TEST_KILL"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def kill_at(root: str, operation: int, processes: list[int]) -> None:
    """Kill ``processes`` before this process's file operation of the given number below ``root``."""
    count = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal count
        if event == "open":
            path, _, flags = arguments
            if not (isinstance(flags, int) and flags & WRITING):
                return
        elif event == "os.rename":
            path = arguments[0]
        else:
            return
        if not isinstance(path, (str, bytes, os.PathLike)) or not os.fsdecode(path).startswith(root):
            return
        count += 1
        if count == operation:
            for process in processes:
                os.kill(process, signal.SIGKILL)

    sys.addaudithook(watch)


def make_behaviour(name, spec):
    """A behaviour of the toy; in a worker that is to be killed it takes the main process with it."""
    root, operation = os.environ.get(KILL_VARIABLE, "::0").rsplit("::", 1)
    if int(operation):
        kill_at(root, int(operation), [os.getppid(), os.getpid()])
    return toy_simulator.make_behaviour(name, spec)


def collect_toy(out: str) -> int:
    from wm_gym.data_collection.recording.collector import collect

    collect(out, "WmGymToyDot-v0", make_behaviour=make_behaviour, episodes=2, behaviour="wild", progress=False)
    return 0


def run(command: list[str], root: str, operation: int, in_worker: bool = False) -> int:
    """The exit code of a command in a process of its own; -9 where it was killed. ``operation`` 0 kills nothing."""
    process = os.fork()
    if process == 0:
        code = 99
        try:
            if in_worker:
                os.environ[KILL_VARIABLE] = f"{root}::{operation}"
            elif operation:
                kill_at(root, operation, [os.getpid()])
            if command[0] == "collect-toy":
                code = collect_toy(command[1])
            else:
                from wm_gym.cli.main import main

                code = main(command)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def listing(root: Path) -> list[str]:
    """All names below a folder; TensorBoard begins a file at every start, and names it by the time."""
    return sorted(
        str(path.relative_to(root)) for path in root.rglob("*") if not path.name.startswith("events.out.tfevents")
    )


def main() -> None:
    root, stride, command = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    import torch

    import wm_gym.agents.baselines.behaviour_cloning
    import wm_gym.agents.training.rounds
    import wm_gym.cli.main
    import wm_gym.export.folder  # noqa: F401

    torch.set_num_threads(1)
    out = root / "out"
    filled = [word.replace("{out}", str(out)) for word in command]
    report: dict[str, list] = {"kills": [], "problems": []}

    def clear() -> None:
        shutil.rmtree(root)
        root.mkdir()

    assert run(filled, str(root), 0) == 0
    expected = listing(root)
    for in_worker in (False, True) if command[0] == "collect-toy" else (False,):
        operation = 1
        while True:
            clear()
            code = run(filled, str(root), operation, in_worker)
            if code == 0:
                break
            again = run(filled, str(root), 0)
            found = listing(root)
            report["kills"].append(operation)
            if code != -signal.SIGKILL or again != 0 or found != expected:
                extra = sorted(set(found) ^ set(expected))
                report["problems"].append({"operation": operation, "killed": code, "again": again, "differs": extra})
            operation += stride
    print(json.dumps(report))


if __name__ == "__main__":
    import killing  # so that workers import the behaviour by a name that they know

    killing.main()
