"""Reaching a CARLA server: the optional dependency, the connection and the versions."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

import gymnasium as gym

from wm_gym.envs.carla.config import ConnectionConfig
from wm_gym.errors import SimulatorError, SimulatorLostError, reason_of

if TYPE_CHECKING:
    import carla

_NEWEST_PYTHON_WITH_WHEEL = (3, 12)
_PROBE_TIMEOUT_S = 2.0
_PROBE_PAUSE_S = 0.5


class ServerSilentError(SimulatorLostError):
    """The server gave no answer in time."""


@contextmanager
def server_calls(address: str) -> Iterator[None]:
    """Turn what CARLA's client raises into one sentence.

    Raises:
        ServerSilentError: The server died or hangs.
        SimulatorError: It refused.
    """
    try:
        yield
    except RuntimeError as error:
        if _is_timeout(error):
            raise ServerSilentError(
                f"the CARLA server at {address} gave no answer in time; it died, hangs or is overloaded."
            ) from error
        raise SimulatorError(f"the CARLA server at {address} says: {str(error).rstrip('.')}.") from error


@contextmanager
def perhaps_gone() -> Iterator[None]:
    """Pass over what CARLA's client raises for an actor that does not exist any more."""
    try:
        yield
    except RuntimeError as error:
        if _is_timeout(error):
            raise


def _is_timeout(error: RuntimeError) -> bool:
    return "time-out" in str(error)


def has_carla() -> bool:
    """Whether CARLA's Python client is installed; does not import it."""
    try:
        spec = importlib.util.find_spec("carla")
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None  # a mere folder called carla has no origin


def missing_carla_message() -> str:
    """What to do where the client is not installed: one sentence."""
    version, system, machine = sys.version_info[:2], platform.system(), platform.machine()
    has_wheel = (
        version <= _NEWEST_PYTHON_WITH_WHEEL and system in ("Linux", "Windows") and machine in ("x86_64", "AMD64")
    )
    if has_wheel:
        return (
            "CARLA's Python client is not installed; run `pip install 'wm_gym[carla]'`, in the version of your server"
        )
    return (
        f"CARLA's Python client is not installed and has no wheel for Python {version[0]}.{version[1]} on {system} "
        f"{machine}; use Linux or Windows on x86-64 with Python 3.10 to "
        f"{_NEWEST_PYTHON_WITH_WHEEL[0]}.{_NEWEST_PYTHON_WITH_WHEEL[1]}, "
        "or train on CARLA data that were collected there"
    )


def check_carla() -> None:
    """Check that the client is installed.

    Raises:
        gymnasium.error.DependencyNotInstalled: It is not.
    """
    if not has_carla():
        raise gym.error.DependencyNotInstalled(missing_carla_message() + ".")


def import_carla() -> ModuleType:
    """CARLA's Python client.

    Raises:
        gymnasium.error.DependencyNotInstalled: It is not installed.
    """
    check_carla()
    return importlib.import_module("carla")


def probe(host: str, port: int) -> str | None:
    """Why nothing can be reached at an address, in words; ``None`` where something listens."""
    try:
        with socket.create_connection((host, port), timeout=_PROBE_TIMEOUT_S):
            return None
    except socket.gaierror:
        return f"there is no host called {host!r}"
    except ConnectionRefusedError:
        return "nothing listens there"
    except TimeoutError:
        return f"there was no answer within {_PROBE_TIMEOUT_S:g} s"
    except OSError as error:
        return reason_of(error)


def connect(connection: ConnectionConfig, *, wait: bool) -> carla.Client:
    """Connect to a server and check its version.

    Args:
        connection: Where it is, and how long to wait.
        wait: Wait up to ``connect_timeout_s`` for a server that is starting; otherwise one that is not there is an
            error at once.

    Raises:
        SimulatorLostError: There is no server, or it does not answer.
        SimulatorError: It has another version than the client.
    """
    carla = import_carla()
    address = f"{connection.host}:{connection.port}"
    deadline = time.monotonic() + connection.connect_timeout_s
    while True:
        reason = probe(connection.host, connection.port)
        if reason is None:
            client = carla.Client(socket.gethostbyname(connection.host), connection.port)
            client.set_timeout(min(connection.timeout_s, max(1.0, deadline - time.monotonic())))
            try:
                server_version = client.get_server_version()
                break
            except RuntimeError:
                reason = f"it accepts connections but gives no answer within {connection.timeout_s:g} s"
        if not wait or time.monotonic() > deadline:
            waited = f" (waited {connection.connect_timeout_s:g} s)" if wait else ""
            raise SimulatorLostError(
                f"no CARLA server can be reached at {address}{waited}: {reason}; start one, or give the right host and "
                "port (see `wm-gym doctor --carla HOST:PORT`)."
            )
        time.sleep(_PROBE_PAUSE_S)
    client_version = client.get_client_version()
    if connection.version_check and release(server_version) != release(client_version):
        raise SimulatorError(
            f"the CARLA server at {address} has version {server_version}, but the installed client has "
            f"{client_version}; run `pip install carla=={release(server_version)}`, or start a server of "
            f"{release(client_version)}."
        )
    client.set_timeout(connection.timeout_s)
    return client


def release(version: str) -> str:
    """The release of a version, without what describes a build: ``"0.9.16"`` of ``"0.9.16-3-gabcdef-dirty"``."""
    found = re.match(r"\d+(\.\d+)*", version)
    return found[0] if found else version
