"""``wm-gym doctor --carla`` and ``wm-gym bench --carla`` on the stand-in server."""

from __future__ import annotations

import json

import pytest

from tests.carla_server.process import free_port
from wm_gym.cli.main import main
from wm_gym.envs.carla.benchmark import _bare_client
from wm_gym.envs.carla.config import ConnectionConfig
from wm_gym.errors import SimulatorLostError


def test_doctor_drives_on_a_sound_server_and_leaves_it_clean(server, capsys):
    assert main(["doctor", "--carla", server.address]) == 0
    out = capsys.readouterr().out
    assert "ok       versions: server 0.9.16, client 0.9.16" in out
    assert "ok       drive: 20 ticks in synchronous mode" in out
    assert "ok       clean-up: actors destroyed, settings put back" in out
    assert server.wait_until_clean()


@pytest.mark.slow
def test_doctor_names_what_is_wrong(server, capsys):
    assert main(["doctor", "--carla", f"127.0.0.1:{free_port()}"]) == 1
    assert "nothing listens there; start it" in capsys.readouterr().out
    server.faults(version="0.9.13")
    assert main(["doctor", "--carla", server.address]) == 1
    assert "run `pip install carla==0.9.13`" in capsys.readouterr().out
    server.faults(version="0.9.16", drop_images_from_frame=0)
    assert main(["doctor", "--carla", server.address]) == 1
    assert "the camera 'front' sent no first picture" in capsys.readouterr().out
    assert server.wait_until_clean()


def test_doctor_without_a_server_says_what_the_machine_has(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "ok       CARLA client: carla 0.9" in out
    assert "Docker" in out


@pytest.mark.slow
def test_bench_compares_the_environment_with_a_bare_client(server, tmp_path, capsys):
    file = tmp_path / "bench.json"
    command = ["bench", "--carla", server.address, "--seconds", "0.2", "--frame-size", "32", "--json", str(file)]
    assert main(command) == 0
    result = json.loads(file.read_text())
    assert [row["loop"] for row in result["rows"]] == ["environment", "bare client"]
    assert result["ratio"]["median"] > 0
    assert "Environment / bare client:" in capsys.readouterr().out
    assert server.wait_until_clean()


@pytest.mark.parametrize("fault", [{"drop_images_from_frame": 0}, {"drop_image_every": 25}])
def test_bench_without_pictures_is_one_sentence_and_leaves_nothing(server, fault):
    server.faults(**fault)
    connection = ConnectionConfig(host="127.0.0.1", port=server.port, timeout_s=3.0)
    with (
        pytest.raises(SimulatorLostError, match=r"the camera 'front' sent .*\.$"),
        _bare_client(connection, 32) as step,
    ):
        for _ in range(30):
            step()
    assert server.wait_until_clean()


def test_bench_with_late_pictures_measures(server):
    server.faults(delay_images_s=0.3)
    with _bare_client(ConnectionConfig(host="127.0.0.1", port=server.port), 32) as step:
        step()
    assert server.wait_until_clean()
