"""The bird's-eye view as what ``CarlaDriving-v0`` observes, on the stand-in with the real client."""

import numpy as np
import pytest

from wm_gym.agents.behaviours import make_behaviour
from wm_gym.envs.carla.birdview import COLORS, Layer
from wm_gym.envs.simulators import describe_simulator

carla = pytest.importorskip("carla")


def near(picture, layer):
    """Where a picture has a layer's colour."""
    return (np.abs(picture.astype(int) - COLORS[layer]).max(axis=-1) < 25).nonzero()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WM_GYM_CACHE", str(tmp_path))


def test_the_picture_shows_ego_and_route_and_the_server_renders_nothing(shared_server, make_env):
    env = make_env(shared_server, view="birdview", frame_size=64)
    frame, _ = env.reset(seed=1)
    assert frame.shape == env.observation_space.shape == (64, 64, 3)
    rows, columns = near(frame, Layer.EGO)
    assert abs(columns.mean() - 31.5) < 1
    assert 0.7 * 64 < rows.mean() < 0.9 * 64
    rows, columns = near(frame, Layer.ROUTE)
    ahead = columns[(rows > 41) & (rows < 47)]
    assert len(ahead) > 10
    assert abs(ahead.mean() - 31.5) < 4
    world = carla.Client("127.0.0.1", shared_server.port).get_world()
    assert world.get_settings().no_rendering_mode
    assert not world.get_actors().filter("sensor.camera.*")
    before = frame.copy()
    for _ in range(20):
        frame, *_ = env.step(np.array([0, 1, 0, 1], np.float32))
    assert (frame != before).any()
    env.close()
    assert not world.get_settings().no_rendering_mode


def test_equal_seeds_give_equal_pictures(shared_server, make_env):
    env = make_env(shared_server, view="birdview", frame_size=(64, 48))
    pictures = []
    for _ in range(2):
        frame, _ = env.reset(seed=4)
        frames = [frame]
        for _ in range(5):
            frames.append(env.step(np.array([0.2, 0.7, 0, 1], np.float32))[0])
        pictures.append(np.stack(frames))
    assert pictures[0].shape == (6, 64, 48, 3)
    np.testing.assert_array_equal(*pictures)


def test_the_autopilot_keeps_the_route_under_the_car(shared_server, make_env):
    env = make_env(shared_server, view="birdview", frame_size=64, vector=("command",), action_repeat=2)
    observed, _ = env.reset(seed=2)
    autopilot = make_behaviour("autopilot", describe_simulator(env))
    autopilot.reset(env, 0)
    for _ in range(50):
        observed, _, terminated, truncated, _ = env.step(autopilot.act(observed))
        assert env.observation_space.contains(observed)
        # The band just ahead of the car is the route's, or has the colour of a light.
        strip = observed["image"][42:46, 29:35].astype(int)
        assert strip.max() > 150
        if terminated or truncated:
            break


def test_another_camera_may_look_on(shared_server, make_env):
    env = make_env(shared_server, view="birdview", frame_size=32, cameras={"front": {"width": 16, "height": 16}})
    frame, info = env.reset(seed=1)
    assert frame.shape == (32, 32, 3)
    assert info["cameras"]["front"].shape == (16, 16, 3)
