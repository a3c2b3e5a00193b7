"""What a server of pages needs before it starts: its libraries, and a socket."""

from __future__ import annotations

import errno
import importlib.util
import socket

from wm_gym.agents.web.guard import is_loopback
from wm_gym.errors import ConfigError, OutputError

_NEEDED = ("starlette", "uvicorn", "websockets")


def has_libraries() -> bool:
    """Whether there is what a server needs beyond the package's own dependencies."""
    return not _missing()


def check_requirements(command: str) -> None:
    """Look for what a server needs beyond the package's own dependencies.

    Args:
        command: What needs it, as in ``"wm-gym play"``.

    Raises:
        ConfigError: Something is missing.
    """
    missing = _missing()
    if missing:
        raise ConfigError(
            f"{command} needs {', '.join(missing)}, which is not installed; run `pip install 'wm_gym[play]'`."
        )


def _missing() -> list[str]:
    return [name for name in _NEEDED if importlib.util.find_spec(name) is None]


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: Name or address of this machine.
        port: 0 takes any that is free.

    Raises:
        ConfigError: The port is out of range, or no address of this machine is called like that.
        OutputError: The port is taken.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port} is not in 0 to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"--host {host} is no address of this machine; leave it out to listen on 127.0.0.1."
        ) from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise OutputError(
                f"port {port} of {host} is taken, perhaps by another page of wm-gym; end that one, or give another "
                "--port (0 takes any that is free)."
            ) from error
        raise ConfigError(f"nothing can listen on {host}:{port}: {error.strerror}.") from error
    return listening


def warning_of(host: str, what: str) -> str | None:
    """What to say where the server is reached from other machines; ``None`` where it is not.

    Args:
        host: Where it listens.
        what: What those can do who have its address, as in ``"drive"``.
    """
    if is_loopback(host):
        return None
    return (
        f"Other machines can reach this page: whoever has its address can {what}, and nothing on the way is encrypted."
    )
