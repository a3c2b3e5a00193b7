"""Pedestrians on a navigation mesh, led by CARLA's own client."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

BRAKE = np.array([0.0, 0.0, 1.0, 1.0], np.float32)
TRAFFIC = {"walkers": 6}


def walks(server, env, seed: int, steps: int = 60) -> np.ndarray:
    """Where the pedestrians are at each step of an episode: ``(steps, walkers, 2)``."""
    env.reset(seed=seed, options={"spawn_point": 5})
    numbers = sorted(actor[0] for actor in server.spawned() if actor[1].startswith("walker."))
    places = []
    for _ in range(steps):
        env.step(BRAKE)
        poses = server.summary()["poses"]
        places.append([poses[number][0][:2] for number in numbers])
    return np.array(places)


def test_they_walk_on_the_mesh_and_equal_seeds_give_equal_ways(server_with_mesh, make_env):
    server, env = server_with_mesh, make_env(server_with_mesh, traffic=TRAFFIC)
    first = walks(server, env, 1)
    assert first.shape[1] >= 4
    assert np.hypot(*(first[-1] - first[0]).T).max() > 1.0
    np.testing.assert_allclose(walks(server, env, 1), first, atol=1e-3)
    other = walks(server, env, 2)
    assert other.shape != first.shape or np.abs(other - first).max() > 1.0
    env.close()
    np.testing.assert_allclose(walks(server, make_env(server, traffic=TRAFFIC), 1), first, atol=1e-3)


def test_close_leaves_neither_pedestrians_nor_their_controllers(server_with_mesh, make_env):
    env = make_env(server_with_mesh, traffic=TRAFFIC)
    for seed in range(2):
        env.reset(seed=seed)
        env.step(BRAKE)
    kinds = [actor[1] for actor in server_with_mesh.spawned()]
    walkers = sum(kind.startswith("walker.") for kind in kinds)
    assert walkers == kinds.count("controller.ai.walker") >= 4
    env.close()
    assert server_with_mesh.wait_until_clean()


def test_controllers_that_a_killed_client_left_are_removed(server_with_mesh, make_env):
    env = make_env(server_with_mesh, traffic=TRAFFIC)
    env.reset(seed=1)
    process = env.unwrapped._client._process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    env.unwrapped._client = None  # as if this process had died as well
    assert any(actor[1] == "controller.ai.walker" for actor in server_with_mesh.spawned())
    other = make_env(server_with_mesh)
    other.reset(seed=1)
    other.close()
    assert server_with_mesh.wait_until_clean()


@pytest.mark.parametrize("victim", ["walker.", "controller."])
def test_pedestrians_that_another_client_destroys_are_no_obstacle(server_with_mesh, make_env, victim):
    from tests.carla_server.process import call

    env = make_env(server_with_mesh, traffic=TRAFFIC)
    env.reset(seed=1)
    for number, kind, _ in server_with_mesh.spawned():
        if kind.startswith(victim):
            call(server_with_mesh.port, "destroy_actor", number)
    env.step(BRAKE)
    env.reset(seed=2)
    env.step(BRAKE)
    env.close()
    assert server_with_mesh.wait_until_clean()
