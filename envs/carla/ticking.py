"""Ticks of a synchronous server. Used in the client process only."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import carla

_LOOK_EVERY_S = 0.1
_STUCK_AFTER_LOOKS = 3
_CALL_TIMEOUT_S = 2.0
_CYCLE_S, _MOST_CYCLES = 1.0, 10
"""Of the Traffic Manager without vehicles, which takes milliseconds; and how often to ask for one that was lost."""


class Ticker:
    """Ticks the world, and frees a tick that is stuck in the Traffic Manager.

    In synchronous mode CARLA's ``world.tick()`` hands each frame to the thread of the Traffic Manager and waits for it,
    without a time limit. Both sides set their flag and notify the other one without holding its lock, so a notification
    can fall between the other's look at the flag and its sleep: then both sleep for ever. It is rare on a slow server
    and less rare on a fast one or a busy machine.

    Here a thread looks on: where the frame has come and the tick still does not return, it has the manager notify once
    more, by switching its synchronous mode off and on. It asks for that over the manager's own port, because CARLA's
    Python interface would wait for a lock that the stuck tick holds.

    Args:
        world: The world.
        timeout_s: Longest wait for the server.

    Attributes:
        freed: How many ticks were freed so far.
    """

    def __init__(self, world: carla.World, timeout_s: float) -> None:
        self.freed = 0
        self._world = world
        self._timeout_s = timeout_s
        self._manager_port: int | None = None
        self._frame_before: int | None = None
        """While a tick is under way, the last frame before it."""
        self._num_ticks = 0
        self._is_watching = False

    def watch(self, manager_port: int | None) -> None:
        """Look after the Traffic Manager at this port of this process from now on; ``None`` for none."""
        self._manager_port = manager_port
        if manager_port is not None and not self._is_watching:
            self._is_watching = True
            threading.Thread(target=self._look_on, daemon=True).start()

    def tick(self) -> int:
        """Simulate one frame; returns its number, with the world's snapshot at it or later.

        Raises:
            RuntimeError: The server gave no answer in time.
        """
        if self._manager_port is None:
            return int(self._world.tick(self._timeout_s))
        self._num_ticks += 1
        self._frame_before = self._world.get_snapshot().frame
        try:
            return int(self._world.tick(self._timeout_s))
        finally:
            self._frame_before = None

    def _look_on(self) -> None:
        """Look now and then, unasked: to be woken for every tick would cost a tenth of its time."""
        watched, looks = 0, 0
        while True:
            time.sleep(_LOOK_EVERY_S)
            number, before = self._num_ticks, self._frame_before
            if number != watched or before is None:
                watched, looks = number, 0
                continue
            looks += self._world.get_snapshot().frame > before
            if looks >= _STUCK_AFTER_LOOKS and self._manager_port is not None:
                wake_traffic_manager(self._manager_port)
                self.freed += 1
                looks = 0


def synchronous_manager(client: carla.Client, port: int) -> carla.TrafficManager:
    """The Traffic Manager at a port, made if there is none, in synchronous mode, and with its thread at rest.

    A new manager begins in asynchronous mode, and its thread looks for new frames without a pause. Where the scheduler
    takes its core away just after it has read the mode, it goes on after the next tick, takes the tick's frame for one
    of the old mode and controls the vehicles once more than it should: equal seeds then give different drives on a busy
    machine. A cycle in the new mode shows that it is through with the old one. To be called before there are vehicles
    of the manager's own, for which the cycle would count.
    """
    manager = client.get_trafficmanager(port)
    manager.set_synchronous_mode(True)
    for _ in range(_MOST_CYCLES):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), _CALL_TIMEOUT_S) as connection:
            connection.settimeout(_CYCLE_S)
            try:
                _call(connection, 1, b"synchronous_tick")
            except TimeoutError:
                # As in :class:`Ticker`; the manager's port answers one call at a time, but this process may ask it too.
                manager.set_synchronous_mode(False)
                manager.set_synchronous_mode(True)
                continue
        break
    return manager


def wake_traffic_manager(port: int) -> None:
    """Switch the synchronous mode of the Traffic Manager at a port of this machine off and on, which wakes its thread.

    The call is ``set_synchronous_mode`` of the manager's msgpack-RPC server.
    """
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), _CALL_TIMEOUT_S) as connection:
        for number, mode in ((1, False), (2, True)):
            _call(connection, number, b"set_synchronous_mode", mode)


def _call(connection: socket.socket, number: int, name: bytes, *modes: bool) -> None:
    """A call of msgpack-RPC, ``[0, number, name, modes]``; waits for the answer."""
    head = bytes((0x94, 0x00, number, 0xA0 | len(name)))
    connection.sendall(head + name + bytes((0x90 | len(modes), *(0xC3 if mode else 0xC2 for mode in modes))))
    connection.recv(64)
