"""What is right and wrong with a CARLA set-up, step by step."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from wm_gym.envs.carla.client import has_carla, missing_carla_message, probe, release
from wm_gym.envs.carla.client_handle import ClientProcess
from wm_gym.envs.carla.config import CameraConfig, CarlaConfig, ConnectionConfig
from wm_gym.envs.carla.messages import Drive, SessionSettings, StartEpisode
from wm_gym.errors import WMGymError

_TICKS = 20


class Finding(NamedTuple):
    """One line of a diagnosis.

    Attributes:
        name: What was looked at.
        is_ok: Whether it works.
        detail: What was found, or what to do.
    """

    name: str
    is_ok: bool
    detail: str


def diagnose_machine() -> Iterator[Finding]:
    """What this machine offers, without any server."""
    if has_carla():
        yield Finding("CARLA client", True, _client_version())
    else:
        yield Finding("CARLA client", False, missing_carla_message())
    root = os.environ.get("CARLA_ROOT")
    script = shutil.which("CarlaUE4.sh") or (str(Path(root) / "CarlaUE4.sh") if root else None)
    if script and Path(script).exists():
        yield Finding("CARLA server program", True, script)
    else:
        yield Finding("CARLA server program", False, "none in CARLA_ROOT; attach to a running server, or use Docker")
    docker = shutil.which("docker")
    yield Finding("Docker", docker is not None, docker or "not installed; needed for --carla-launch docker only")
    yield _gpu()


def diagnose_server(connection: ConnectionConfig) -> Iterator[Finding]:
    """Whether a server can be reached, fits the client, and drives; ends at the first thing that is wrong."""
    address = f"{connection.host}:{connection.port}"
    reason = probe(connection.host, connection.port)
    if reason is not None:
        yield Finding(f"server at {address}", False, f"{reason}; start it, or give the right host and port")
        return
    yield Finding(f"port {connection.port}", True, "open")
    stream = probe(connection.host, connection.port + 1)
    if stream is not None:
        yield Finding(
            f"port {connection.port + 1}", False, f"{stream}; sensors use it: open it in the firewall or container"
        )
        return
    yield Finding(f"port {connection.port + 1}", True, "open (sensors)")
    if not has_carla():
        yield Finding("drive", False, missing_carla_message())
        return
    yield from _drive(connection)


def _drive(connection: ConnectionConfig) -> Iterator[Finding]:
    config = CarlaConfig(camera=CameraConfig(width=64, height=64), weather=None)
    client: ClientProcess | None = None
    try:
        client = ClientProcess(SessionSettings(config, connection))
        ready = client.ready
        yield Finding("versions", True, f"server {ready.server_version}, client {ready.client_version}")
        started = client.start_episode(StartEpisode(seed=0))
        yield Finding(
            "episode", True, f"{started.town}, a route of {started.route.length:.0f} m, first picture received"
        )
        client.drive(Drive((0.0, 0.5, 0.0, 1.0), _TICKS))
        yield Finding("drive", True, f"{_TICKS} ticks in synchronous mode, pictures match their ticks")
    except WMGymError as error:
        yield Finding("drive", False, str(error).rstrip("."))
    finally:
        is_clean = client is None or client.close()
    yield Finding(
        "clean-up", is_clean, "actors destroyed, settings put back" if is_clean else "the server kept something"
    )


def _client_version() -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return f"carla {release(importlib.metadata.version('carla'))}, Python {sys.version.split()[0]}"
    return "installed, of an unknown version"


def _gpu() -> Finding:
    program = shutil.which("nvidia-smi")
    if program is None:
        return Finding(
            "GPU for a server", False, "nvidia-smi is not here; run the server on a machine with an NVIDIA GPU"
        )
    found = subprocess.run(
        [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    text = "; ".join(found.stdout.split("\n")).strip("; ")
    return Finding("GPU for a server", found.returncode == 0, text or found.stderr.strip())
