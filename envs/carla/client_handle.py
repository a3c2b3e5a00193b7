"""The environment's end of the process that talks to CARLA."""

from __future__ import annotations

import atexit
import contextlib
import secrets
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from threading import Thread
from typing import TypeVar

from wm_gym.envs.carla.client import probe
from wm_gym.envs.carla.config import ConnectionConfig
from wm_gym.envs.carla.messages import (
    CALLS_IN_A_CLOSE,
    Busy,
    Close,
    Closed,
    Drive,
    Driven,
    EpisodeStarted,
    Failed,
    Ready,
    Reply,
    Request,
    SessionSettings,
    StartEpisode,
)
from wm_gym.errors import SimulatorError, SimulatorLostError, WMGymError, error_by_name

ReplyT = TypeVar("ReplyT", Ready, EpisodeStarted, Driven, Closed)

_GRACE_S = 5.0
"""On top of CARLA's own time limits, before the client process itself counts as hanging."""

_START_S = 60.0
_CALLS_IN_A_START = 3
"""Calls to the server in the course of starting an episode that may take their time limit: all but a few are quick."""


class ClientEndedError(SimulatorLostError):
    """The client process ended by itself: its server died, or CARLA's library crashed."""


class ClientProcess:
    """A process of its own for CARLA's client.

    CARLA's client can end its process (a Traffic Manager whose server died does) and can hang; neither may happen to
    the process of the user. Every request has a deadline, after which the client process is killed.

    Args:
        settings: What it needs to know.

    Raises:
        SimulatorLostError: No server can be reached, or the process died.
        SimulatorError: The server cannot be used.
    """

    def __init__(self, settings: SessionSettings) -> None:
        key = _key(settings.connection)
        if key in _unclean:
            settings = replace(settings, was_asynchronous=_unclean[key].was_asynchronous)
        self._settings = settings
        self._number = 0
        self._is_clean = False
        self._is_server_silent = False
        secret = secrets.token_bytes(32)
        with Listener(authkey=secret) as listener:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "wm_gym.envs.carla.client_process", _address(listener)],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
            try:
                assert self._process.stdin is not None
                with contextlib.suppress(BrokenPipeError):
                    self._process.stdin.write(secret.hex().encode() + b"\n")
                    self._process.stdin.close()
                self._connection = self._accept(listener)
                self._connection.send(settings)
                connection = settings.connection
                limit = connection.timeout_s * 4 + (connection.connect_timeout_s if settings.wait else 0.0) + _START_S
                self.ready = self._receive(0, Ready, limit)
            except BaseException:
                self.kill()
                raise
        _unclean.pop(key, None)  # it has taken over what was left

    def start_episode(self, request: StartEpisode) -> EpisodeStarted:
        """Begin an episode.

        Raises:
            SimulatorLostError: The server or the process died, hangs or went away.
            SimulatorError: The server refuses.
            ConfigError: There is no such town or spawn point.
        """
        connection = self._settings.connection
        limit = (connection.timeout_s + connection.image_timeout_s) * _CALLS_IN_A_START + _GRACE_S
        return self._ask(request, EpisodeStarted, limit)

    def drive(self, request: Drive) -> Driven:
        """Simulate one action; raises as :meth:`start_episode`."""
        connection = self._settings.connection
        limit = connection.timeout_s * 2 + connection.image_timeout_s * 3 + _GRACE_S
        return self._ask(request, Driven, limit)

    def close(self) -> bool:
        """Let it clean up, and end it; by force if it takes too long.

        Where the process has died, another one cleans up after it. Where the server is silent, nobody can now; it is
        tried again by :func:`clean_up` and at the end of the program.

        Returns:
            Whether all is as it was; if not, actors may be left on the server.
        """
        if self._end() or self._settings.server_group is not None:
            return self._is_clean
        _unclean[_key(self._settings.connection)] = replace(
            self._settings, wait=False, was_asynchronous=self.ready.was_asynchronous
        )
        return not self._is_server_silent and clean_up(self._settings.connection)

    def _end(self) -> bool:
        if self._process.poll() is None:
            with contextlib.suppress(WMGymError, OSError):
                limit = self._settings.connection.timeout_s * CALLS_IN_A_CLOSE + _GRACE_S
                self._is_clean = self._ask(Close(), Closed, limit).is_clean
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)
        self.kill()
        return self._is_clean

    def kill(self) -> None:
        """End it at once."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        connection = getattr(self, "_connection", None)
        if connection is not None:
            connection.close()

    def _accept(self, listener: Listener) -> Connection:
        accepted: list[Connection] = []

        def accept() -> None:
            with contextlib.suppress(OSError, EOFError, AuthenticationError):
                accepted.append(listener.accept())

        # Listener.accept() has no time limit of its own.
        thread = Thread(target=accept, daemon=True)
        thread.start()
        deadline = time.monotonic() + _START_S
        while thread.is_alive() and time.monotonic() < deadline and self._process.poll() is None:
            thread.join(0.02)
        if not accepted:
            raise SimulatorError(
                f"the process for CARLA's client did not start (exit code {self._process.poll()}); look above for why."
            )
        return accepted[0]

    def _ask(self, request: Request, kind: type[ReplyT], limit_s: float) -> ReplyT:
        self._send(request)
        return self._receive(self._number, kind, limit_s)

    def _send(self, request: Request) -> None:
        self._number += 1
        try:
            self._connection.send((self._number, request))
        except OSError as error:
            raise self._lost() from error

    def _receive(self, number: int, kind: type[ReplyT], limit_s: float) -> ReplyT:
        reply = self._wait_for(number, limit_s)
        if isinstance(reply, Failed):
            if reply.is_lost:
                self._is_clean, self._is_server_silent = reply.is_clean, not reply.is_clean
                self.kill()
                raise SimulatorLostError(reply.message)
            failed = f"CARLA's client failed: {reply.message.rstrip('.')}."
            raise error_by_name(reply.error, reply.message) or SimulatorError(failed)
        assert isinstance(reply, kind)
        return reply

    def _wait_for(self, number: int, limit_s: float) -> Reply:
        """The reply with this number; those to requests that were given up (Ctrl-C) are thrown away."""
        deadline = time.monotonic() + limit_s
        try:
            while self._connection.poll(max(0.0, deadline - time.monotonic())):
                answered, reply = self._connection.recv()
                if isinstance(reply, Busy):
                    limit_s = reply.seconds + limit_s
                    deadline = time.monotonic() + limit_s
                elif answered == number:
                    return reply
        except (EOFError, OSError) as error:
            raise self._lost() from error
        self._is_server_silent = True
        self.kill()
        raise SimulatorLostError(
            f"CARLA's client gave no answer within {limit_s:g} s and was ended; its server may hang."
        )

    def _lost(self) -> SimulatorLostError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)
        self.kill()
        address = f"{self._settings.connection.host}:{self._settings.connection.port}"
        return ClientEndedError(
            f"CARLA's client ended with code {self._process.returncode} while it used {address}; its server probably "
            "died."
        )


_unclean: dict[tuple[str, int], SessionSettings] = {}
"""Servers on which a client of this program has ended without cleaning up: host, port, and what it knew of them."""


def clean_up(connection: ConnectionConfig) -> bool:
    """Remove what a client of this program that died or lost its server has left there, if one has.

    Returns:
        Whether nothing is left.
    """
    settings = _unclean.get(_key(connection))
    if settings is None:
        return True
    if probe(connection.host, connection.port) is not None:
        return False
    try:
        return ClientProcess(settings)._end()
    except SimulatorError:
        return False


@atexit.register
def _clean_up_all() -> None:
    for settings in list(_unclean.values()):
        clean_up(settings.connection)


def _key(connection: ConnectionConfig) -> tuple[str, int]:
    return connection.host, connection.port


def _address(listener: Listener) -> str:
    address = listener.address
    assert isinstance(address, str)
    return address
