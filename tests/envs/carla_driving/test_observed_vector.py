"""What the environment tells in numbers: on the stand-in with the real client, and on routes over real maps."""

import math
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from wm_gym.agents.behaviours import make_behaviour
from wm_gym.envs.angles import wrap_degrees
from wm_gym.envs.carla.observed_vector import (
    COMMAND_AHEAD_M,
    COMMANDS,
    DEFAULT_NAMES,
    PRIVILEGED_NAMES,
    command_at,
    observed_vector,
    vector_fields,
)
from wm_gym.envs.carla.route import Command, Route
from wm_gym.envs.simulators import describe_simulator, make_simulator, make_simulator_from_spec
from wm_gym.errors import ConfigError, SimulatorError
from wm_gym.vector import mirror_vectors

pytest.importorskip("carla")


def named(env, vector):
    return dict(zip((field.name for field in env.unwrapped.vector_fields), vector.tolist(), strict=True))


def test_the_default_observation_has_what_a_car_with_a_route_knows(shared_server, make_env):
    env = make_env(shared_server, vector=DEFAULT_NAMES)
    assert type(env.unwrapped.config).model_fields["vector"].default == DEFAULT_NAMES
    observed, info = env.reset(seed=1)
    assert env.observation_space.contains(observed)
    assert observed["image"].shape == (32, 32, 3)
    values = named(env, observed["vector"])
    assert values["speed_limit"] == pytest.approx(info["speed_limit"])
    assert values["distance_left"] == pytest.approx(env.unwrapped.route_state.remaining, abs=1e-3)
    for _ in range(20):
        observed, *_, info = env.step(np.array([0.3, 1.0, 0.0, 1.0], np.float32))
    values = named(env, observed["vector"])
    assert values["speed"] == pytest.approx(env.unwrapped.ego_state.speed, abs=1e-4)
    assert values["speed"] > 1
    assert values["steering"] == pytest.approx(info["applied_action"][0])
    assert values["acceleration"] > 0.3


def test_route_points_put_back_into_the_world_lie_on_the_route(shared_server, make_env):
    env = make_env(shared_server, vector=("route_points",))
    observed, _ = env.reset(seed=3)
    autopilot = make_behaviour("autopilot", describe_simulator(env))
    autopilot.reset(env, 0)
    for _ in range(60):
        points = observed["vector"].reshape(-1, 2).astype(float)  # (10, forward and right)
        ego, route = env.unwrapped.ego_state, env.unwrapped.route
        yaw = math.radians(ego.yaw)
        x = ego.x + points[:, 0] * math.cos(yaw) - points[:, 1] * math.sin(yaw)
        y = ego.y + points[:, 0] * math.sin(yaw) + points[:, 1] * math.cos(yaw)
        here = env.unwrapped.route_state.distance
        for number, place in enumerate(zip(x, y, strict=True), start=1):
            wanted = route.point_at(here + 5.0 * number)
            assert math.dist(place, wanted) < 0.1
        for _ in range(3):
            observed, _, terminated, truncated, _ = env.step(autopilot.act(observed))
        if terminated or truncated:
            break


def turn_of(route: Route, first: int, last: int) -> Command:
    """What a route does in a junction by its geometry alone."""
    turned = float(wrap_degrees(route.headings[last] - route.headings[first]))
    return Command.STRAIGHT if abs(turned) < 30 else Command.LEFT if turned < 0 else Command.RIGHT


def test_before_a_hundred_junctions_the_command_is_the_turn_that_the_route_takes(shared_server, make_env):
    env = make_env(shared_server, vector=("command",), route={"min_length": 600, "max_length": 3000})
    junctions = 0
    for seed in range(200):
        env.reset(seed=seed)
        route = env.unwrapped.route
        inside = np.flatnonzero(np.diff(np.concatenate(([0], route.in_junction.astype(int), [0]))))
        for first, last in zip(inside[::2], inside[1::2] - 1, strict=True):
            if last + 5 >= len(route.points) or first < 5:
                continue
            commands = set(route.commands[first : last + 1].tolist()) - {Command.LANE_FOLLOW}
            if not commands:
                continue  # a junction without a choice
            told = command_at(route, float(route.distances[first]) - 3.0)
            assert told == turn_of(route, max(0, first - 2), min(len(route.points) - 1, last + 2))
            junctions += 1
        if junctions >= 100:
            break
    assert junctions >= 100


def straight_route(commands) -> Route:
    count = len(commands)
    return Route(
        points=np.stack((np.arange(count, dtype=float), np.zeros(count)), axis=1),
        headings=np.zeros(count),
        distances=np.arange(count, dtype=float),
        lane_widths=np.full(count, 3.5),
        in_junction=np.zeros(count, bool),
        commands=np.array(commands),
    )


def test_a_command_is_told_from_some_metres_before():
    route = straight_route([Command.LANE_FOLLOW] * 60 + [Command.LEFT] * 10 + [Command.LANE_FOLLOW] * 60)
    assert command_at(route, 60 - COMMAND_AHEAD_M - 1.5) == Command.LANE_FOLLOW
    assert command_at(route, 60 - COMMAND_AHEAD_M + 0.5) == Command.LEFT
    assert command_at(route, 65) == Command.LEFT
    assert command_at(route, 71) == Command.LANE_FOLLOW
    assert command_at(route, 0) == command_at(route, 129) == Command.LANE_FOLLOW


def test_mirroring_swaps_left_and_right():
    fields = vector_fields(("command", "steering", "route_points"))
    vector = np.zeros(len(fields), np.float32)
    vector[:4] = [COMMANDS.index("left"), 0.5, 3.0, 2.0]
    mirrored = mirror_vectors(fields, vector)
    np.testing.assert_array_equal(mirrored[:4], [COMMANDS.index("right"), -0.5, 3.0, -2.0])


def test_privileged_fields_say_so_and_tell_light_and_vehicle(shared_server, make_env):
    assert all(field.privileged for field in vector_fields(PRIVILEGED_NAMES))
    assert not any(field.privileged for field in vector_fields(DEFAULT_NAMES))
    env = make_env(shared_server, vector=PRIVILEGED_NAMES, traffic={"vehicles": 10})
    seen, others = set(), set()
    for seed in range(6):
        observed, _ = env.reset(seed=seed)
        for _ in range(40):
            values = named(env, observed["vector"])
            ahead = env.unwrapped.light_ahead()
            if ahead is None:
                assert (values["light_state"], values["light_distance"]) == (0, 60)
            else:
                assert values["light_distance"] == pytest.approx(max(-10, ahead[0]), abs=1e-3)
                seen.add(ahead[1])
            assert 0 <= values["vehicle_distance"] <= 60
            is_there = values["vehicle_distance"] < 60
            numbers = values["vehicle_distance"], values["vehicle_speed"] if is_there else 40
            told = values["vehicle_ahead"], values["vehicle_ahead_distance"], values["vehicle_ahead_speed"]
            assert told == (is_there, *numbers)
            others.add(is_there)
            observed, _, terminated, truncated, _ = env.step(np.array([0, 0.5, 0, 1], np.float32))
            if terminated or truncated:
                break
    assert seen
    assert others == {False, True}


def test_what_the_server_does_not_give_is_an_error():
    ego = SimpleNamespace(x=0.0, y=0.0, z=0.0, yaw=0.0, speed=1.0, velocity=(1.0, 0.0))
    tick = SimpleNamespace(ego=ego, speed_limit=0.0, road_users=(), applied=(0, 0, 0, 1))
    drive = SimpleNamespace(tick=tick, light_ahead=lambda **_: (10.0, "unknown"))
    with pytest.raises(SimulatorError, match=r"gives no speed limit.*leave speed_limit out of vector="):
        observed_vector(("speed_limit",), drive)
    with pytest.raises(SimulatorError, match=r"traffic light ahead 'unknown'.*leave light_state out"):
        observed_vector(("light_state",), drive)


def test_wrong_names_are_named():
    with pytest.raises(ConfigError, match=r"knows no 'speeed' \(did you mean 'speed'\?\)"):
        gym.make("CarlaDriving-v0", vector=("speeed",))
    with pytest.raises(ConfigError, match="names a field twice"):
        gym.make("CarlaDriving-v0", vector=("speed", "speed"))


def test_it_is_a_proper_environment_with_a_vector(shared_server, make_env):
    env = make_env(shared_server, vector=DEFAULT_NAMES)
    check_env(env.unwrapped, skip_render_check=True)


def test_the_record_has_the_fields(shared_server):
    env = make_simulator("carla", frame_size=32, host="127.0.0.1", port=shared_server.port, vector=["speed", "command"])
    try:
        simulator = describe_simulator(env)
        assert [field.name for field in simulator.vector] == ["speed", "command"]
        assert simulator.kwargs == {"vector": ["speed", "command"]}
        old = simulator.model_copy(update={"vector": (), "kwargs": {}})
    finally:
        env.close()
    # A record from before there were vectors.
    env = make_simulator_from_spec(old, connection={"host": "127.0.0.1", "port": shared_server.port})
    try:
        assert env.observation_space.shape == (32, 32, 3)
    finally:
        env.close()
