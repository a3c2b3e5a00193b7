"""Simulators by name: the embedded one, and ids that this package knows nothing about."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

import wm_gym
from wm_gym.data_collection.recording.worker import scalar_infos
from wm_gym.envs import describe_simulator, make_simulator, make_simulator_from_spec
from wm_gym.envs.registration import register_envs
from wm_gym.envs.simulators import has_connection, split_connection
from wm_gym.errors import ConfigError, SimulatorError
from wm_gym.frames import resize_frame
from wm_gym.simulator import SimulatorSpec


def test_short_name_makes_the_embedded_simulator():
    env = make_simulator("car-racing")
    assert env.unwrapped.spec.id == "CarRacingDriving-v0"
    assert env.observation_space.shape == (64, 64, 3)
    assert env.action_space == env.unwrapped.action_format.space("driving")
    assert describe_simulator(env).step_s == 0.08


def test_arguments_reach_a_driving_simulator():
    env = make_simulator("car-racing", action="steer_accel", frame_size=(32, 48), action_repeat=2, max_frames=10)
    frame, _ = env.reset(seed=0)
    assert frame.shape == (32, 48, 3)
    assert env.action_space.shape == (2,)
    steps = 0
    truncated = False
    while not truncated:
        *_, truncated, _ = env.step(np.zeros(2, np.float32))
        steps += 1
    assert steps == 5


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("car-racing", {"frame_size": 32, "action_repeat": 3, "max_frames": 20}),
        ("CarRacing-v3", {"frame_size": (40, 56), "action_repeat": 3, "lap_complete_percent": 0.9}),
    ],
)
def test_a_record_makes_the_same_simulator_again(name, kwargs):
    first = make_simulator(name, **kwargs)
    simulator = describe_simulator(first)
    again = make_simulator_from_spec(SimulatorSpec.model_validate_json(simulator.model_dump_json()))
    assert describe_simulator(again) == simulator
    first.action_space.seed(0)
    np.testing.assert_array_equal(again.reset(seed=6)[0], first.reset(seed=6)[0])
    for _ in range(5):
        action = first.action_space.sample()
        frame, reward, *_ = first.step(action)
        frame_again, reward_again, *_ = again.step(action)
        np.testing.assert_array_equal(frame_again, frame)
        assert reward_again == reward


def test_action_and_render_mode_are_chosen_anew_and_not_recorded():
    stored = make_simulator("car-racing", action="steer_accel", render_mode="rgb_array")
    simulator = describe_simulator(stored)
    assert simulator == describe_simulator(make_simulator("car-racing"))
    assert make_simulator_from_spec(simulator, action="steer_accel").action_space.shape == (2,)
    assert make_simulator_from_spec(simulator).action_space.shape == (4,)


def test_describes_a_driving_simulator_from_gym_make():
    env = gym.make("CarRacingDriving-v0", action="steer_accel", frame_size=32, max_frames=40)
    wrapped = gym.wrappers.RecordEpisodeStatistics(env)
    simulator = describe_simulator(wrapped)
    assert (simulator.id, simulator.kwargs, simulator.frame_size) == (
        "CarRacingDriving-v0",
        {"max_frames": 40},
        (32, 32),
    )


def test_refuses_to_describe_an_environment_of_another_origin():
    with pytest.raises(SimulatorError, match="make_simulator"):
        describe_simulator(gym.make("CartPole-v1"))


def test_any_image_simulator_is_resized_and_repeated():
    env = make_simulator("CarRacing-v3", frame_size=64, action_repeat=4)
    raw = gym.make("CarRacing-v3")
    simulator = describe_simulator(env)
    assert simulator.action.kind == "native"
    assert (simulator.frame_size, simulator.step_s) == ((64, 64), 0.08)
    assert env.action_space == raw.action_space
    frame, _ = env.reset(seed=9)
    raw_frame, _ = raw.reset(seed=9)
    np.testing.assert_array_equal(frame, resize_frame(raw_frame, 64, 64))
    action = np.array([0.1, 0.5, 0.0], np.float32)
    for _ in range(3):
        frame, reward, *_ = env.step(action)
        steps = [raw.step(action) for _ in range(4)]
        np.testing.assert_array_equal(frame, resize_frame(steps[-1][0], 64, 64))
        assert reward == pytest.approx(sum(step[1] for step in steps))
    assert type(reward) is float


def test_repeat_of_a_wrapped_simulator_stops_with_the_episode():
    env = make_simulator("CarRacing-v3", action_repeat=4, max_episode_steps=6)
    env.reset(seed=0)
    idle = np.zeros(3, np.float32)
    assert env.step(idle)[3] is False
    _, reward, terminated, truncated, _ = env.step(idle)
    assert (terminated, truncated) == (False, True)
    assert reward == pytest.approx(-0.2)  # two frames were left of the six


def test_native_frame_size_is_kept_unless_another_is_asked_for():
    assert make_simulator("CarRacing-v3").reset(seed=0)[0].shape == (96, 96, 3)


@pytest.mark.parametrize(
    ("name", "kwargs", "told"),
    [
        ("CartPole-v1", {}, "CartPole-v1 observes .* frames are needed"),
        ("Pendulum-v1", {}, "Pendulum-v1 observes .* frames are needed"),
        ("CarRacing-v3", {"continuous": False}, r"takes actions in Discrete\(5\), but continuous"),
        ("CarRacng-v3", {}, "did you mean 'CarRacing-v3'"),
        ("car-racin", {}, "did you mean 'car-racing'"),
        ("CarRacing-v1", {}, "no simulator is called 'CarRacing-v1'"),
        ("no_such_module_here:Thing-v0", {}, "no_such_module_here:Thing-v0 cannot be loaded"),
        ("CarRacing-v3", {"colour": "red"}, "CarRacing-v3 has no argument 'colour'"),
        ("car-racing", {"colour": "red"}, "CarRacingDriving-v0 has no argument 'colour'"),
        ("CarRacing-v3", {"action": "steer_accel"}, "not a driving simulator"),
        ("CarRacing-v3", {"action_repeat": 0}, "action_repeat=0"),
        ("CarRacing-v3", {"frame_size": 2}, "frame_size=2"),
        ("car-racing", {"lap_complete_percent": object()}, "must be JSON values"),
    ],
)
def test_what_does_not_fit_is_told_in_one_sentence(name, kwargs, told):
    with pytest.raises(SimulatorError, match=told) as error:
        make_simulator(name, **kwargs)
    assert "\n" not in str(error.value)


def test_unknown_action_of_a_driving_simulator_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'steer_accel'"):
        make_simulator("car-racing", action="steer-accel")


def test_a_record_with_other_actions_is_refused():
    simulator = describe_simulator(make_simulator("CarRacing-v3"))
    other = simulator.action.model_copy(update={"low": (-1.0, 0.0), "high": (1.0, 1.0)})
    with pytest.raises(SimulatorError, match=r"takes 3 native values .* but the record says"):
        make_simulator_from_spec(simulator.model_copy(update={"action": other}))


class ServedEnv(gym.Env):
    """An environment on an imagined server."""

    metadata = {"render_modes": [], "unrecorded": ("port", "host")}  # noqa: RUF012
    observation_space = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, *, render_mode=None, port=1, host="here", level=0):
        self.where = (host, port)
        self.level = level


@pytest.fixture
def served_id():
    gym.register("Served-v0", entry_point=ServedEnv)
    yield "Served-v0"
    gym.registry.pop("Served-v0")


def test_where_a_simulator_runs_is_not_recorded(served_id):
    env = make_simulator(served_id, level=3, port=7, connection={"host": "there"})
    assert env.unwrapped.where == ("there", 7)
    simulator = describe_simulator(env)
    assert simulator.kwargs == {"level": 3}
    elsewhere = make_simulator_from_spec(simulator, connection={"port": 9, "host": ("not", object())})
    assert elsewhere.unwrapped.where[1] == 9  # what is not recorded need not be a JSON value
    assert elsewhere.unwrapped.level == 3
    assert describe_simulator(elsewhere) == simulator
    assert split_connection(served_id, {"level": 3, "port": 7}) == ({"level": 3}, {"port": 7})
    assert has_connection(served_id)
    assert not has_connection("car-racing")


@pytest.mark.parametrize(
    ("name", "connection", "told"),
    [
        ("Served-v0", {"level": 3}, "'level' is no setting of the connection to Served-v0; give it with"),
        ("Served-v0", {"prt": 3}, r"'prt' is no setting of the connection to Served-v0 \(did you mean 'port'\?\)"),
        ("car-racing", {"port": 3}, "CarRacingDriving-v0 runs without a server, so 'port' cannot be set for it"),
    ],
)
def test_a_connection_takes_its_own_arguments_only(served_id, name, connection, told):
    with pytest.raises(SimulatorError, match=told):
        make_simulator(name, connection=connection)


def test_the_address_of_a_carla_server_is_not_recorded():
    pytest.importorskip("carla")
    env = make_simulator("carla", frame_size=32, town="Town02", port=2104, launch=None, restart=True)
    assert env.unwrapped.connection.port == 2104
    simulator = describe_simulator(env)
    assert (simulator.id, simulator.kwargs, simulator.frame_size) == ("CarlaDriving-v0", {"town": "Town02"}, (32, 32))
    made = gym.make("CarlaDriving-v0", frame_size=32, town="Town02", host="there", timeout_s=3.0)
    assert describe_simulator(made) == simulator
    again = make_simulator_from_spec(simulator, connection={"host": "elsewhere", "port": 2204})
    assert (again.unwrapped.connection.host, again.unwrapped.connection.port) == ("elsewhere", 2204)
    with pytest.raises(ConfigError, match="port"):
        make_simulator("carla", connection={"port": -1})


def test_registration_can_be_repeated():
    before = dict(gym.registry)
    register_envs()
    assert gym.registry == before


def test_import_registers_and_stays_light():
    """A fresh process, because this one has long imported everything."""
    code = (
        "import sys, gymnasium, wm_gym\n"
        "assert {'CarRacingDriving-v0', 'DreamDriving-v0'} <= set(gymnasium.registry)\n"
        "heavy = {'torch', 'cv2', 'stable_baselines3', 'pygame', 'Box2D', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_simulators_need_no_torch():
    code = (
        "import sys, wm_gym.envs\n"
        "wm_gym.envs.make_simulator('car-racing').reset(seed=0)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_lazy_names():
    assert wm_gym.envs.CarRacingDrivingEnv.__name__ == "CarRacingDrivingEnv"
    assert set(wm_gym.envs.__all__) <= set(dir(wm_gym.envs))
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = wm_gym.envs.nothing_such
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = wm_gym.nothing_such


def test_an_id_may_name_the_module_that_registers_it(tmp_path, monkeypatch):
    (tmp_path / "my_driving_company.py").write_text(
        "import gymnasium as gym\ngym.register('TheirRacing-v0', entry_point='gymnasium.envs.box2d:CarRacing')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    env = make_simulator("my_driving_company:TheirRacing-v0", frame_size=32)
    frame, _ = env.reset(seed=0)
    assert frame.shape == (32, 32, 3)
    again = make_simulator_from_spec(describe_simulator(env))
    np.testing.assert_array_equal(again.reset(seed=0)[0], frame)
    with pytest.raises(SimulatorError, match="no_such_module"):
        make_simulator("no_such_module:TheirRacing-v0")
    with pytest.raises(
        SimulatorError, match=r"no simulator is called 'my_driving_company:TheirRacing'.*'TheirRacing-v0'"
    ):
        make_simulator("my_driving_company:TheirRacing")


def test_a_module_may_lie_where_the_command_is_called(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "my_track.py").write_text(
        "import gymnasium as gym\ngym.register('MyTrack-v0', entry_point='gymnasium.envs.box2d:CarRacing')\n"
    )
    script = tmp_path / "wm-gym.py"  # the path begins with a script's folder, as that of an installed command does
    script.write_text(
        "import sys\nfrom wm_gym.cli.main import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
    )
    collect = ["collect", "--env", "my_track:MyTrack-v0", "--behaviour", "random", "--episodes", "1", "--out", "data"]
    command = [sys.executable, str(script), *collect, "--max-episode-steps", "2", "--frame-size", "8", "--quiet"]
    done = subprocess.run(command, cwd=tmp_path / "work", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "work" / "data" / "dataset.json").is_file()


class _Odd(gym.Env):
    """Whole numbers as actions, a reward in an array, and an info that holds anything."""

    observation_space = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)
    action_space = gym.spaces.Box(-2, 2, (1,), np.int64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((8, 8, 3), np.uint8), {}

    def step(self, action):
        assert self.action_space.contains(action)
        info = {5: 1.0, "huge": 10**400, "list": [1], "speed": np.float32(3), "done": np.bool_(True)}
        return np.zeros((8, 8, 3), np.uint8), np.array([float(action[0])]), np.array(False), False, info


def test_whole_actions_are_rounded_and_odd_rewards_and_infos_are_taken():
    gym.register("Odd-v0", _Odd, max_episode_steps=9)
    env = make_simulator("Odd-v0")
    env.reset(seed=0)
    assert [env.step(np.array([value], np.float32))[1] for value in (-1.7, -0.6, 0.4, 0.6, 2)] == [-2, -1, 0, 1, 2]
    assert scalar_infos(env.step(np.zeros(1, np.float32))[4]) == {"speed": 3.0, "done": 1.0}
