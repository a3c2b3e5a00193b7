"""What CARLA does to people, done to ``CarlaDriving-v0``: noticed in time, said in one sentence, survived."""

from __future__ import annotations

import os
import signal
import threading
import time
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest

from tests.carla_server.client import ticked_world
from tests.carla_server.process import command, free_port
from wm_gym.envs.carla.client import missing_carla_message
from wm_gym.errors import SimulatorError, SimulatorLostError

from .conftest import SMALL

DRIVE = np.array([0.0, 0.6, 0.0, 1.0], np.float32)


def is_one_sentence(error) -> bool:
    text = str(error.value)
    return "\n" not in text and text.endswith(".") and len(text) < 400


def test_a_refused_connection_is_said_at_once():
    env = gym.make("CarlaDriving-v0", host="127.0.0.1", port=free_port())
    started = time.monotonic()
    with pytest.raises(
        SimulatorLostError, match=r"no CARLA server can be reached at 127.0.0.1:\d+: nothing listens"
    ) as e:
        env.reset()
    assert time.monotonic() - started < 50
    assert is_one_sentence(e)


def test_an_unknown_host_is_said():
    env = gym.make("CarlaDriving-v0", host="no-such-host.invalid", port=2000)
    with pytest.raises(SimulatorLostError, match=r"there is no host called 'no-such-host\.invalid'"):
        env.reset()


def test_another_version_is_refused_with_what_to_install(server, make_env):
    server.faults(version="0.9.13")
    with pytest.raises(SimulatorError, match=r"version 0.9.13, but .* 0.9.16; run `pip install carla==0.9.13`") as e:
        make_env(server).reset()
    assert is_one_sentence(e)
    assert server.spawned() == []
    env = make_env(server, version_check=False)
    env.reset()


def test_a_build_of_the_same_release_is_accepted(server, make_env):
    server.faults(version="0.9.16-7-gabc123-dirty")
    make_env(server).reset()


@pytest.mark.parametrize("fault", ["die_at_frame", "stall_at_frame"])
def test_a_server_that_dies_or_hangs_in_an_episode_is_noticed_in_time(server, make_env, fault):
    env = make_env(server, timeout_s=3.0)
    env.reset(seed=1)
    server.faults(**{fault: server.summary()["frame"] + 5})
    started = time.monotonic()
    with pytest.raises(SimulatorLostError, match=r"the CARLA server at .* gave no answer in time") as e:
        for _ in range(10):
            env.step(DRIVE)
    assert time.monotonic() - started < 30
    assert is_one_sentence(e)
    with pytest.raises(SimulatorLostError, match=r"call reset\(\)"):
        env.step(DRIVE)


def test_a_server_that_dies_under_the_traffic_manager_does_not_take_the_process_along(server, make_env):
    env = make_env(server, timeout_s=3.0, traffic={"vehicles": 5})
    env.reset(seed=1)
    server.kill()
    with pytest.raises(SimulatorLostError, match=r"server .*died|gave no answer") as e:
        for _ in range(3):
            env.step(DRIVE)
    assert is_one_sentence(e)


def test_with_restart_the_episode_is_truncated_and_the_next_one_runs(server, make_env):
    env = make_env(server, timeout_s=3.0, restart=True)
    env.reset(seed=1)
    before, *_ = env.step(DRIVE)
    server.kill()
    frame, reward, terminated, truncated, info = env.step(DRIVE)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["simulator_lost"]
    assert info["end"] == "simulator_lost"
    assert "gave no answer in time" in info["lost_reason"]
    np.testing.assert_array_equal(frame, before)

    timer = threading.Timer(2.0, server.start)
    timer.start()
    _, info = env.reset(seed=2)  # waits for the server
    timer.join()
    assert not info["simulator_lost"]
    assert env.step(DRIVE)[3] is False


def test_with_restart_the_wait_for_a_server_that_stays_away_ends(server, make_env):
    env = make_env(server, timeout_s=3.0, restart=True, connect_timeout_s=1.0)
    env.reset(seed=1)
    server.kill()
    started = time.monotonic()
    with pytest.raises(SimulatorLostError, match=r"no CARLA server can be reached .*waited 1 s"):
        env.reset(seed=2)
    assert time.monotonic() - started < 50


def test_refused_spawns_are_tried_elsewhere(server, make_env):
    server.faults(refuse_spawns=5, refuse_blueprint="vehicle.")
    make_env(server).reset(seed=1)
    assert len([actor for actor in server.spawned() if actor[1].startswith("vehicle.")]) == 1


def test_a_server_that_refuses_every_spawn_is_given_up_with_nothing_left(server, make_env):
    server.faults(refuse_spawns=1000, refuse_blueprint="vehicle.")
    env = make_env(server)
    with pytest.raises(SimulatorError, match=r"refused to spawn vehicle.lincoln.mkz_2020 at 20 places of Town01") as e:
        env.reset(seed=1)
    assert is_one_sentence(e)
    assert server.spawned() == []
    server.faults(refuse_spawns=0)
    env.reset(seed=1)


def test_a_refused_sensor_leaves_no_vehicle_behind(server, make_env):
    server.faults(refuse_spawns=1, refuse_blueprint="sensor.other.collision")
    env = make_env(server)
    with pytest.raises(SimulatorError, match="Spawn failed"):
        env.reset(seed=1)
    env.close()
    assert server.wait_until_clean()


def test_a_lost_picture_is_replaced_by_that_of_another_tick_never_by_an_old_one(server, make_env):
    env = make_env(server, image_timeout_s=0.3)
    env.reset(seed=1)
    frames = [env.step(DRIVE)[0] for _ in range(10)]
    server.faults(drop_image_every=7)
    infos = []
    for _ in range(14):
        frame, *_, info = env.step(DRIVE)
        frames.append(frame)
        infos.append(info)
    server.faults(drop_image_every=0)
    assert infos[-1]["missed_images"] >= 2
    # A repeated tick is counted: the world went on by more frames than steps.
    assert infos[-1]["frame"] == 24 + infos[-1]["missed_images"]
    moving = frames[12:]
    assert all((first != second).any() for first, second in pairwise(moving))


def test_a_late_picture_is_waited_for(server, make_env):
    env = make_env(server)
    env.reset(seed=1)
    server.faults(delay_images_s=0.3)
    started = time.monotonic()
    *_, info = env.step(DRIVE)
    assert time.monotonic() - started > 0.25
    assert info["missed_images"] == 0


@pytest.mark.parametrize("fault", [{"drop_images_from_frame": 0}, {"delay_images_frames": 2}])
def test_a_camera_that_never_sends_the_right_picture_is_an_error(server, make_env, fault):
    env = make_env(server, image_timeout_s=0.3)
    env.reset(seed=1)
    server.faults(**fault)
    with pytest.raises(SimulatorLostError, match="the camera 'front' sent no picture of frame") as e:
        env.step(DRIVE)
    assert is_one_sentence(e)


@pytest.mark.parametrize("delay_s", [0.4, 1.5])
def test_an_episode_starts_however_long_after_the_snapshot_the_pictures_come(server, make_env, delay_s):
    server.faults(delay_images_s=delay_s)
    env = make_env(server, cameras={"rear": {"width": 16, "height": 16, "yaw": 180.0}})
    _, info = env.reset(seed=1)
    assert info["cameras"]["rear"].shape == (16, 16, 3)
    *_, info = env.step(DRIVE)
    assert info["missed_images"] == 0


def test_a_picture_that_never_comes_leaves_nothing_on_the_server(server, make_env):
    """Without ``close``: as where the error ends the program."""
    env = make_env(server, timeout_s=3.0, image_timeout_s=0.3, traffic={"vehicles": 3, "walkers": 2})
    server.faults(drop_images_from_frame=0)
    with pytest.raises(SimulatorLostError, match="the camera 'front' sent no first picture within"):
        env.reset(seed=1)
    assert server.wait_until_clean()
    server.faults(drop_images_from_frame=-1)
    env.reset(seed=1)
    server.faults(drop_images_from_frame=0)
    with pytest.raises(SimulatorLostError, match="the camera 'front' sent no picture of frame"):
        env.step(DRIVE)
    assert server.wait_until_clean()


@pytest.mark.parametrize("vehicles", [0, 3])
def test_an_ego_vehicle_that_another_client_destroys_leaves_nothing_on_the_server(server, make_env, vehicles):
    env = make_env(server, traffic={"vehicles": vehicles, "walkers": vehicles})
    env.reset(seed=1)
    destroy(server, next(actor[0] for actor in server.spawned() if actor[2] == "hero"))
    with pytest.raises(SimulatorLostError, match="ego vehicle is gone") as e:
        env.step(DRIVE)
    assert is_one_sentence(e)
    assert server.wait_until_clean()
    env.reset(seed=2)


def test_traffic_that_another_client_destroys_is_no_obstacle_to_cleaning_up(server, make_env):
    env = make_env(server, traffic={"vehicles": 4, "walkers": 4})
    env.reset(seed=1)
    for actor in server.spawned():
        if actor[1].startswith("walker."):
            destroy(server, actor[0])
    env.step(DRIVE)
    env.reset(seed=2)
    env.close()
    assert server.wait_until_clean()


def test_a_driver_of_the_traffic_manager_that_is_destroyed_leaves_nothing_on_the_server(server, make_env):
    """CARLA's client may end its process over that; another one then cleans up."""
    env = make_env(server, traffic={"vehicles": 3})
    env.reset(seed=1)
    env.unwrapped.traffic_manager_drives = True
    env.step(DRIVE)
    destroy(server, next(actor[0] for actor in server.spawned() if actor[2] == "hero"))
    with pytest.raises(SimulatorLostError):
        for _ in range(3):
            env.step(DRIVE)
    assert server.wait_until_clean()


def test_actors_of_others_are_left_alone(server, make_env):
    import carla

    client = carla.Client("127.0.0.1", server.port)
    client.set_timeout(60.0)
    world = client.get_world()
    library = world.get_blueprint_library()
    vehicle = world.spawn_actor(library.find("vehicle.audi.tt"), world.get_map().get_spawn_points()[0])
    walker = world.spawn_actor(
        library.find("walker.pedestrian.0001"), carla.Transform(vehicle.get_location() + carla.Location(z=5.0))
    )
    world.spawn_actor(library.find("controller.ai.walker"), carla.Transform(), attach_to=walker)
    foreign = server.spawned()
    assert len(foreign) == 3
    env = make_env(server, traffic={"vehicles": 3, "walkers": 2})
    env.reset(seed=1, options={"spawn_point": 20})
    env.step(DRIVE)
    os.kill(env.unwrapped._client._process.pid, signal.SIGKILL)
    env.close()
    assert server.spawned() == foreign
    assert not server.summary()["synchronous"]


def destroy(server, actor: int) -> None:
    """Destroy an actor as another client."""
    from tests.carla_server.process import call

    call(server.port, "destroy_actor", actor)


def test_a_server_in_use_is_refused_and_left_alone(server, make_env):
    first = make_env(server)
    first.reset(seed=1)
    before = server.spawned()
    with pytest.raises(SimulatorError, match="is in use by process") as e:
        make_env(server).reset(seed=2)
    assert is_one_sentence(e)
    assert server.spawned() == before
    first.step(DRIVE)


def test_a_server_that_a_stranger_ticks_is_refused(server, make_env):
    import carla

    client = carla.Client("127.0.0.1", server.port)
    client.set_timeout(60.0)
    world = ticked_world(client)
    stop = threading.Event()

    def tick():
        while not stop.is_set():
            world.tick()
            time.sleep(0.02)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        with pytest.raises(SimulatorError, match="is in use by another client"):
            make_env(server).reset(seed=1)
    finally:
        stop.set()
        thread.join()


def test_what_a_dead_client_left_is_removed(server, make_env):
    env = make_env(server)
    env.reset(seed=1)
    os.kill(env.unwrapped._client._process.pid, signal.SIGKILL)
    env.unwrapped._client._process.wait()
    env.unwrapped._client = None  # as if this process had died as well
    assert len(server.spawned()) == 3
    other = make_env(server)
    other.reset(seed=1)
    assert len(server.spawned()) == 3
    other.close()
    assert server.wait_until_clean()


def test_a_client_that_crashed_is_cleaned_up_after(server, make_env):
    env = make_env(server)
    env.reset(seed=1)
    os.kill(env.unwrapped._client._process.pid, signal.SIGKILL)
    with pytest.raises(SimulatorLostError, match=r"CARLA's client ended with code -9"):
        env.step(DRIVE)
    env.close()
    assert server.wait_until_clean()


def test_an_episode_that_a_crash_of_the_client_kept_from_beginning_begins_on_a_new_one(server, make_env):
    env = make_env(server, timeout_s=5.0)
    first, _ = env.reset(seed=1)
    env.unwrapped._client._process.send_signal(signal.SIGSEGV)
    with pytest.warns(UserWarning, match="client ended with code -11"):
        again, _ = env.reset(seed=1)
    assert np.array_equal(first, again)
    env.step(DRIVE)
    assert len(server.spawned()) == 3
    # With its server gone, too, it is an error at once.
    server.kill()
    with pytest.raises(SimulatorLostError):
        env.reset(seed=1)


# --- Servers of our own -----------------------------------------------------------------------------------------------


def launched(**settings):
    port = free_port()
    return gym.make(
        "CarlaDriving-v0", disable_env_checker=True, **{**SMALL, "port": port, "launch": command(), **settings}
    )


def test_a_server_is_started_supervised_and_stopped():
    pytest.importorskip("carla.libcarla")
    env = launched()
    env.reset(seed=1)
    process = env.unwrapped._server._process
    assert process.poll() is None
    env.close()
    assert process.poll() is not None


def test_a_killed_server_of_ours_is_started_again():
    pytest.importorskip("carla.libcarla")
    env = launched(restart=True, timeout_s=3.0)
    for seed in range(3):
        env.reset(seed=seed)
        env.step(DRIVE)
        os.killpg(env.unwrapped._server.group, signal.SIGKILL)
        *_, truncated, info = env.step(DRIVE)
        assert truncated
        assert info["simulator_lost"]
    env.reset(seed=9)
    env.close()


def test_a_server_is_recycled_after_so_many_episodes():
    pytest.importorskip("carla.libcarla")
    env = launched(recycle_episodes=2)
    processes = []
    for seed in range(4):
        env.reset(seed=seed)
        processes.append(env.unwrapped._server._process.pid)
    env.close()
    assert processes[0] == processes[1] != processes[2] == processes[3]


def test_only_a_server_of_ours_is_stopped(server, make_env):
    env = make_env(server)
    env.reset(seed=1)
    env.close()
    assert server.is_running


def test_a_program_that_is_no_server_is_said_with_its_last_words():
    pytest.importorskip("carla.libcarla")
    env = launched(launch=["sh", "-c", "echo no licence for port {port}; exit 3"], connect_timeout_s=15.0)
    with pytest.raises(
        SimulatorLostError, match=r"ended with code 3, and its last words were 'no licence for port \d+'"
    ):
        env.reset()


# --- Without CARLA ----------------------------------------------------------------------------------------------------


def test_without_the_client_gym_make_says_what_to_do(monkeypatch):
    monkeypatch.setattr("wm_gym.envs.carla.client.has_carla", lambda: False)
    with pytest.raises(gym.error.DependencyNotInstalled, match=r"pip install 'wm_gym\[carla\]'"):
        gym.make("CarlaDriving-v0")


def test_where_there_is_no_wheel_the_message_says_so(monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert "has no wheel for Python" in missing_carla_message()
    assert "Darwin arm64" in missing_carla_message()


def test_the_stand_in_knows_every_call_that_is_made(server, make_env):
    from tests.carla_server.process import call

    env = make_env(server, traffic={"vehicles": 2, "walkers": 2}, weather="random", town=["Town01", "Town02"])
    for seed in range(3):
        env.reset(seed=seed)
        env.step(DRIVE)
    env.close()
    assert call(server.port, "stand_in_unknown_calls") == []
