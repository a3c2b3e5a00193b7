"""Who may ask for a page."""

import pytest

from wm_gym.agents.web.guard import Guard, is_loopback

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
