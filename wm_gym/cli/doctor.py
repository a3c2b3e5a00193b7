"""``wm-gym doctor``: what works on this machine, and how to mend what does not."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

from wm_gym._version import __version__
from wm_gym.cli.options import BEGINS_ANEW, Subparsers, add_command
from wm_gym.errors import WMGymError
from wm_gym.provenance import version_of


class Check(NamedTuple):
    """One line of the report.

    Attributes:
        name: What was looked at.
        is_ok: Whether it works.
        is_required: Whether wm_gym is of no use without it.
        detail: What was found, or what to do.
    """

    name: str
    is_ok: bool
    is_required: bool
    detail: str


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers, "doctor", "Tell what works on this machine.", "wm-gym doctor --carla localhost:2000"
    )
    parser.add_argument("--carla", metavar="HOST:PORT", help="look at this CARLA server too, and drive on it")
    parser.set_defaults(run=run, when_stopped=BEGINS_ANEW)


def run(arguments: argparse.Namespace) -> int:
    """Print the report; the exit code is 1 where something required is missing."""
    print(f"wm_gym {__version__}, Python {platform.python_version()}, {platform.platform()}, {os.cpu_count()} cores")
    is_well = True
    for check in chain(examine(), _examine_carla(arguments.carla)):
        is_well = is_well and (check.is_ok or not check.is_required)
        mark = "ok     " if check.is_ok else ("MISSING" if check.is_required else "absent ")
        print(f"  {mark}  {check.name}: {check.detail}", flush=True)
    return 0 if is_well else 1


def examine() -> list[Check]:
    """Look at every part that wm_gym uses."""
    return [
        _package("torch", "torch"),
        _package("gymnasium", "gymnasium"),
        _package("stable_baselines3", "stable-baselines3"),
        _package("cv2", "opencv-python"),
        _package("lpips", "lpips"),
        _try("CarRacing simulator", True, _drive_car_racing, "pip install 'gymnasium[box2d]'"),
        _try("bundled dream", True, _dream, "reinstall wm_gym: its assets are part of the package"),
        _try("GPU", False, _gpu, "wm_gym runs on the CPU; use the tiny config"),
        _try(
            "LPIPS weights", False, _lpips_weights, "set loss.perceptual=0, or loss.perceptual_weights to a local file"
        ),
        _package("minari", "minari", is_required=False, install="wm_gym[minari]"),
        _package("pyarrow", "pyarrow", is_required=False, install="wm_gym[lerobot]"),
        _package("av", "av", is_required=False, install="wm_gym[lerobot]"),
        _package("onnxruntime", "onnxruntime", is_required=False, install="wm_gym[export]"),
        _package("uvicorn", "uvicorn", is_required=False, install="wm_gym[play]"),
        _package("huggingface_hub", "huggingface_hub", is_required=False, install="wm_gym[hub]"),
        _package("optuna", "optuna", is_required=False, install="wm_gym[tune]"),
    ]


def _examine_carla(address: str | None) -> Iterator[Check]:
    """The machine's part of a CARLA set-up, and the server where one is named; that one has to work."""
    from wm_gym.envs.carla.config import ConnectionConfig
    from wm_gym.envs.carla.diagnosis import diagnose_machine, diagnose_server
    from wm_gym.envs.carla.env import parse_address

    for finding in diagnose_machine():
        yield Check(finding.name, finding.is_ok, False, finding.detail)
    if address is not None:
        for finding in diagnose_server(ConnectionConfig(**parse_address(address))):
            yield Check(finding.name, finding.is_ok, True, finding.detail)


def _package(module: str, distribution: str, is_required: bool = True, install: str | None = None) -> Check:
    try:
        importlib.import_module(module)
    except ImportError as error:
        return Check(distribution, False, is_required, f"pip install '{install or distribution}' ({error})")
    return Check(distribution, True, is_required, version_of(distribution) or "version unknown")


def _try(name: str, is_required: bool, look: Callable[[], str], remedy: str) -> Check:
    try:
        return Check(name, True, is_required, look())
    except (WMGymError, ImportError, OSError, RuntimeError) as error:
        return Check(name, False, is_required, f"{error} -> {remedy}")


def _drive_car_racing() -> str:
    import gymnasium as gym

    env = gym.make("CarRacingDriving-v0")
    frame, _ = env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()
    return f"drives, frames {frame.shape}"


def _dream() -> str:
    import gymnasium as gym

    env = gym.make("DreamDriving-v0")
    observation, _ = env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()
    return f"dreams, observations {observation.shape}"


def _gpu() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        return "Apple MPS"
    raise WMGymError("PyTorch sees none")


def _lpips_weights() -> str:
    from pathlib import Path

    import torch

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    found = sorted(folder.glob("alexnet-*.pth"))
    if not found:
        raise WMGymError(f"no AlexNet weights in {folder}; the first training with the perceptual loss downloads them")
    return str(found[0])
