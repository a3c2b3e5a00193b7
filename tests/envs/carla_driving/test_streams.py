"""Streams of the light server: all messages in order to those who read, and no waiting for those who do not."""

from __future__ import annotations

import socket
import struct
import time

import pytest

pytest.importorskip("msgpack")
from wm_gym.envs.carla_light.interference import Interference
from wm_gym.envs.carla_light.towns import Towns
from wm_gym.envs.carla_light.wire import StreamServer
from wm_gym.envs.carla_light.world import WORLD_STREAM, World

STREAM = 7


@pytest.fixture
def streams():
    server = StreamServer("127.0.0.1", 0)
    server.start()
    yield server
    server.close()


def subscribe(streams: StreamServer, stream_id: int = STREAM) -> socket.socket:
    """A client's connection, once the server knows it."""
    connection = socket.create_connection(("127.0.0.1", streams.port), 60.0)
    connection.sendall(struct.pack("<I", stream_id))
    while not streams.is_listened_to(stream_id):
        time.sleep(0.01)
    return connection


def receive(connection: socket.socket) -> bytes:
    (length,) = struct.unpack("<I", receive_exactly(connection, 4))
    return receive_exactly(connection, length)


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += connection.recv(size - len(data))
    return data


def test_messages_arrive_whole_and_in_order_however_slowly_they_are_read(streams):
    sizes = [10, 500_000, 3, 2_000_000, 20, 700_000, 5]
    with subscribe(streams) as connection:
        for number, size in enumerate(sizes):
            streams.send(STREAM, bytes([number]) * size)
        for number, size in enumerate(sizes):
            assert receive(connection) == bytes([number]) * size
            time.sleep(0.02)
        streams.send(STREAM, b"at once")
        assert receive(connection) == b"at once"


def test_one_who_never_reads_holds_up_nobody_and_later_gets_whole_messages(streams):
    with subscribe(streams) as connection:
        begun = time.monotonic()
        for number in range(200):
            streams.send(STREAM, bytes([number]) * 200_000)
        assert time.monotonic() - begun < 30.0
        numbers = []
        while not numbers or numbers[-1] < 199:
            message = receive(connection)
            assert len(message) == 200_000
            assert len(set(message)) == 1
            numbers.append(message[0])
    assert numbers == sorted(numbers)
    assert len(numbers) < 200


def test_a_stream_that_is_forgotten_ends(streams):
    with subscribe(streams):
        streams.forget(STREAM)
        assert not streams.is_listened_to(STREAM)
        streams.send(STREAM, b"to nobody")


def test_no_frame_comes_while_a_town_is_loaded_and_the_next_one_says_that_it_is_new(streams):
    """CARLA's library crashes where a frame comes in while it ends its stream of frames to load a town."""
    world = World(Towns(), streams, Interference())
    with subscribe(streams, WORLD_STREAM) as connection:
        first = world.episode
        world.load("Town02")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(60.0)
        flags = []
        for _ in range(2):
            world.tick()
            # Behind the header of a sensor's message: the episode, the time, the step, map origin, state flags.
            episode, *_, state = struct.unpack_from("<Qdf3iI", receive(connection), struct.calcsize("<QQd6f"))
            assert episode == first + 1
            flags.append(state)
        assert flags == [1, 0]
