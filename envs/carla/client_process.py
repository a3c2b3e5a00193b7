"""The process that talks to CARLA: ``python -m wm_gym.envs.carla.client_process ADDRESS``, started by the environment.

It ends with the environment, however that ends: when the connection closes, it destroys what it spawned and puts the
server's settings back.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from dataclasses import replace
from multiprocessing.connection import Client, Connection

from wm_gym.envs.carla.messages import (
    CALLS_IN_A_CLOSE,
    Busy,
    Close,
    Drive,
    Failed,
    Reply,
    Request,
    SessionSettings,
    StartEpisode,
)
from wm_gym.envs.carla.server import stop_group
from wm_gym.envs.carla.session import CarlaSession
from wm_gym.errors import SimulatorLostError, WMGymError


def main() -> None:
    """Serve one environment until it closes the connection."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches every process of the terminal; the environment decides
    key = bytes.fromhex(sys.stdin.readline().strip())
    with Client(sys.argv[1], authkey=key) as connection:
        settings: SessionSettings = connection.recv()
        _serve(connection, settings)
    # CARLA's client ends threads in static destructors, which can abort the process; everything is done already.
    sys.stderr.flush()
    os._exit(0)


def _serve(connection: Connection, settings: SessionSettings) -> None:
    session: CarlaSession | None = None

    def say_busy(seconds: float) -> None:
        connection.send((0, Busy(seconds)))

    try:
        session = CarlaSession(settings, say_busy)
        connection.send((0, session.ready))
        while True:
            number, request = connection.recv()
            reply = _answer(session, request)
            if isinstance(reply, Failed) and reply.is_lost and not session.is_silent:
                # A picture that never comes, or a vehicle that someone has destroyed: the server can still be cleaned.
                say_busy(CALLS_IN_A_CLOSE * settings.connection.timeout_s)
                reply = replace(reply, is_clean=session.close().is_clean)
            connection.send((number, reply))
            if isinstance(request, Close):
                return
    except (EOFError, BrokenPipeError, ConnectionResetError):
        if session is not None:
            session.close()
        if settings.server_group is not None:
            stop_group(settings.server_group)
    except Exception as error:
        with contextlib.suppress(OSError):
            connection.send((0, _failed(error)))


def _answer(session: CarlaSession, request: Request) -> Reply:
    try:
        if isinstance(request, StartEpisode):
            return session.start(request)
        if isinstance(request, Drive):
            return session.drive(request)
        return session.close()
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> Failed:
    if not isinstance(error, WMGymError):
        traceback.print_exc()  # a defect somewhere: the place matters
    text = str(error) if isinstance(error, WMGymError) else f"{type(error).__name__}: {error}"
    return Failed(text, type(error).__name__, isinstance(error, SimulatorLostError))


if __name__ == "__main__":
    main()
