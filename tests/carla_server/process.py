"""The stand-in server as a process, for tests: start it, set faults, ask for its actors, kill it."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack

ROOT = Path(__file__).parents[2]
_START_S = 20.0


def command(port: int | str = "{port}", *options: str) -> list[str]:
    """The command line that starts the server, as ``launch`` of ``CarlaDriving-v0`` takes it."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.carla_server.__main__ import main; main()"
    return [sys.executable, "-c", program, "--port", str(port), *options]


def free_port() -> int:
    """A port with a free one after it, in the share of the test process; no connection is given one of these."""
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = 10_000 + 1_000 * (process % 20) + random.SystemRandom().randrange(1_000)
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError):
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 1))
            return port


def call(port: int, method: str, *arguments: Any) -> Any:
    """Call the server without CARLA's client; raises ``RuntimeError`` with the server's message."""
    with socket.create_connection(("127.0.0.1", port), timeout=60.0) as connection:
        connection.sendall(msgpack.packb([0, 1, method, [[False], *arguments]]))
        unpacker = msgpack.Unpacker(raw=False, strict_map_key=False)
        while data := connection.recv(1 << 16):
            unpacker.feed(data)
            for _, _, _, result in unpacker:
                outcome = result[0]
                if outcome == [False]:
                    return None
                if len(outcome) == 2 and outcome[0] == 1:
                    return outcome[1]
                raise RuntimeError(outcome[1][0])
    raise RuntimeError("the server hung up")


class StandIn:
    """A running stand-in server; a context manager that ends it.

    Args:
        port: RPC port; ``None`` finds one.
        options: For its command line.
    """

    def __init__(self, port: int | None = None, *options: str) -> None:
        self.port = free_port() if port is None else port
        self._options = options
        self.start()

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def address(self) -> str:
        """``HOST:PORT``."""
        return f"127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self.process.poll() is None

    def start(self) -> None:
        """Start it and wait until it listens."""
        line = command(self.port, "--follow-stdin", *self._options)
        self.process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        greeting = self.process.stdout.readline()
        assert "stand-in CARLA server" in greeting, greeting

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

    def faults(self, **values: Any) -> None:
        """Set faults; see :class:`tests.carla_server.faults.Faults`."""
        call(self.port, "stand_in_faults", values)

    @contextlib.contextmanager
    def held_until(self, condition: Callable[[], bool], timeout_s: float = 120.0) -> Iterator[None]:
        """Simulate no frame until the condition holds, so that a worker that starts slowly gets its share."""

        def release() -> None:
            _wait_until(condition, timeout_s)
            self.faults(stall_at_frame=-1)

        self.faults(stall_at_frame=0)
        thread = threading.Thread(target=release)
        thread.start()
        try:
            yield
        finally:
            thread.join()

    def dies_in_use(self, frames: int = 12) -> bool:
        """Wait until a client has come, and die so many frames later; whether it did."""
        if self.wait_until_in_use():
            self.faults(die_at_frame=self.summary()["frame"] + frames)
        return _wait_until(lambda: not self.is_running, 120.0)

    def summary(self) -> dict[str, Any]:
        """What is on the server."""
        found: dict[str, Any] = call(self.port, "stand_in_summary")
        return found

    def spawned(self) -> list[list[Any]]:
        """Actors that clients spawned: number, blueprint, role name."""
        own = ("spectator", "traffic.")
        return [actor for actor in self.summary()["actors"] if not actor[1].startswith(own)]

    def wait_until_in_use(self, timeout_s: float = 120.0) -> bool:
        """Whether, within a time, a client has spawned an actor."""
        return _wait_until(lambda: bool(self.spawned()), timeout_s)

    def wait_until_clean(self, timeout_s: float = 120.0) -> bool:
        """Whether, within a time, no spawned actor is left and the server is asynchronous again."""
        return _wait_until(lambda: not self.spawned() and not self.summary()["synchronous"], timeout_s)


def _wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False
