"""Stand-in CARLA servers and environments on them; everything here needs the real CARLA client."""

from __future__ import annotations

import gymnasium as gym
import pytest

from tests.carla_server.process import StandIn

from .real_maps import load_map

SMALL = {"host": "127.0.0.1", "frame_size": 32, "vector": (), "timeout_s": 30.0, "image_timeout_s": 30.0}
"""Settings that make the tests fast, and patient; the vector has tests of its own."""


@pytest.fixture(scope="session")
def shared_server():
    """A server for tests that leave it as they found it."""
    pytest.importorskip("carla")
    with StandIn() as server:
        yield server


@pytest.fixture
def server():
    """A server of the test's own, for faults."""
    pytest.importorskip("carla")
    with StandIn() as server:
        yield server


@pytest.fixture
def server_with_mesh(tmp_path, monkeypatch):
    """A server whose towns have a navigation mesh for pedestrians."""
    pytest.importorskip("carla")
    monkeypatch.setenv("HOME", str(tmp_path))  # where CARLA's client keeps the meshes
    with StandIn(None, "--navigation") as server:
        yield server


@pytest.fixture
def make_env():
    """Makes environments that are closed after the test."""
    made = []

    def make(server: StandIn | None, **settings):
        where = {} if server is None else {"port": server.port}
        env = gym.make("CarlaDriving-v0", disable_env_checker=True, **{**SMALL, **where, **settings})
        made.append(env)
        return env

    yield make
    for env in made:
        env.close()


@pytest.fixture
def env(shared_server, make_env):
    """An environment on the shared server."""
    return make_env(shared_server)


@pytest.fixture(scope="session", params=("Town01", "Town04", "Town10HD"))
def real_map(request):
    """Maps of CARLA's own towns of different kinds: a small grid, hills with bridges and motorways, a city centre."""
    return load_map(request.param)
