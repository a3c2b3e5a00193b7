"""Running the server as a program."""

from __future__ import annotations

import errno
import importlib.util
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from wm_gym.errors import SimulatorError

if TYPE_CHECKING:
    from wm_gym.envs.carla_light.server import LightServer


def check_requirements() -> None:
    """Look for what the server needs beyond the package's own dependencies.

    Raises:
        SimulatorError: Something is missing.
    """
    if importlib.util.find_spec("msgpack") is None:
        raise SimulatorError(
            "the light CARLA server needs the package msgpack, which is not installed; run "
            "`pip install 'wm_gym[carla]'`."
        )


def make_server(host: str, port: int, wanted: Sequence[str] = ()) -> LightServer:
    """A server that listens, but does not answer yet.

    Args:
        host: Address to listen on.
        port: RPC port; sensors use the next one.
        wanted: As of :class:`~wm_gym.envs.carla_light.towns.Towns`.

    Raises:
        SimulatorError: A port is taken, or a package is missing.
        ConfigError: There is no such town.
    """
    check_requirements()
    from wm_gym.envs.carla_light.server import LightServer
    from wm_gym.envs.carla_light.towns import Towns

    towns = Towns(wanted)
    try:
        return LightServer(host, port, towns)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SimulatorError(
                f"port {port} or {port + 1} of {host} is taken, perhaps by another server; end that one, or give "
                "another --port."
            ) from error
        raise SimulatorError(f"the server cannot listen on {host}:{port}: {error.strerror}.") from error


def serve(host: str, port: int, wanted: Sequence[str], say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C.

    Args:
        host: Address to listen on.
        port: RPC port; sensors use the next one.
        wanted: As of :class:`~wm_gym.envs.carla_light.towns.Towns`.
        say: Told in one line that the server is ready.

    Raises:
        SimulatorError: A port is taken, or a package is missing.
        ConfigError: There is no such town.
    """
    server = make_server(host, port, wanted)
    try:
        server.start()
        say(f"light CARLA server on {host}:{server.port} in {server.world.town.name}; Ctrl-C ends it")
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.close()
