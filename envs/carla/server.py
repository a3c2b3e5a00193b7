"""Starting, watching and stopping a CARLA server of our own: a local installation, Docker, the light one, any command.

Only processes and containers that were started here are ever stopped.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import weakref
from pathlib import Path
from typing import IO

from wm_gym.envs.carla.config import ConnectionConfig
from wm_gym.errors import SimulatorError

DEFAULT_IMAGE = "carlasim/carla:0.9.16"
LIGHT = "light"
"""What ``launch`` calls the server of :mod:`wm_gym.envs.carla_light`."""
_STOP_TIMEOUT_S = 10.0
_LOG_TAIL = 400


def launch_command(connection: ConnectionConfig, container: str) -> list[str]:
    """The command line that starts a server.

    Args:
        connection: What to start, and its port.
        container: Name for a Docker container.

    Raises:
        SimulatorError: There is no such program.
        ConfigError: The light server has no such town.
    """
    launch, port = connection.launch, connection.port
    if isinstance(launch, list):
        command = [part.format(port=port) for part in launch]
        return [*command, *connection.launch_options]
    assert launch is not None
    server_options = ["-RenderOffScreen", "-nosound", f"-carla-rpc-port={port}", *connection.launch_options]
    if launch == "docker" or launch.startswith("docker:"):
        if shutil.which("docker") is None:
            raise SimulatorError("launch='docker' was asked for, but there is no program called docker; install it.")
        image = launch.partition(":")[2] or DEFAULT_IMAGE
        options = ["--rm", "--name", container, "--gpus", "all", "--net", "host", "--shm-size", "1g"]
        return ["docker", "run", *options, image, "/bin/bash", "./CarlaUE4.sh", *server_options]
    if launch == LIGHT or launch.startswith(f"{LIGHT}:"):
        return [*_light_command(launch.partition(":")[2]), "--port", str(port), *connection.launch_options]
    program = Path(launch).expanduser()
    if program.is_dir():
        program /= "CarlaUE4.exe" if sys.platform == "win32" else "CarlaUE4.sh"
    if not program.is_file():
        raise SimulatorError(
            f"launch={launch!r} names no CARLA server; give the path of CarlaUE4.sh, its folder, 'docker', 'light', "
            "or a command as a list."
        )
    return [str(program), *server_options]


def _light_command(town: str) -> list[str]:
    """The program of the light server, with the town to begin in, if one is named."""
    from wm_gym.envs.carla_light.serve import check_requirements
    from wm_gym.envs.carla_light.towns import Towns

    check_requirements()
    wanted = [town] if town else []
    Towns(wanted)  # complains about a town that does not exist
    return [sys.executable, "-m", "wm_gym", "carla-light", *(option for name in wanted for option in ("--town", name))]


def can_listen(port: int) -> bool:
    """Whether a server could listen on this machine: on this port and the two after it, which CARLA uses as well."""
    try:
        for one in range(port, port + 3):
            socket.create_server(("", one)).close()
    except OSError:
        return False
    return True


class CarlaServer:
    """A server process that is started when it is needed and stopped at the end.

    Args:
        connection: What to start and on which port.
    """

    def __init__(self, connection: ConnectionConfig) -> None:
        self._connection = connection
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._container = f"wm_gym-carla-{uuid.uuid4().hex[:12]}"
        self.episodes = 0
        """Episodes since it was started."""

    @property
    def is_running(self) -> bool:
        """Whether the process lives; that says nothing about whether it answers."""
        return self._process is not None and self._process.poll() is None

    @property
    def group(self) -> int | None:
        """Process group of the running server."""
        return self._process.pid if self._process is not None and self.is_running else None

    def start(self) -> None:
        """Start it, unless it runs already.

        Raises:
            SimulatorError: It cannot be started.
        """
        if self.is_running:
            return
        command = launch_command(self._connection, self._container)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "SDL_VIDEODRIVER": os.environ.get("SDL_VIDEODRIVER", "offscreen")},
            )
        except OSError as error:
            raise SimulatorError(f"the CARLA server cannot be started by {command[0]!r}: {error}.") from error
        self.episodes = 0
        _running.add(self)

    def last_words(self) -> str:
        """How it ended and the last line of what it printed, for messages."""
        if self._process is None or self.is_running:
            return ""
        printed = ""
        if self._log is not None and not self._log.closed:
            self._log.seek(0)
            lines = self._log.read()[-_LOG_TAIL:].decode(errors="replace").strip().splitlines()
            printed = f", and its last words were {lines[-1]!r}" if lines else ""
        return f" The server process ended with code {self._process.returncode}{printed}."

    def stop(self) -> None:
        """Stop it, if it was started; by force if it does not follow."""
        process, self._process = self._process, None
        _running.discard(self)
        if process is not None:
            stop_group(process.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_TIMEOUT_S)
            if isinstance(self._connection.launch, str) and self._connection.launch.startswith("docker"):
                # The client's end does not always take the container along.
                subprocess.run(["docker", "rm", "--force", self._container], capture_output=True, check=False)
        if self._log is not None:
            self._log.close()


def stop_group(group: int) -> None:
    """End a process group: CarlaUE4.sh is a shell, and the server is its child."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(group)], capture_output=True, check=False)
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(group, os.WNOHANG)
            os.killpg(group, 0)
            time.sleep(0.05)
        os.killpg(group, signal.SIGKILL)


_running: weakref.WeakSet[CarlaServer] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for server in list(_running):
        server.stop()
