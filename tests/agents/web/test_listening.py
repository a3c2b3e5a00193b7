"""What a server needs before it starts."""

import pytest

from wm_gym.agents.web import listening
from wm_gym.agents.web.listening import check_requirements, listen, warning_of
from wm_gym.cli.main import main
from wm_gym.errors import ConfigError, OutputError


@pytest.mark.parametrize("command", [["play"], ["view", "nowhere"]])
def test_a_port_that_is_taken_is_said_in_a_sentence(command, capsys):
    pytest.importorskip("uvicorn", reason="the server needs the extra play")
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OutputError, match=f"port {port} of 127.0.0.1 is taken"):
            listen("127.0.0.1", port)
        assert main([*command, "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"port {port}" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("127.0.0.1", -1), ("no such host", 0)])
def test_a_place_that_is_none_is_said_in_a_sentence(host, port):
    with pytest.raises(ConfigError):
        listen(host, port)


def test_missing_libraries_are_said_in_a_sentence(monkeypatch):
    monkeypatch.setattr(listening, "_NEEDED", ("uvicorn", "no_such_library"))
    with pytest.raises(ConfigError, match=r"wm-gym view needs no_such_library.*pip install 'wm_gym\[play\]'"):
        check_requirements("wm-gym view")


def test_a_page_that_others_reach_is_warned_of():
    assert warning_of("127.0.0.1", "drive") is None
    assert "can drive" in warning_of("0.0.0.0", "drive")
