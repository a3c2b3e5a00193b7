"""Behaviours in the real CarRacing: exact seeding, valid actions, good driving, wide coverage."""

import pickle
import shutil

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wm_gym.actions import ActionFormat
from wm_gym.agents.autopilots import AUTOPILOTS, make_autopilot
from wm_gym.agents.autopilots.car_racing import CarRacingAutopilot, CarRacingRacer, racing_line, speed_profile
from wm_gym.agents.behaviours import (
    BEHAVIOURS,
    BLIND_BEHAVIOURS,
    SIMULATOR_BEHAVIOURS,
    is_privileged,
    make_behaviour,
    refuse_privileged,
)
from wm_gym.agents.bundles.folder import save_agent
from wm_gym.agents.policies.config import AgentConfig
from wm_gym.agents.policies.from_config import resolve
from wm_gym.agents.policies.network import rebuild_policy
from wm_gym.data_collection.datasets.codec import FrameCodec
from wm_gym.data_collection.datasets.episode_file import read_episode
from wm_gym.data_collection.recording.behaviours import ControlSpace, Corrected, Noisy, SmoothNoise, SmoothRandom
from wm_gym.data_collection.recording.driving import drive_episode
from wm_gym.data_collection.recording.plan import EpisodePlan
from wm_gym.data_collection.recording.worker import record_episode
from wm_gym.envs import describe_simulator, make_simulator
from wm_gym.envs.rollout_contract import observation_space_of
from wm_gym.errors import BundleError, ConfigError, SimulatorError
from wm_gym.simulator import SimulatorSpec

DRIVING = ActionFormat.driving()
NATIVE = ActionFormat.native(spaces.Box(np.float32([-1, 0, -3]), np.float32([1, 1, 5])))


@pytest.fixture(scope="module")
def env():
    return make_simulator("car-racing", frame_size=16)


def drive(env, behaviour, seed, num_steps=250):
    """Actions, return and the infos of the first steps of an episode."""
    frame, _ = env.reset(seed=seed)
    behaviour.reset(env, seed)
    actions, infos, total = [], [], 0.0
    for _ in range(num_steps):
        actions.append(behaviour.act(frame))
        frame, reward, terminated, truncated, info = env.step(actions[-1])
        total += reward
        infos.append(info)
        if terminated or truncated:
            break
    return np.stack(actions), total, infos


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_actions_are_stored_ones_and_repeat_with_the_seed(env, name):
    simulator = describe_simulator(env)
    first, total, _ = drive(env, make_behaviour(name, simulator), seed=21, num_steps=40)
    used = make_behaviour(name, simulator)
    drive(env, used, seed=22, num_steps=15)
    again, total_again, _ = drive(env, used, seed=21, num_steps=40)
    np.testing.assert_array_equal(again, first)
    assert total_again == total
    assert first.dtype == np.float32
    np.testing.assert_array_equal(DRIVING.to_stored(first), first)
    assert (first[:, 3] == 1).all()
    assert (np.minimum(first[:, 1], first[:, 2]) == 0).all(), "throttle and brake at once"


@pytest.mark.parametrize("name", ["random", "noisy"])
def test_another_seed_gives_other_actions(env, name):
    behaviour = make_behaviour(name, describe_simulator(env))
    env.reset(seed=1)
    behaviour.reset(env, 1)
    frame = env.observation_space.sample()
    first = [behaviour.act(frame) for _ in range(30)]
    behaviour.reset(env, 2)
    second = [behaviour.act(frame) for _ in range(30)]
    assert not np.array_equal(first, second)


def test_random_actions_change_gradually_and_cover_a_native_range():
    env = make_simulator("CarRacing-v3", frame_size=16, action_repeat=4)
    simulator = describe_simulator(env)
    behaviour = make_behaviour("random", simulator)
    frame, _ = env.reset(seed=0)
    actions = []
    for seed in range(20):
        behaviour.reset(env, seed)
        actions.append([behaviour.act(frame) for _ in range(200)])
    values = np.array(actions)  # (episodes, steps, 3)
    assert env.action_space.contains(values[0, 0])
    env.step(values[0, 0])
    low, high = env.action_space.low, env.action_space.high
    assert (values >= low).all()
    assert (values <= high).all()
    assert (values.min(axis=(0, 1)) < low + 0.02 * (high - low)).all()
    assert (values.max(axis=(0, 1)) > high - 0.02 * (high - low)).all()
    change = np.abs(np.diff(values, axis=1)).mean(axis=(0, 1))
    shuffled = np.abs(values[:, 1:] - np.random.default_rng(0).permuted(values, axis=1)[:, 1:]).mean(axis=(0, 1))
    assert (change < 0.6 * shuffled).all()


def test_smooth_noise_has_the_scale_and_correlation_asked_for():
    noise = SmoothNoise(np.random.default_rng(0), np.array([0.5, 2.0]), correlation_steps=5.0)
    values = np.array([noise.step() for _ in range(20_000)])
    np.testing.assert_allclose(values.std(axis=0), [0.5, 2.0], rtol=0.08)
    for column in values.T:
        assert np.corrcoef(column[:-5], column[5:])[0, 1] == pytest.approx(np.exp(-1), abs=0.06)


@given(hnp.arrays(np.float64, 3, elements=st.floats(-1, 1)))
def test_native_controls_and_actions_are_inverse(controls):
    space = ControlSpace(NATIVE)
    np.testing.assert_allclose(space.from_action(space.to_action(controls)), controls, atol=1e-5)


@given(hnp.arrays(np.float64, 2, elements=st.floats(-3, 3)))
@settings(deadline=None)
def test_driving_controls_never_press_both_pedals(controls):
    space = ControlSpace(DRIVING)
    action = space.to_action(controls)
    assert min(action[1], action[2]) == 0
    np.testing.assert_allclose(space.from_action(action), np.clip(controls, -1, 1), atol=1e-6)


def test_autopilot_drives_fast_clean_laps(env):
    """Seeds other than those on which its constants were chosen."""
    returns, off_road = [], []
    for seed in (500, 501, 502):
        _, total, infos = drive(env, make_autopilot("CarRacingDriving-v0"), seed)
        returns.append(total)
        off_road.extend(info["off_road"] for info in infos)
    assert np.mean(returns) > 880
    assert np.mean(off_road) < 0.02


def test_the_racer_finishes_every_lap_and_is_faster_than_the_autopilot(env, driving_spec):
    """Seeds other than those on which its constants were chosen."""
    racer = make_behaviour("racer", driving_spec)
    for seed in (500, 501, 502):
        _, total, infos = drive(env, racer, seed)
        _, of_the_autopilot, _ = drive(env, make_autopilot("CarRacingDriving-v0"), seed)
        assert infos[-1]["lap_finished"]
        assert total > of_the_autopilot + 2


def test_the_racers_brake_slows_the_car_as_the_speeds_count_on(env):
    """Straight on, from a speed far above the one that it would have."""
    env.reset(seed=1)
    racer = CarRacingRacer()
    racer.reset(env, 1)
    for _ in range(14):
        *_, info = env.step(np.array([0, 0.6, 0, 1], np.float32))
    before = info["speed"]
    brake = racer._pedals(before, 1.0, 0.0)[1]
    for _ in range(3):
        *_, info = env.step(np.array([0, 0, brake, 1], np.float32))
    deceleration = (before - info["speed"]) / (3 * env.unwrapped.step_s)
    assert deceleration == pytest.approx(1.2 * racer.manner.braking, rel=0.15)


def test_autopilot_returns_to_the_road_after_being_thrown_off(env):
    env.reset(seed=30)
    car = env.unwrapped.simulation.car
    away = np.array([np.cos(car.hull.angle), np.sin(car.hull.angle)]) * 20  # to the right of the road
    for body in (car.hull, *car.wheels):
        body.position += tuple(away)
    behaviour = make_autopilot("CarRacingDriving-v0")
    behaviour.reset(env, 30)
    frame, *_, info = env.step(np.array([0, 0, 0, 1], np.float32))
    assert info["off_road"] == 1
    for _ in range(60):
        frame, *_, info = env.step(behaviour.act(frame))
    assert info["off_road"] == 0
    assert info["speed"] > 20


def test_a_varied_pace_is_drawn_from_the_seed(env):
    mean_speed = {}
    behaviour = CarRacingAutopilot(varied_pace=True)
    for seed in range(40, 46):
        _, _, infos = drive(env, behaviour, seed, num_steps=60)
        mean_speed[seed] = np.mean([info["speed"] for info in infos[20:]])
    assert max(mean_speed.values()) > 1.5 * min(mean_speed.values())


def test_noisy_episodes_range_from_clean_to_off_the_road(env):
    behaviour = make_behaviour("noisy", describe_simulator(env))
    infos = [drive(env, behaviour, seed, num_steps=120)[2] for seed in range(60, 68)]
    off_road = [np.mean([info["off_road"] for info in episode]) for episode in infos]
    speeds = np.array([info["speed"] for episode in infos for info in episode])
    assert min(off_road) < 0.03
    assert max(off_road) > 0.2
    assert np.percentile(speeds, 10) < 20
    assert np.percentile(speeds, 90) > 60


def test_swerving_is_disturbed_at_speed(env):
    behaviour = make_behaviour("swerving", describe_simulator(env))
    infos = [drive(env, behaviour, seed, num_steps=120)[2] for seed in range(60, 66)]
    speeds = np.array([info["speed"] for episode in infos for info in episode[40:]])
    off_road = np.array([info["off_road"] for episode in infos for info in episode])
    assert np.median(speeds) > 45
    assert off_road.mean() > 0.01
    assert behaviour.name == "swerving"


class _Recording:
    """A driver that writes down what it is told."""

    name = "recording"

    def __init__(self):
        self.told = []

    def reset(self, env, seed):
        pass

    def act(self, observation):
        return np.array((0.0, 0.5, 0.0, 1.0), np.float32)

    def carried_out(self, action):
        self.told.append(action)


def test_a_driver_is_told_of_the_disturbed_action(env):
    inner = _Recording()
    noisy = Noisy(inner, DRIVING)
    frame, _ = env.reset(seed=0)
    noisy.reset(env, 0)
    given = [noisy.act(frame) for _ in range(30)]
    np.testing.assert_array_equal(np.stack(inner.told), np.stack(given))


def test_what_a_disturbed_driver_intended_is_recorded(env, tmp_path):
    noisy, undisturbed = Noisy(_Recording(), DRIVING), _Recording()
    plan = EpisodePlan(index=0, seed=5, behaviour_seed=6, behaviour="noisy")
    meant = np.tile(undisturbed.act(None), (30, 1))
    for behaviour, is_disturbed in ((noisy, True), (undisturbed, False)):
        steps = drive_episode(env, behaviour, seed=5, behaviour_seed=6, action=DRIVING, max_steps=30)
        header = record_episode(steps, plan, FrameCodec.parse("raw")).write(tmp_path)
        episode = read_episode(header.path)
        np.testing.assert_array_equal(episode.intended_actions, meant)
        assert (np.abs(episode.actions - meant).max() > 0.05) == is_disturbed
        assert any(name.startswith("intended_action") for name in episode.infos) == is_disturbed


@pytest.mark.parametrize("is_disturbed", [False, True])
def test_what_the_teacher_would_have_done_is_recorded(env, tmp_path, is_disturbed):
    teacher = _Recording()
    learner = Corrected(SmoothRandom(DRIVING), teacher, DRIVING)
    driver = Noisy(learner, DRIVING) if is_disturbed else learner
    corrected = "corrected(random by recording)"
    assert driver.name == (f"noisy({corrected})" if is_disturbed else corrected)
    plan = EpisodePlan(index=0, seed=5, behaviour_seed=6, behaviour=driver.name)
    steps = drive_episode(env, driver, seed=5, behaviour_seed=6, action=DRIVING, max_steps=30)
    episode = read_episode(record_episode(steps, plan, FrameCodec.parse("raw")).write(tmp_path).path)
    np.testing.assert_array_equal(episode.intended_actions, np.tile(teacher.act(None), (30, 1)))
    np.testing.assert_array_equal(teacher.told[-1], episode.actions[-1])

    alone = SmoothRandom(DRIVING)
    alone.reset(None, 6)
    undisturbed = np.stack([alone.act(None) for _ in range(30)])
    assert np.array_equal(episode.actions, undisturbed) != is_disturbed


@pytest.mark.parametrize(("name", "by"), [("corrected(random)", "autopilot"), ("corrected(random by racer)", "racer")])
def test_the_teacher_is_the_autopilot_or_who_is_named(env, driving_spec, name, by):
    corrected, teacher = make_behaviour(name, driving_spec), make_behaviour(by, driving_spec)
    assert corrected.name == name
    frame, _ = env.reset(seed=5)
    corrected.reset(env, 6)
    teacher.reset(env, 6)
    for _ in range(20):
        meant = teacher.act(frame)
        frame, *_ = env.step(corrected.act(frame))
        np.testing.assert_array_equal(corrected.intended_action, meant)


@pytest.mark.parametrize("action", [DRIVING, NATIVE])
def test_noisy_stays_near_the_inner_action_between_disturbances(env, action):
    inner, reference = SmoothRandom(action), SmoothRandom(action)
    noisy = Noisy(inner, action)
    env.reset(seed=0)
    frame = env.observation_space.sample()
    differences = []
    for seed in range(5):
        noisy.reset(env, seed)
        reference.reset(env, seed)
        for _ in range(200):
            differences.append(abs(float(noisy.act(frame)[0]) - float(reference.act(frame)[0])))
    # Every action is jittered a little (deviation at most 0.4), and some stretches are disturbed a lot.
    assert 0.02 < np.median(differences) < 0.4
    assert 0.01 < np.mean(np.asarray(differences) > 0.8) < 0.4


def test_names_are_recorded(driving_spec):
    assert SmoothRandom(DRIVING).name == "random"
    assert Noisy(make_autopilot("CarRacingDriving-v0"), DRIVING).name == "noisy"
    assert Noisy(SmoothRandom(DRIVING), DRIVING).name == "noisy(random)"
    for name in ("swerving", "swerving(racer)", "noisy(racer)", "noisy(corrected(random by racer))"):
        assert make_behaviour(name, driving_spec).name == name


def test_racing_line_bends_less_and_is_faster_than_the_centre_line(env):
    env.reset(seed=3)
    centre_line = env.unwrapped.centre_line
    line = racing_line(centre_line, half_width=4.0)
    assert np.linalg.norm(line - centre_line, axis=1).max() <= 4.0 + 1e-9

    def squared_bend(points):
        return np.square(np.roll(points, 1, 0) - 2 * points + np.roll(points, -1, 0)).sum()

    def lap_s(points):
        return (np.linalg.norm(np.roll(points, -1, 0) - points, axis=1) / speed_profile(points)).sum()

    assert squared_bend(line) < 0.7 * squared_bend(centre_line)
    assert lap_s(line) < lap_s(centre_line)


def test_speed_profile_keeps_the_lateral_grip_of_a_circle_and_brakes_before_bends():
    angle = np.linspace(0, 2 * np.pi, 100, endpoint=False)
    circle = 20 * np.stack((np.cos(angle), np.sin(angle)), axis=1)
    speeds = speed_profile(circle)
    np.testing.assert_allclose(speeds**2 / 20, 110.0, rtol=0.02)
    oval = np.stack((200 * np.cos(angle), 20 * np.sin(angle)), axis=1)
    speeds = speed_profile(oval)
    spacing = np.linalg.norm(np.roll(oval, -1, 0) - oval, axis=1)
    braking = (speeds**2 - np.roll(speeds, -1) ** 2) / (2 * spacing)
    assert braking.max() <= 90.0 + 1e-6
    assert speeds.min() < 0.8 * speeds.max()


def test_makers_can_be_sent_to_worker_processes(env):
    assert pickle.loads(pickle.dumps(make_behaviour)) is make_behaviour


@pytest.mark.parametrize(
    ("name", "error", "told"),
    [
        ("autopilt", ConfigError, "did you mean 'autopilot'"),
        ("runs/no/such_agent", ConfigError, "neither an agent's folder nor a known name"),
    ],
)
def test_unknown_names_are_refused(env, name, error, told):
    with pytest.raises(error, match=told):
        make_behaviour(name, describe_simulator(env))


def test_a_trained_agent_is_a_behaviour(tmp_path, tiny_model, driving_spec):
    config = resolve(AgentConfig(algo="ppo", net_arch=(8,)), driving_spec.action)
    spaces_of_dream = observation_space_of(tiny_model, "latent"), driving_spec.action.space("steer_accel")
    save_agent(tmp_path / "agent", rebuild_policy(config, *spaces_of_dream), tiny_model, config)
    behaviour = make_behaviour(str(tmp_path / "agent"), driving_spec)
    shutil.copytree(tmp_path / "agent", tmp_path / "made by me")
    assert (
        make_behaviour(f"corrected({tmp_path / 'made by me'} by random)", driving_spec).name
        == "corrected(agent by random)"
    )
    env = make_simulator("car-racing")
    first, _, _ = drive(env, behaviour, seed=3, num_steps=4)
    again, _, _ = drive(env, behaviour, seed=3, num_steps=4)
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(DRIVING.to_stored(first), first)
    with pytest.raises(SimulatorError, match="CarRacing-v3 takes 3 native values"):
        make_behaviour(str(tmp_path / "agent"), describe_simulator(make_simulator("CarRacing-v3", frame_size=64)))


class _TouchedError(Exception):
    pass


class _Sealed(gym.Env):
    """A simulator whose state nobody may read."""

    def __getattribute__(self, name):
        raise _TouchedError(name)


KNOWN = [
    (how.format(name), simulator)
    for simulator in AUTOPILOTS
    for name in (*BEHAVIOURS, *BLIND_BEHAVIOURS, *SIMULATOR_BEHAVIOURS, "AGENT", "sampled(AGENT)")
    for how in ("{}", "noisy({})", "swerving({})", "corrected({})", "corrected({} by random)")
    if simulator in SIMULATOR_BEHAVIOURS.get(name, AUTOPILOTS)
]


@pytest.mark.parametrize(("name", "simulator"), KNOWN)
def test_privileged_are_those_that_read_the_simulators_state(name, simulator, tmp_path, tiny_model, rng):
    spec = SimulatorSpec(id=simulator, frame_size=(64, 64), action=DRIVING, step_s=0.08)
    if "AGENT" in name:
        tiny_model.simulator = spec
        config = resolve(AgentConfig(algo="ppo", net_arch=(8,)), DRIVING)
        of_dream = observation_space_of(tiny_model, "latent"), DRIVING.space("steer_accel")
        save_agent(tmp_path / "agent", rebuild_policy(config, *of_dream), tiny_model, config)
    name = name.replace("AGENT", str(tmp_path / "agent")).replace("STEERING ACCELERATION", "0.1 0.3")
    behaviour = make_behaviour(name, spec)
    reads = False
    try:
        behaviour.reset(_Sealed(), 0)
        for _ in range(30):
            behaviour.act(rng.integers(0, 255, (64, 64, 3), np.uint8))
    except _TouchedError:
        reads = True
    assert is_privileged(name) == reads
    assert is_privileged(behaviour.name) == reads, "as datasets record it"


def test_a_mix_with_a_privileged_behaviour_is_refused():
    refuse_privileged(["random", "held(0 0.2)", "noisy(random)", "runs/autopilot"])
    with pytest.raises(ConfigError, match=r"the behaviour 'noisy\(reckless\)' reads the simulator's state, which --no"):
        refuse_privileged(["random", "noisy(reckless)"])


def test_a_folder_that_is_no_agent_is_told(tmp_path, driving_spec):
    with pytest.raises(BundleError, match="is no agent"):
        make_behaviour(str(tmp_path), driving_spec)


@pytest.mark.parametrize("name", ["autopilot", "noisy"])
def test_a_simulator_without_autopilot_is_told(name):
    simulator = describe_simulator(make_simulator("CarRacing-v3"))
    with pytest.raises(SimulatorError, match="CarRacing-v3 has no autopilot"):
        make_behaviour(name, simulator)


def test_an_autopilot_refuses_another_simulator():
    with pytest.raises(SimulatorError, match="CarRacingDriving-v0 only"):
        CarRacingAutopilot().reset(gym.make("CarRacing-v3"), 0)
    with pytest.raises(SimulatorError, match="reset"):
        CarRacingAutopilot().act(np.zeros((64, 64, 3), np.uint8))


def test_every_registered_autopilot_is_for_a_registered_simulator():
    assert set(AUTOPILOTS) <= set(gym.registry)
