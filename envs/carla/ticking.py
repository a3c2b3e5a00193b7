"""Ticks of a synchronous server. Used in the client process only."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import carla

_LOOK_EVERY_S = 0.1
_STUCK_AFTER_LOOKS = 3


class Ticker:
    """Ticks the world, and frees a tick that is stuck in the Traffic Manager.

    In synchronous mode CARLA's ``world.tick()`` hands each frame to the thread of the Traffic Manager and waits for it,
    without a time limit. Both sides set their flag and notify the other one without holding its lock, so a notification
    can fall between the other's look at the flag and its sleep: then both sleep for ever. It is rare on a slow server
    and less rare on a fast one or a busy machine. Here a thread looks on: where the server's frame has come and the
    tick still does not return, it notifies once more, by switching the manager's synchronous mode off and on.

    Args:
        world: The world.
        timeout_s: Longest wait for the server.
    """

    def __init__(self, world: carla.World, timeout_s: float) -> None:
        self._world = world
        self._timeout_s = timeout_s
        self._manager: carla.TrafficManager | None = None
        self._tick_begins = threading.Event()
        self._tick_ends = threading.Event()
        self._frame_before = 0
        self._is_watching = False

    def watch(self, manager: carla.TrafficManager | None) -> None:
        """Look after this Traffic Manager from now on; ``None`` for none."""
        self._manager = manager
        if manager is not None and not self._is_watching:
            self._is_watching = True
            threading.Thread(target=self._look_on, daemon=True).start()

    def tick(self) -> int:
        """Simulate one frame; returns its number, with the world's snapshot at it or later.

        Raises:
            RuntimeError: The server gave no answer in time.
        """
        if self._manager is None:
            return int(self._world.tick(self._timeout_s))
        self._frame_before = self._world.get_snapshot().frame
        self._tick_ends.clear()
        self._tick_begins.set()
        try:
            return int(self._world.tick(self._timeout_s))
        finally:
            self._tick_begins.clear()
            self._tick_ends.set()

    def _look_on(self) -> None:
        while True:
            self._tick_begins.wait()
            looks = 0
            while not self._tick_ends.wait(_LOOK_EVERY_S):
                looks += self._world.get_snapshot().frame > self._frame_before
                if looks >= _STUCK_AFTER_LOOKS and self._manager is not None:
                    self._manager.set_synchronous_mode(False)
                    self._manager.set_synchronous_mode(True)
                    looks = 0
