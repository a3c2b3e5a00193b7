"""What is read from a page, and what a step looks like on its way there."""

import cv2
import numpy as np
import pytest

from wm_gym.agents.play.guard import Guard, is_loopback
from wm_gym.agents.play.messages import RubbishError, Start, decode_step, encode_step, parse_message

RUBBISH = (
    "",
    "hello",
    "[]",
    "null",
    "{}",
    '{"kind": "fly"}',
    '{"kind": "start", "mode": "nowhere"}',
    '{"kind": "start", "seed": "3"}',
    '{"kind": "start", "seed": -1}',
    '{"kind": "start", "seed": 1.5}',
    '{"kind": "speed", "speed": 0}',
    '{"kind": "speed", "speed": NaN}',
    '{"kind": "horizon", "steps": 1000000000000000000000000000000}',
    '{"kind": "controls", "steering": 2, "throttle": 0, "brake": 0}',
    '{"kind": "controls", "steering": Infinity, "throttle": 0, "brake": 0}',
    '{"kind": "pause", "paused": true, "more": 1}',
    "[" * 3000,
    '{"kind": "again", "' + "x" * 3000 + '": 1}',
)


@pytest.mark.parametrize("text", RUBBISH, ids=range(len(RUBBISH)))
def test_rubbish_is_refused_in_a_clause(text):
    with pytest.raises(RubbishError, match=r"^it sent .+") as refused:
        parse_message({"type": "websocket.receive", "text": text})
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 250


def test_bytes_are_refused():
    with pytest.raises(RubbishError, match="bytes"):
        parse_message({"type": "websocket.receive", "bytes": b"\x00\x01"})


def test_a_message_is_read():
    message = parse_message({"type": "websocket.receive", "text": '{"kind": "start", "mode": "both", "seed": 4}'})
    assert message == Start(kind="start", mode="both", seed=4)


def test_small_pictures_arrive_without_loss_and_large_ones_small(rng):
    small = rng.integers(0, 256, (64, 48, 3), np.uint8)
    large = np.full((256, 256, 3), (10, 200, 90), np.uint8)
    header, pictures = decode_step(encode_step({"number": 3}, {"dream": small, "simulator": large}))
    assert header["number"] == 3
    assert [listed["type"] for listed in header["pictures"]] == ["image/png", "image/jpeg"]

    def read(name):
        return cv2.imdecode(np.frombuffer(pictures[name], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]

    np.testing.assert_array_equal(read("dream"), small)
    np.testing.assert_allclose(read("simulator").astype(int), large, atol=6)


PATH = "/secret/drive"


@pytest.mark.parametrize(
    ("listens", "path", "headers", "refused"),
    [
        ("127.0.0.1", PATH, {"host": "127.0.0.1:8765", "origin": "http://127.0.0.1:8765"}, None),
        ("127.0.0.1", PATH, {"host": "localhost:9000", "origin": "http://localhost:9000"}, None),  # through a tunnel
        ("127.0.0.1", "/Secret/drive", {"host": "localhost", "origin": "http://localhost"}, "token"),
        ("127.0.0.1", "/", {"host": "localhost", "origin": "http://localhost"}, "token"),
        ("127.0.0.1", "/secre/drive", {"host": "localhost", "origin": "http://localhost"}, "token"),
        ("127.0.0.1", PATH, {"host": "localhost:8765", "origin": "http://localhost:3000"}, "Origin"),
        ("127.0.0.1", PATH, {"host": "localhost:8765", "origin": "http://evil.example"}, "Origin"),
        ("127.0.0.1", PATH, {"host": "localhost:8765", "origin": "null"}, "Origin"),
        ("127.0.0.1", PATH, {"host": "localhost:8765", "origin": "http://[oops"}, "Origin"),
        ("127.0.0.1", PATH, {"host": "localhost:8765"}, "no Origin"),
        # A name of the attacker's that leads to this machine.
        ("127.0.0.1", PATH, {"host": "evil.example:8765", "origin": "http://evil.example:8765"}, "Host"),
        ("127.0.0.1", PATH, {"host": "[oops", "origin": "http://[oops"}, "Host"),
        ("127.0.0.1", PATH, {"origin": "http://localhost"}, "Host"),
        ("127.0.0.1", PATH, {"host": "192.168.0.7:8765", "origin": "http://192.168.0.7:8765"}, "Host"),
        ("0.0.0.0", PATH, {"host": "192.168.0.7:8765", "origin": "http://192.168.0.7:8765"}, None),
        ("0.0.0.0", PATH, {"host": "evil.example:8765", "origin": "http://evil.example:8765"}, "Host"),
        ("car.lan", PATH, {"host": "car.lan:8765", "origin": "http://car.lan:8765"}, None),
    ],
)
def test_who_may_open_a_websocket(listens, path, headers, refused):
    refusal = Guard("secret", listens).refusal(path, headers, is_websocket=True)
    assert (refusal is None) == (refused is None)
    assert refused is None or refused in refusal


def test_a_page_may_be_asked_for_without_an_origin():
    guard = Guard("secret")
    assert guard.refusal("/secret/", {"host": "127.0.0.1:1"}, is_websocket=False) is None
    assert guard.refusal("/secret/", {"host": "127.0.0.1:1", "origin": "http://x"}, is_websocket=False) is not None


def test_what_is_loopback():
    assert [is_loopback(host) for host in ("localhost", "127.0.0.1", "127.8.0.1", "::1")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "192.168.0.7", "::", "car.lan")] == [False] * 4
