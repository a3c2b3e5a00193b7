"""A new user's way, from the wheel to an agent on the Hub, in an empty folder and a virtual environment of its own.

From the root of a checkout::

    python tools/new_user.py                    # builds the wheel from this checkout
    python tools/new_user.py --wheel dist/wm_gym-1.0.0-py3-none-any.whl

The Hub is a small one on this machine (``tests/hub_server.py``); packages come from the index that pip is set to.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import shlex
import shutil
import subprocess
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DREAM_GOAL_MIN = 5
AGENT_GOAL_MIN = 30
REPOSITORY = "new-user/first-agent"
PICTURE = "dream.png"
_NOT_OF_THE_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "runs", "site", "shared", "*.egg-info")
_WITHOUT = ("PYTHONPATH", "PYTHONHOME", "HF_", "WM_GYM_")  # a new user has set nothing
_SHOWN_LINES = 15

DREAM = f'''\
import gymnasium as gym
import wm_gym
from PIL import Image

env = gym.make("DreamDriving-v0", render_mode="rgb_array")
env.reset(seed=0)
for _ in range(100):
    _, _, terminated, truncated, _ = env.step(env.action_space.sample())
    if terminated or truncated:
        env.reset()
Image.fromarray(env.render()).save("{PICTURE}")
print(wm_gym.__file__)
'''


def commands(steps: int) -> dict[str, str]:
    """What a user types after the first dream, by what it does.

    Args:
        steps: Dream steps that the agent trains for.
    """
    return {
        f"train PPO for {steps:,} steps in the bundled dream": (
            f"wm-gym train-agent --model bundled --algo ppo --steps {steps} --out agent --quiet"
        ),
        "drive it twice in the simulator": "wm-gym evaluate --agent agent --episodes 2 --json agent.json --quiet",
        "push it": f"wm-gym push agent {REPOSITORY} --evaluation agent.json",
        "load it by its name and drive once more": (
            f"wm-gym evaluate --agent {REPOSITORY} --episodes 1 --json again.json --quiet"
        ),
    }


def step(what: str, command: Sequence[str | Path], folder: Path, env: Mapping[str, str]) -> str:
    """Run one command, and print a line with its time.

    Args:
        what: What it does, for the line.
        command: The program and its arguments.
        folder: Where it runs.
        env: Its environment.

    Returns:
        What it printed.

    Raises:
        SystemExit: It failed; the message ends with one sentence that says so.
    """
    start = time.monotonic()
    done = subprocess.run(
        list(command),
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-_SHOWN_LINES:])
        shown = shlex.join(map(str, command))
        raise SystemExit(
            f"{last}\nnew_user: the step {what!r} failed: `{shown}` ended with exit code {done.returncode} and the "
            "lines above."
        )
    print(f"{time.monotonic() - start:7.1f} s  {what}", flush=True)
    return done.stdout


def user_environment(folder: Path, programs: Path) -> dict[str, str]:
    """The variables of this process as a new user has them: the environment's programs first, caches in the folder."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(_WITHOUT)}
    env["PATH"] = os.pathsep.join((str(programs), env.get("PATH", os.defpath)))
    return {**env, "HF_HOME": str(folder / "hub_cache"), "WM_GYM_CACHE": str(folder / "cache")}


def check_first_dream(printed: str, environment: Path, folder: Path) -> None:
    """See that the installed package dreamt, and that the picture is one.

    Raises:
        SystemExit: It was another copy of the package, or there is no picture.
    """
    imported = Path(printed.strip().splitlines()[-1])
    if environment.resolve() not in imported.resolve().parents:
        raise SystemExit(f"new_user: the package was imported from {imported}, not from the wheel.")
    picture = folder / PICTURE
    if not picture.is_file() or not picture.read_bytes().startswith(b"\x89PNG\r\n"):
        raise SystemExit(f"new_user: the dream left no PNG at {picture}.")


def mean_return(file: Path) -> float:
    """The mean return that ``wm-gym evaluate --json`` wrote."""
    return float(json.loads(file.read_text(encoding="utf-8"))["mean_return"])


def build_wheel(python: Path, folder: Path, env: Mapping[str, str]) -> Path:
    """A wheel of a copy of this checkout, so that nothing of an earlier build gets into it, and nothing stays here."""
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=_NOT_OF_THE_SOURCE)
    target = folder / "dist"
    build = [str(python), "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(target), str(source)]
    step("build the wheel", build, folder, env)
    (wheel,) = target.glob("*.whl")
    return wheel


def take_the_way(folder: Path, wheel: Path | None, steps: int) -> None:
    """All steps, in an empty folder.

    Raises:
        SystemExit: One failed.
    """
    environment, work = folder / "venv", folder / "work"
    work.mkdir()
    programs = environment / ("Scripts" if os.name == "nt" else "bin")
    env, python = user_environment(folder, programs), programs / "python"
    venv.create(environment, with_pip=True)
    wheel = build_wheel(python, folder, env) if wheel is None else wheel

    start = time.monotonic()

    def so_far(reached: str, goal_min: int) -> None:
        minutes = (time.monotonic() - start) / 60
        print(f"{minutes:7.1f} min until {reached} (goal: {goal_min}{'' if minutes <= goal_min else ', missed'})")

    step("install it with pip", [python, "-m", "pip", "install", "--quiet", f"{wheel}[hub]"], work, env)
    (work / "dream.py").write_text(DREAM, encoding="utf-8")
    printed = step("100 steps of a dream, and a picture of it", [python, "dream.py"], work, env)
    check_first_dream(printed, environment, work)
    so_far("the first dream", DREAM_GOAL_MIN)

    server = runpy.run_path(str(ROOT / "tests" / "hub_server.py"))
    with server["HubServer"]() as hub:
        env |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": server["TOKEN"]}
        for what, command in commands(steps).items():
            program, *arguments = shlex.split(command)
            # By its path, since Windows looks for programs in its own PATH, not in that of `env`.
            step(what, [shutil.which(program, path=env["PATH"]) or program, *arguments], work, env)
    print(f"returns: {mean_return(work / 'agent.json'):.1f} over 2 drives, {mean_return(work / 'again.json'):.1f} in 1")
    so_far("an own agent on the Hub", AGENT_GOAL_MIN)


def main(arguments: Sequence[str] | None = None) -> None:
    """Take a new user's way in a temporary folder, which is removed whatever happens."""
    parser = argparse.ArgumentParser(description="Take a new user's way, from the wheel to an agent on the Hub.")
    parser.add_argument("--wheel", type=Path, help="the wheel to install (default: build one)")
    parser.add_argument("--steps", type=int, default=100_000, help="dream steps of the agent (default: 100,000)")
    options = parser.parse_args(arguments)
    wheel = None if options.wheel is None else options.wheel.resolve()
    if wheel is not None and not wheel.is_file():
        raise SystemExit(f"new_user: there is no wheel {str(options.wheel)!r}; build one, or leave --wheel out.")
    with tempfile.TemporaryDirectory(prefix="new_user-") as folder:
        take_the_way(Path(folder).resolve(), wheel, options.steps)


if __name__ == "__main__":
    main()
