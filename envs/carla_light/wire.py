"""CARLA's two wires: msgpack-RPC on one port, a byte stream for each sensor on the next.

Requests are ``[0, id, method, arguments]``, replies ``[1, id, error, result]`` (the protocol of rpclib); the first
argument is CARLA's ``Metadata``, which says whether the client waits. A result is CARLA's ``Response``:
``[[1, value]]`` or ``[[0, [message]]]``, and for a call without a value ``[[False]]`` or ``[[True, [message]]]``.

On the streaming port a client first names a stream (uint32) and then receives messages, each with its length (uint32)
in front.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import msgpack

Handler = Callable[[str, list[Any]], Any]
"""Answers a call by its method and arguments with the whole result, as from :func:`success`."""

_RECEIVE_BYTES = 1 << 16
_DO_NOT_WAIT: int | None = getattr(socket, "MSG_DONTWAIT", None)
"""For ``send``; not on Windows, where every message waits for another thread."""
_TCP = 1
_ADDRESS_NOT_SET = 0


def success(value: Any) -> list[Any]:
    """The result of a call that returns a value."""
    return [[1, value]]


def done() -> list[Any]:
    """The result of a call that returns nothing."""
    return [[False]]


def failure(message: str) -> list[Any]:
    """The result of a call that returns a value and went wrong."""
    return [[0, [message]]]


def stream_token(stream_id: int, port: int) -> list[Any]:
    """CARLA's ``Token``: stream, port and protocol; the client puts in the server's address."""
    return [token_bytes(stream_id, port)]


def token_bytes(stream_id: int, port: int) -> bytes:
    """The 24 bytes of a token."""
    return struct.pack("<IHBB16x", stream_id, port, _TCP, _ADDRESS_NOT_SET)


class _Listener:
    """A listening socket with one thread for each connection."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_server((host, port), backlog=64)
        self.port: int = self._socket.getsockname()[1]
        self._connections: set[socket.socket] = set()
        self._is_closed = False
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def start(self) -> None:
        """Accept connections."""
        self._thread.start()

    def close(self) -> None:
        """Drop every connection and stop listening."""
        self._is_closed = True
        for connection in (self._socket, *list(self._connections)):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.add(connection)
            threading.Thread(target=self._serve_until_closed, args=(connection,), daemon=True).start()

    def _serve_until_closed(self, connection: socket.socket) -> None:
        try:
            self.serve(connection)
        except OSError:
            pass  # the client went away
        finally:
            self._connections.discard(connection)
            connection.close()

    def serve(self, connection: socket.socket) -> None:
        """Talk to one client."""
        raise NotImplementedError


class RpcServer(_Listener):
    """Answers calls, one after another for each connection.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 chooses one.
        handler: Answers a call.
    """

    def __init__(self, host: str, port: int, handler: Handler) -> None:
        super().__init__(host, port)
        self._handler = handler

    def serve(self, connection: socket.socket) -> None:
        """Answer the calls of one client."""
        unpacker = msgpack.Unpacker(raw=False, strict_map_key=False)
        while data := connection.recv(_RECEIVE_BYTES):
            unpacker.feed(data)
            for kind, number, *call in unpacker:
                if kind != 0:
                    continue
                method, (_, *arguments) = call
                result = self._handler(method, arguments)
                connection.sendall(msgpack.packb([1, number, None, result]))


class StreamServer(_Listener):
    """Sends each stream's messages to all of its subscribers."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self._lock = threading.Lock()
        self._subscribers: dict[int, set[_Subscriber]] = {}

    def serve(self, connection: socket.socket) -> None:
        """Send one subscriber its stream."""
        header = connection.recv(4, socket.MSG_WAITALL)
        if len(header) < 4:
            return
        (stream_id,) = struct.unpack("<I", header)
        subscriber = _Subscriber(connection)
        with self._lock:
            self._subscribers.setdefault(stream_id, set()).add(subscriber)
        threading.Thread(target=subscriber.wait_for_end, daemon=True).start()
        try:
            subscriber.send_waiting()
        finally:
            with self._lock:
                self._subscribers[stream_id].discard(subscriber)

    def send(self, stream_id: int, message: bytes) -> None:
        """Send a message to everyone who listens to the stream; a slow client holds up nobody."""
        with self._lock:
            subscribers = list(self._subscribers.get(stream_id, ()))
        for subscriber in subscribers:
            subscriber.send(message)

    def is_listened_to(self, stream_id: int) -> bool:
        """Whether anyone subscribes to the stream."""
        with self._lock:
            return bool(self._subscribers.get(stream_id))

    def forget(self, stream_id: int) -> None:
        """End a stream and drop its subscribers."""
        with self._lock:
            subscribers = self._subscribers.pop(stream_id, set())
            self._subscribers[stream_id] = set()
        for subscriber in subscribers:
            subscriber.end()


class _Subscriber:
    """One who listens to a stream.

    A message goes out at once, in the thread that sends it: CARLA's client keeps a core busy until it has come. What
    the connection does not take at once waits for a thread of the subscriber's own; beyond ``MAX_WAITING`` messages old
    ones are dropped.
    """

    MAX_WAITING = 64

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        """The first may be the rest of a message whose beginning has been sent."""
        self._is_sending = self._is_ended = False

    def send(self, message: bytes) -> None:
        """Send a message, now or later."""
        data = struct.pack("<I", len(message)) + message
        with self._changed:
            if not self._waiting and not self._is_sending and _DO_NOT_WAIT is not None:
                with contextlib.suppress(OSError):
                    data = data[self._connection.send(data, _DO_NOT_WAIT) :]
                if not data:
                    return
            if len(self._waiting) >= self.MAX_WAITING:
                del self._waiting[1]
            self._waiting.append(data)
            self._changed.notify()

    def send_waiting(self) -> None:
        """Send what has to wait, until the end."""
        while True:
            with self._changed:
                self._is_sending = False
                self._changed.wait_for(lambda: self._waiting or self._is_ended)
                if self._is_ended:
                    return
                data = self._waiting.popleft()
                self._is_sending = True
            self._connection.sendall(data)

    def wait_for_end(self) -> None:
        """A subscriber never speaks again; what is read next is the end of its connection."""
        with contextlib.suppress(OSError):
            self._connection.recv(1)
        self.end()

    def end(self) -> None:
        """Send nothing more."""
        with self._changed:
            self._is_ended = True
            self._changed.notify()
