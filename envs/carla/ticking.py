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


def wake_traffic_manager(port: int) -> None:
    """Switch the synchronous mode of the Traffic Manager at a port of this machine off and on, which wakes its thread.

    The call is ``set_synchronous_mode`` of the manager's msgpack-RPC server.
    """
    name = b"set_synchronous_mode"
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), _CALL_TIMEOUT_S) as connection:
        for number, mode in ((1, False), (2, True)):
            # msgpack: [0, number, name, [mode]]
            head = bytes((0x94, 0x00, number, 0xA0 | len(name)))
            connection.sendall(head + name + bytes((0x91, 0xC3 if mode else 0xC2)))
            connection.recv(64)
