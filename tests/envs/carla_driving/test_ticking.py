"""A tick that is stuck in the Traffic Manager is freed."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from tests.carla_server.client import run_script
from tests.carla_server.process import StandIn, free_port
from wm_gym.envs.carla.ticking import Ticker, synchronous_manager, wake_traffic_manager

pytest.importorskip("carla.libcarla")


class StuckWorld:
    """A world whose tick returns only when something calls the manager's port, as a stuck one does."""

    def __init__(self) -> None:
        self.frame = 7
        self.is_freed = threading.Event()

    def get_snapshot(self):
        return self

    def tick(self, timeout_s):
        self.frame += 1
        assert self.is_freed.wait(60.0)
        return self.frame


def test_a_stuck_tick_is_freed_by_a_call_to_the_managers_port():
    world, port = StuckWorld(), free_port()
    received = []

    def serve(listener):
        connection, _ = listener.accept()
        for _ in range(2):
            received.append(connection.recv(64))
            connection.sendall(b"\x94\x01\x01\xc0\xc0")
        world.is_freed.set()

    with socket.create_server(("127.0.0.1", port)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        ticker = Ticker(world, 5.0)
        ticker.watch(port)
        assert ticker.tick() == 8
    deadline = time.monotonic() + 60.0
    while ticker.freed == 0 and time.monotonic() < deadline:
        time.sleep(0.01)  # it is counted after the call, which may end after the tick
    assert ticker.freed == 1
    assert [b"set_synchronous_mode" in request for request in received] == [True, True]


REAL_MANAGER = """
import os, sys, time
import carla
from tests.carla_server.client import ticked_world
from wm_gym.envs.carla.ticking import Ticker, wake_traffic_manager

client = carla.Client("127.0.0.1", int(sys.argv[1]))
client.set_timeout(60.0)
world = ticked_world(client)
port = int(sys.argv[2])
manager = client.get_trafficmanager(port)
manager.set_synchronous_mode(True)
blueprint = world.get_blueprint_library().find("vehicle.tesla.model3")
vehicle = world.spawn_actor(blueprint, world.get_map().get_spawn_points()[0])
vehicle.set_autopilot(True, port)
ticker = Ticker(world, 60.0)
ticker.watch(port)  # a bare tick can be stuck here for ever
for number in range(60):
    ticker.tick()
    if number % 20 == 10:
        wake_traffic_manager(port)
before, frame = vehicle.get_location(), world.get_snapshot().frame
time.sleep(0.5)
still = vehicle.get_location() == before and world.get_snapshot().frame == frame
print("speed", vehicle.get_velocity().length(), "still", still, flush=True)
os._exit(0)  # the Traffic Manager may abort a process at its end
"""


def test_waking_a_real_traffic_manager_changes_nothing_else(server):
    """In a process of its own: a Traffic Manager whose server ends would take this one along."""
    _, speed, _, still = run_script(REAL_MANAGER, server.port, free_port()).split()
    assert float(speed) > 1.0  # it still drives
    assert still == "True"  # and the world still waits for ticks


def test_waking_nobody_is_no_error():
    wake_traffic_manager(free_port())


NAPPING_MANAGER = """
import os, sys, time
import carla
from tests.carla_server.client import ticked_world
from wm_gym.envs.carla.ticking import Ticker, synchronous_manager

class Client:
    def get_trafficmanager(self, port):
        manager = client.get_trafficmanager(port)
        # Now its thread sleeps for 50 ms after each look at the mode, as it may do anywhere on a busy machine.
        manager.set_hybrid_physics_mode(sys.argv[3] == "naps")
        time.sleep(0.005)
        return manager

client = carla.Client("127.0.0.1", int(sys.argv[1]))
client.set_timeout(60.0)
world = ticked_world(client)
blueprint = world.get_blueprint_library().find("vehicle.tesla.model3")
place = world.get_map().get_spawn_points()[0]
place.rotation.yaw += 10.0  # it has something to correct
vehicle = world.spawn_actor(blueprint, place)
world.tick()
port = int(sys.argv[2])
manager = synchronous_manager(Client(), port)
manager.set_hybrid_physics_mode(False)
manager.set_random_device_seed(1)
vehicle.set_autopilot(True, port)
ticker = Ticker(world, 60.0)
ticker.watch(port)
for number in range(4):
    ticker.tick()
    time.sleep(0.1)
    print(vehicle.get_control(), flush=True)
os._exit(0)  # the Traffic Manager may abort a process at its end
"""


def test_a_manager_whose_thread_lags_behind_controls_vehicles_no_more_often():
    """Its thread may have looked at the mode just before that was set, and go on only after the next tick."""
    said = []
    for thread in ("is awake", "naps"):
        with StandIn() as server:
            printed = run_script(NAPPING_MANAGER, server.port, free_port(), thread)
        said.append([line for line in printed.splitlines() if line.startswith("VehicleControl")])
    assert len(said[0]) == 4
    assert said[0] == said[1]


def test_a_manager_that_lost_a_call_is_asked_again():
    port, modes, received = free_port(), [], []

    class Manager:
        set_synchronous_mode = modes.append

    class Client:
        get_trafficmanager = staticmethod(lambda port: Manager)

    def serve(listener):
        connection, _ = listener.accept()
        received.append(connection.recv(64))
        again, _ = listener.accept()
        received.append(again.recv(64))
        again.sendall(b"\x94\x01\x01\xc0\xc3")
        again.recv(64)

    with socket.create_server(("127.0.0.1", port)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        assert synchronous_manager(Client, port) is Manager
    assert modes == [True, False, True]
    assert [b"synchronous_tick" in request for request in received] == [True, True]


def test_a_manager_elsewhere_is_left_alone():
    class Manager:
        set_synchronous_mode = staticmethod(lambda mode: None)

    class Client:
        get_trafficmanager = staticmethod(lambda port: Manager)

    assert synchronous_manager(Client, free_port()) is Manager
