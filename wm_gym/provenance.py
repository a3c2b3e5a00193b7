"""What made an artefact: versions, git revision, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from wm_gym._version import __version__

_PACKAGES = ("torch", "gymnasium", "stable-baselines3", "numpy", "opencv-python", "lightning-fabric")


def provenance() -> dict[str, Any]:
    """Versions of this package, Python and the libraries that matter, the git revision (or ``None``), the machine."""
    return {
        "wm_gym": __version__,
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in _PACKAGES},
        "git_revision": git_revision(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def measured_on(device: str) -> dict[str, Any]:
    """The machine and the versions that a measurement belongs to."""
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "provenance": provenance(),
    }


def git_revision() -> str | None:
    """Commit of the checkout that this package runs from, ``-dirty`` where it has changes; ``None`` outside one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # an installed package may lie inside some other project's checkout
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


def _processor() -> str:
    """The processor's own name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def version_of(package: str) -> str | None:
    """Version of an installed distribution; ``None`` where it is missing or does not say."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
