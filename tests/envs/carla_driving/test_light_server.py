"""``wm-gym carla-light`` and ``launch="light"``: the server as a program, with the real client."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys

import gymnasium as gym
import pytest

from tests.carla_server.client import run_script
from tests.carla_server.process import free_port
from wm_gym.cli.main import main
from wm_gym.envs.carla.config import ConnectionConfig
from wm_gym.envs.carla.server import CarlaServer
from wm_gym.errors import ConfigError, SimulatorError

_PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores Ctrl-C
from wm_gym.cli.main import main
sys.exit(main())
"""


@contextlib.contextmanager
def program(*options: str):
    """The command in a process of its own, once it has said that it is ready."""
    command = [sys.executable, "-c", _PROGRAM, "carla-light", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_the_real_client_until_it_is_ended(end):
    carla = pytest.importorskip("carla.libcarla")
    port = free_port()
    with program("--port", str(port), "--town", "Town02") as (process, greeting):
        assert f"127.0.0.1:{port} in Town02" in greeting
        client = carla.Client("127.0.0.1", port)
        client.set_timeout(60.0)
        assert client.get_world().get_map().name == "Carla/Maps/Town02"
        process.send_signal(end)
        out, errors = process.communicate(timeout=60)
        assert (process.returncode, out, errors) == (0, "", "")


def test_a_taken_port_is_one_sentence(server, capsys):
    assert main(["carla-light", "--port", str(server.port)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"wm-gym carla-light: port {server.port} or {server.port + 1} of 127.0.0.1 is taken")
    assert told.count("\n") == 1


def test_an_unknown_town_is_one_sentence(capsys):
    assert main(["carla-light", "--town", "Nowhere"]) == 2
    assert "there is no town 'Nowhere'" in capsys.readouterr().err
    pytest.importorskip("carla.libcarla")
    with pytest.raises(ConfigError, match="there is no town 'Nowhere'"):
        gym.make("CarlaDriving-v0", launch="light:Nowhere")


def test_without_msgpack_one_sentence_says_what_to_install(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "msgpack" else find(name, *rest)
    )
    assert main(["carla-light"]) == 2
    assert "pip install 'wm_gym[carla]'" in capsys.readouterr().err
    with pytest.raises(SimulatorError, match="needs the package msgpack"):
        CarlaServer(ConnectionConfig(launch="light")).start()


def test_the_environment_launches_it_and_ends_it(make_env):
    pytest.importorskip("carla.libcarla")
    env = make_env(None, port=free_port(), launch="light:Town02", launch_options=["--host", "127.0.0.1"])
    _, info = env.reset(seed=1)
    assert info["town"] == "Town02"
    assert info["speed_limit"] == pytest.approx(30 / 3.6)
    group = env.unwrapped._server.group
    env.close()
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


LIGHTS_OF_A_VEHICLE = """
import os, sys
import carla
from tests.carla_server.client import ticked_world

client = carla.Client("127.0.0.1", int(sys.argv[1]))
client.set_timeout(60.0)
world = ticked_world(client)
light = world.get_actors().filter("traffic.traffic_light")[0]
light.set_state(carla.TrafficLightState.Red)
light.freeze(True)
place = light.get_stop_waypoints()[0]
blueprint = world.get_blueprint_library().find("vehicle.tesla.model3")
for transform in (place.transform, place.previous(30.0)[0].transform):
    transform.location.z += 0.5
    vehicle = world.spawn_actor(blueprint, transform)
    world.tick()
    world.tick()
    print(vehicle.is_at_traffic_light(), vehicle.get_traffic_light_state(), flush=True)
    vehicle.destroy()
    world.tick()
os._exit(0)
"""


def test_away_from_lights_a_vehicle_is_told_green_as_carla_does(server):
    """With any other state, the Traffic Manager has it stop at the next junction as at one without lights."""
    assert run_script(LIGHTS_OF_A_VEHICLE, server.port).split() == ["True", "Red", "False", "Green"]
