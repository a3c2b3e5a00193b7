"""``CarlaDriving-v0`` with the real client and the stand-in server: spaces, driving, reward, ends, towns, traffic."""

from __future__ import annotations

import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from wm_gym.agents.autopilots.carla import CarlaAutopilot
from wm_gym.envs.carla.reward import TERMS
from wm_gym.envs.carla.weather import WEATHER_NAMES
from wm_gym.errors import ConfigError, SimulatorError

COAST = np.array([0.0, 0.0, 0.0, 1.0], np.float32)
DRIVE = np.array([0.0, 0.6, 0.0, 1.0], np.float32)
REVERSE = np.array([0.0, 0.6, 0.0, -1.0], np.float32)
NEUTRAL = np.array([0.0, 1.0, 0.0, 0.0], np.float32)
BRAKE = np.array([0.0, 0.0, 1.0, 1.0], np.float32)


def run(env, action, steps):
    """The results of repeating one action until the episode ends, or for a number of steps."""
    results = []
    for _ in range(steps):
        results.append(env.step(action))
        if results[-1][2] or results[-1][3]:
            break
    return results


def test_environment_passes_gymnasiums_and_sb3s_checks(env):
    from stable_baselines3.common.env_checker import check_env as check_env_sb3

    check_env(env.unwrapped, skip_render_check=True)
    check_env_sb3(env.unwrapped)


def test_both_action_conventions_are_offered(shared_server, make_env):
    assert make_env(shared_server).action_space.shape == (4,)
    assert make_env(shared_server, action="steer_accel").action_space.shape == (2,)


def test_equal_seeds_and_actions_give_equal_episodes_in_any_environment(shared_server, make_env):
    def episode(env):
        rng = np.random.default_rng(0)
        frames, rewards = [env.reset(seed=5)[0]], []
        for _ in range(15):
            action = rng.uniform((-0.2, 0.3, 0, 1), (0.2, 0.8, 0, 1)).astype(np.float32)
            frame, reward, *_ = env.step(action)
            frames.append(frame)
            rewards.append(reward)
        return np.stack(frames), rewards

    first = make_env(shared_server)
    frames, rewards = episode(first)
    again_frames, again_rewards = episode(first)
    first.close()
    other_frames, other_rewards = episode(make_env(shared_server))
    np.testing.assert_array_equal(frames, again_frames)
    np.testing.assert_array_equal(frames, other_frames)
    assert rewards == again_rewards == other_rewards
    assert np.ptp(frames[-1].astype(int) - frames[0].astype(int)) > 0


def test_seeds_differ_in_place_and_route(env):
    routes = []
    for seed in (1, 2):
        env.reset(seed=seed)
        routes.append(env.unwrapped.route.points[0])
    assert np.linalg.norm(routes[0] - routes[1]) > 1.0


def test_throttle_drives_reverse_backs_and_neutral_rolls_nowhere(env):
    speeds = {}
    for name, action in (("drive", DRIVE), ("reverse", REVERSE), ("neutral", NEUTRAL)):
        env.reset(seed=1)
        run(env, action, 15)
        speeds[name] = env.unwrapped.ego_state.speed
    assert speeds["drive"] > 1.0
    assert speeds["reverse"] < -0.5
    assert abs(speeds["neutral"]) < 0.05


def test_steer_accel_means_the_same_as_driving_actions(shared_server, make_env):
    two = make_env(shared_server, action="steer_accel")
    two.reset(seed=1)
    frame_of_two = [two.step(np.array([0.1, 0.5], np.float32))[0] for _ in range(5)][-1]
    two.close()
    four = make_env(shared_server)
    four.reset(seed=1)
    frame_of_four = [four.step(np.array([0.1, 0.5, 0.0, 1.0], np.float32))[0] for _ in range(5)][-1]
    np.testing.assert_array_equal(frame_of_two, frame_of_four)


def test_steering_to_the_right_turns_to_the_right(env):
    offsets = []
    for steering in (-0.2, 0.2):
        env.reset(seed=1)
        run(env, DRIVE, 20)
        run(env, np.array([steering, 0.3, 0.0, 1.0], np.float32), 15)
        assert np.sign(env.unwrapped.ego_state.yaw_rate) == np.sign(steering)
        offsets.append(env.unwrapped.route_state.lateral_offset)
    assert offsets[1] - offsets[0] > 0.1


def test_reward_is_the_sum_of_its_named_terms_and_info_keys_stay(env):
    _, info = env.reset(seed=2)
    keys = set(info)
    for _, reward, _, _, info in run(env, DRIVE, 20):
        assert set(info) == keys
        assert reward == pytest.approx(sum(info[f"reward_{name}"] for name in TERMS))
    assert info["reward_progress"] > 0
    assert info["reward_time"] < 0
    assert 0 < info["progress"] < 1


def test_weights_and_thresholds_are_settings(shared_server, make_env):
    env = make_env(shared_server, reward={"progress": 0.0, "time": -7.0}, end={"max_s": 0.5})
    env.reset(seed=2)
    *_, (_, reward, terminated, truncated, info) = run(env, COAST, 50)
    assert reward == pytest.approx(-7.0 * 0.05, abs=0.02)
    assert (terminated, truncated, info["end"]) == (False, True, "time")
    assert info["km"] == pytest.approx(0.001)


def test_action_repeat_holds_an_action_for_several_ticks(shared_server, make_env):
    env = make_env(shared_server, action_repeat=4)
    _, before = env.reset(seed=2)
    *_, after = env.step(DRIVE)
    assert after["frame"] - before["frame"] == 4
    assert env.unwrapped.step_s == pytest.approx(0.2)


def test_leaving_the_road_terminates(shared_server, make_env):
    env = make_env(shared_server, end={"max_deviation_m": 0})
    env.reset(seed=1)
    run(env, DRIVE, 20)
    *_, (_, reward, terminated, _, info) = run(env, np.array([0.6, 0.4, 0.0, 1.0], np.float32), 150)
    assert terminated
    assert info["end"] == "off_road"
    assert info["off_road"]
    assert info["reward_off_road"] < 0
    assert reward < 0


def test_a_collision_terminates_and_lowers_the_driving_score(shared_server, make_env):
    env = make_env(shared_server, traffic={"vehicles": 40}, end={"max_deviation_m": 0, "off_road": False})
    for seed in range(10):
        env.reset(seed=seed)
        *_, (_, _, terminated, _, info) = run(env, np.array([0.0, 1.0, 0.0, 1.0], np.float32), 200)
        if info["end"] == "collision":
            break
    assert terminated
    assert info["collisions"] == 1
    assert info["reward_collision"] < 0
    assert info["infraction_penalty"] < 1
    assert info["collisions_vehicle_per_km"] + info["collisions_static_per_km"] > 0


def test_driving_backwards_standing_and_deviating_terminate(shared_server, make_env):
    cases = (
        ({"wrong_way_m": 1.0, "off_road": False}, REVERSE, "wrong_way"),
        ({"stuck_s": 0.5}, BRAKE, "stuck"),
        ({"max_deviation_m": 0.5, "off_road": False}, np.array([0.5, 0.6, 0.0, 1.0], np.float32), "deviation"),
    )
    for end, action, reason in cases:
        env = make_env(shared_server, end=end)
        env.reset(seed=1)
        *_, (_, _, terminated, truncated, info) = run(env, action, 200)
        assert (terminated, truncated, info["end"]) == (True, False, reason)
        env.close()


def test_the_end_of_the_route_terminates_and_completes_it(shared_server, make_env):
    env = make_env(shared_server, route={"min_length": 15, "max_length": 20}, end={"off_road": False})
    env.reset(seed=1)
    assert 15 <= env.unwrapped.route.length <= 20
    terminated = False
    while not terminated:
        state = env.unwrapped.route_state
        steering = np.clip(-0.03 * state.heading_error - 0.2 * state.lateral_offset, -1, 1)
        _, reward, terminated, truncated, info = env.step(np.array([steering, 0.4, 0.0, 1.0], np.float32))
        assert not truncated
    assert info["end"] == "route_done"
    assert info["route_completion"] == pytest.approx(100)
    assert info["driving_score"] == pytest.approx(100)
    assert info["reward_route_done"] == pytest.approx(100)
    assert reward > 90


@pytest.mark.slow
def test_a_driver_that_stops_at_the_junction_runs_no_red_light_and_is_not_stuck(server, make_env):
    """It stops 1 m before the junction, not at the trigger of the light; lights of three groups are red for 32 s."""
    env = make_env(server, town="Town02", action_repeat=2, end={"off_road": False})
    simulator = env.unwrapped
    autopilot = CarlaAutopilot()
    to_line = simulator.light_ahead

    def to_junction():
        light, route, at = to_line(), simulator.route, simulator.route_state.distance
        ahead = np.flatnonzero(route.in_junction & (route.distances > at + 2.45))
        return None if light is None or len(ahead) == 0 else (route.distances[ahead[0]] - at - 2.45, light[1])

    frame, _ = env.reset(seed=4)
    autopilot.reset(env, 4)
    simulator.light_ahead = to_junction
    terminated = truncated = False
    waited = 0
    while not (terminated or truncated):
        frame, _, terminated, truncated, info = env.step(autopilot.act(frame))
        waited += info["speed"] < 0.1
    assert (info["end"], info["red_lights"], info["driving_score"]) == ("route_done", 0, pytest.approx(100))
    assert waited * 0.1 > 20


def test_running_a_red_light_is_noticed(shared_server, make_env):
    env = make_env(shared_server, end={"max_deviation_m": 0, "off_road": False, "collision": False})
    for seed in range(30):
        env.reset(seed=seed)
        seen_red = False
        for _ in range(160):
            light = env.unwrapped.light_ahead()
            seen_red |= light is not None and light[1] == "red" and light[0] < 1.0
            *_, terminated, truncated, info = env.step(np.array([0.0, 1.0, 0.0, 1.0], np.float32))
            if terminated or truncated or info["red_lights"]:
                break
        if info["red_lights"]:
            break
    assert info["red_lights"] == 1
    assert seen_red
    assert info["reward_red_light"] < 0
    assert info["infraction_penalty"] == pytest.approx(0.7)


def test_more_cameras_and_semantic_segmentation(shared_server, make_env):
    above = {"kind": "semantic", "width": 40, "height": 24, "x": 0.0, "z": 30.0, "pitch": -90.0}
    env = make_env(shared_server, cameras={"above": above})
    _, info = env.reset(seed=1)
    assert info["cameras"]["above"].shape == (24, 40, 3)
    road = np.array([128, 64, 128])  # CityScapes' colour
    assert (info["cameras"]["above"] == road).all(axis=-1).mean() > 0.1


def test_frame_size_field_of_view_and_mount(shared_server, make_env):
    env = make_env(shared_server, frame_size=(48, 64))
    wide, _ = env.reset(seed=1)
    assert wide.shape == (48, 64, 3)
    env.close()
    narrow, _ = make_env(shared_server, frame_size=(48, 64), camera={"fov": 40.0}).reset(seed=1)
    assert (wide != narrow).any()


def test_towns_are_loaded_when_asked_for(server, make_env):
    env = make_env(server, town=["Town01", "Town02"])
    towns = {env.reset(seed=seed)[1]["town"] for seed in range(6)}
    assert towns == {"Town01", "Town02"}
    _, info = env.reset(seed=1, options={"town": "Town02"})
    assert info["town"] == "Town02" == server.summary()["town"]
    assert server.summary()["synchronous"]
    env.step(DRIVE)
    env.close()
    assert server.wait_until_clean()


def test_an_unknown_town_is_named_with_those_there_are(env):
    with pytest.raises(ConfigError, match=r"no town 'Town99'; it has Town01, Town02"):
        env.reset(seed=1, options={"town": "Town99"})
    env.reset(seed=1)


def test_all_of_carlas_presets_are_offered():
    import carla

    presets = carla.WeatherParameters
    names = {name for name in dir(presets) if isinstance(getattr(presets, name), presets)}
    assert set(WEATHER_NAMES) == names - {"Default"}


def test_weather_is_set_and_drawn(server, make_env):
    env = make_env(server, weather="random")
    drawn = {env.reset(seed=seed)[1]["weather"] for seed in range(8)}
    assert len(drawn) > 3
    _, info = env.reset(seed=0, options={"weather": "HardRainNoon"})
    assert info["weather"] == "HardRainNoon"
    assert server.summary()["weather"][1] == pytest.approx(100.0)


def test_spawn_point_and_destination_may_be_given(env):
    env.reset(seed=1, options={"spawn_point": 3, "destination": 12})
    start = env.unwrapped.route.points[0].copy()
    env.reset(seed=2, options={"spawn_point": 3, "destination": 12})
    np.testing.assert_allclose(env.unwrapped.route.points[0], start, atol=0.5)
    with pytest.raises(ConfigError, match=r"spawn_point=9999 is not in 0 to"):
        env.reset(seed=1, options={"spawn_point": 9999})


def test_traffic_drives_and_walks(server, make_env):
    env = make_env(server, traffic={"vehicles": 12, "walkers": 6})
    env.reset(seed=4)
    kinds = [actor[1].partition(".")[0] for actor in server.spawned()]
    assert kinds.count("vehicle") == 13
    assert kinds.count("walker") >= 4
    before = server.summary()["poses"]
    run(env, BRAKE, 60)
    after = server.summary()["poses"]
    moved = {
        actor[1].partition(".")[0]: max(np.hypot(*(np.subtract(after[n][0], before[n][0])[:2])) for n in [actor[0]])
        for actor in server.spawned()
        if np.hypot(*(np.subtract(after[actor[0]][0], before[actor[0]][0])[:2])) > 0.5
    }
    assert {"vehicle", "walker"} <= set(moved)
    assert {user.kind for user in env.unwrapped.road_users()} <= {"vehicle", "pedestrian"}


def test_how_many_others_there_are_may_be_drawn_for_each_episode(server, make_env):
    env = make_env(server, traffic={"vehicles": [0, 5, 12], "walkers": [0, 3]})

    def others(seed):
        env.reset(seed=seed)
        kinds = [actor[1].partition(".")[0] for actor in server.spawned()]
        return kinds.count("vehicle") - 1, kinds.count("walker")

    counted = {seed: others(seed) for seed in range(8)}
    assert {vehicles for vehicles, _ in counted.values()} == {0, 5, 12}
    assert len({walkers for _, walkers in counted.values()}) > 1
    assert [others(seed) for seed in (7, 2)] == [counted[7], counted[2]]


def test_the_traffic_manager_can_drive_and_says_what_it_did(shared_server, make_env):
    env = make_env(shared_server)
    env.reset(seed=1)
    env.unwrapped.traffic_manager_drives = True
    results = run(env, BRAKE, 60)
    applied = np.stack([info["applied_action"] for *_, info in results])
    assert applied[:, 1].max() > 0.2  # the throttle, though the brake was asked for
    assert results[-1][-1]["speed"] > 1.0
    env.unwrapped.traffic_manager_drives = False
    *_, info = env.step(BRAKE)
    np.testing.assert_allclose(info["applied_action"], BRAKE)


def test_settings_are_checked_before_anything_is_started():
    cases = (
        ({"wether": "ClearNoon"}, "unknown key 'wether'.*did you mean 'weather'"),
        ({"weather": "Snow"}, "'Snow' is no weather"),
        (
            {"traffic": {"vehicles": -1}},
            r"'traffic.vehicles': -1 is no number of 0 or more, nor a list of such",
        ),
        ({"traffic": {"vehicles": [0, -1]}}, r"'traffic.vehicles': \[0, -1\] is no number"),
        ({"traffic": {"walkers": []}}, r"'traffic.walkers': \[\] is no number"),
        ({"route": {"min_length": 100, "max_length": 50}}, "max_length=50.0 is below min_length=100.0"),
        ({"action": "wheel"}, "action='wheel' is not offered"),
        ({"port": 0}, "port"),
        ({"launch": "/nowhere/CarlaUE4.sh"}, "names no CARLA server"),
        ({"render_mode": "ansi"}, "render_mode='ansi' is not offered"),
    )
    for settings, message in cases:
        with pytest.raises((ConfigError, SimulatorError), match=message):
            gym.make("CarlaDriving-v0", **settings)


def test_environment_can_be_pickled(shared_server, make_env):
    env = pickle.loads(pickle.dumps(make_env(shared_server).unwrapped))
    frame, _ = env.reset(seed=1)
    env.close()
    assert frame.shape == (32, 32, 3)


def test_step_before_reset_and_actions_that_are_no_numbers_are_refused(env):
    with pytest.raises(ConfigError, match="reset"):
        env.unwrapped.step(COAST)
    env.reset(seed=1)
    with pytest.raises(ConfigError, match="not finite"):
        env.step(np.array([np.nan, 0, 0, 1], np.float32))


def test_address_comes_from_the_environment_variable(shared_server, monkeypatch):
    monkeypatch.setenv("WM_GYM_CARLA", shared_server.address)
    env = gym.make("CarlaDriving-v0")
    assert env.unwrapped.connection.port == shared_server.port
    monkeypatch.setenv("WM_GYM_CARLA", "nonsense:x")
    with pytest.raises(ConfigError, match="HOST:PORT"):
        gym.make("CarlaDriving-v0")
