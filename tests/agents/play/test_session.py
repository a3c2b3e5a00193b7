"""What is driven where, from which start, by whom; without a network."""

import numpy as np
import pytest
import torch

from wm_gym.actions import ActionFormat
from wm_gym.agents import Driver
from wm_gym.agents.play.controls import HandControls
from wm_gym.agents.play.drive_record import DriveRecord
from wm_gym.agents.play.loading import load_setup
from wm_gym.agents.play.session import MODES, PlaySession, PlaySetup
from wm_gym.agents.policies.network import rebuild_policy
from wm_gym.agents.policies.observers import PixelObserver
from wm_gym.agents.policies.pixel_config import PixelAgentConfig
from wm_gym.data_collection import CollectionSettings, Dataset, DatasetMetadata, verify
from wm_gym.data_collection.datasets.episode_file import read_episode
from wm_gym.envs.simulators import describe_simulator, make_simulator, make_simulator_from_spec
from wm_gym.errors import BundleError, ConfigError, DatasetError
from wm_gym.frames import frames_to_tensor, tensor_to_frames
from wm_gym.observation import Observation, split_observation
from wm_gym.rollouts import follow
from wm_gym.world_model import WorldModel

GAS = HandControls(throttle=0.6)
LEFT = HandControls(steering=-0.4, throttle=0.3)


def drive(session, hands):
    """Drive; the leading pictures, the first one included."""
    pictures = [session.leading.observed.image]
    for hand in hands:
        assert session.step(hand)
        pictures.append(session.leading.observed.image)
    return np.stack(pictures)


@pytest.fixture
def session(setup):
    made = PlaySession(setup)
    yield made
    made.close()


def test_a_dream_repeats_from_its_start_and_follows_the_wheel(session):
    session.start(mode="dream", start_state=7, seed=3)
    first = drive(session, [GAS] * 6)
    session.again()
    np.testing.assert_array_equal(drive(session, [GAS] * 6), first)
    session.again()
    turned = drive(session, [HandControls(steering=1.0, throttle=0.6)] * 6)
    np.testing.assert_array_equal(turned[0], first[0])
    assert not np.array_equal(turned[-1], first[-1])
    session.next()
    assert session.start_state != 7
    assert not np.array_equal(session.leading.observed.image, first[0])


def test_the_dream_beside_the_simulator_starts_from_what_the_model_filters(session, bundled):
    model = bundled.model

    def decoded(frames, actions):
        state = follow(model, Observation(np.stack(frames), np.zeros((len(frames), 0), np.float32)), actions)[-1]
        with torch.no_grad():
            return tensor_to_frames(model.decode(state))[0].numpy()

    session.start(mode="both", seed=5)
    frames, actions = [session.views["simulator"].observed.image], []
    np.testing.assert_array_equal(session.views["dream"].observed.image, decoded(frames, np.zeros((0, 4), np.float32)))
    for hand in (GAS, LEFT, GAS, GAS):
        session.step(hand)
        frames.append(session.views["simulator"].observed.image)
        actions.append(session.action)
    assert session.views["dream"].steps == 4
    session.dream_again()
    assert session.views["dream"].steps == 0
    np.testing.assert_array_equal(session.views["dream"].observed.image, decoded(frames, np.stack(actions)))


def test_simulator_and_dream_take_the_same_actions(session, bundled):
    session.start(mode="both", seed=11)
    pictures = drive(session, [GAS, LEFT, LEFT])
    env = make_simulator_from_spec(bundled.model.simulator)
    seen = [env.reset(seed=11)[0]]
    for hand in (GAS, LEFT, LEFT):
        seen.append(env.step(np.array([hand.steering, hand.throttle, hand.brake, 1.0], np.float32))[0])
    env.close()
    np.testing.assert_array_equal(pictures, np.stack(seen))


def test_a_dream_beside_the_simulator_that_ends_starts_again(session):
    session.start(mode="both", seed=1)
    session.horizon = 3
    session.again()
    steps = []
    for _ in range(6):
        session.step(GAS)
        steps.append(session.views["dream"].steps)
    assert steps == [1, 2, 3, 0, 1, 2]
    assert session.views["simulator"].steps == 6
    assert session.ended is None


@pytest.mark.parametrize("mode", ["simulator", "both"])
def test_the_agent_takes_over_as_one_that_has_watched_all_along(session, bundled, mode):
    """A driver by itself, told of the hand's actions, does the same as the one that takes over."""
    session.start(mode=mode, seed=2)
    watching = Driver(bundled.driver.model, bundled.driver.policy, bundled.driver.action)
    for hand in (GAS, GAS, LEFT):
        watching.act(session.leading.observed)
        session.step(hand)
        watching.carried_out(session.action)
    session.pilot.who = "agent"
    for _ in range(3):
        expected = watching.act(session.leading.observed)
        session.step(GAS)
        np.testing.assert_allclose(session.action, expected, atol=1e-5)
    session.pilot.who = "hand"
    session.step(LEFT)
    np.testing.assert_allclose(session.action, [-0.4, 0.3, 0.0, 1.0])


def test_an_agent_of_another_model_is_shown_the_pictures_of_the_dream(bundled, tiny_model):
    session = PlaySession(PlaySetup(model=tiny_model, driver=bundled.driver, termination="never"))
    session.start(mode="dream", start_state=0)
    watching = Driver(bundled.driver.model, bundled.driver.policy, bundled.driver.action)
    session.pilot.who = "agent"
    for _ in range(3):
        expected = watching.act(session.leading.observed)
        session.step(GAS)
        np.testing.assert_allclose(session.action, expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["dream", "simulator"])
def test_an_agent_that_sees_pixels_watches_while_the_hand_drives(bundled, mode):
    observer = PixelObserver(bundled.model.simulator, 3)
    config = PixelAgentConfig(frame_stack=3, features_dim=8, net_arch=(8,), action="steer_accel")
    policy = rebuild_policy(config, observer.space, bundled.model.simulator.action.space("steer_accel"))
    policy.set_training_mode(False)
    session = PlaySession(PlaySetup(model=bundled.model, driver=Driver(observer, policy, config.action)))
    watching = Driver(PixelObserver(bundled.model.simulator, 3), policy, config.action)
    session.start(mode=mode, start_state=5)
    for _ in range(3):
        watching.act(session.leading.observed)
        session.step(GAS)
        watching.carried_out(session.action)
    session.pilot.who = "agent"
    expected = watching.act(session.leading.observed)
    session.step(GAS)
    np.testing.assert_allclose(session.action, expected, atol=1e-6)
    session.close()


def test_the_agent_drives_a_dream_well(session):
    """It was trained there: by hand without a hand the car rolls off the road."""
    returns = {}
    for who in ("hand", "agent"):
        session.start(mode="dream", start_state=40, seed=0)
        session.pilot.who = who
        for _ in range(60):
            session.step(HandControls())
        returns[who] = session.leading.return_
    assert returns["agent"] > returns["hand"] + 50


def test_a_dream_ends_at_its_horizon(session):
    session.horizon = 2
    session.start(mode="dream", start_state=3)
    assert session.step(GAS)
    assert session.ended is None
    assert session.step(GAS)
    assert session.ended == "the horizon of 2 steps is reached"
    assert not session.step(GAS)
    session.horizon = 5  # from the next start on
    session.again()
    drive(session, [GAS] * 5)
    assert session.ended == "the horizon of 5 steps is reached"


def test_another_temperature_counts_from_the_next_start_on(session, bundled):
    def dream(temperature):
        session.dream.temperature = temperature
        session.start(mode="dream", start_state=3, seed=4)
        return np.stack(drive(session, [GAS] * 8))

    learnt, hot = dream(1.0), dream(2.5)
    assert not np.array_equal(learnt, hot)
    np.testing.assert_array_equal(dream(2.5), hot)
    session.dream.temperature = 1.0
    session.start(mode="both", seed=2)
    np.testing.assert_array_equal(dream(1.0), learnt)
    assert bundled.model.dynamics.draw.temperature == 1.0  # other pages dream with it, too


def test_drives_are_kept_as_datasets(setup, bundled, tmp_path):
    told = []
    session = PlaySession(setup, told.append)
    session.start(mode="simulator", seed=21)
    session.keeps_drives = True
    pictures = [drive(session, [GAS] * 3)]
    session.pilot.who = "agent"
    pictures.append(drive(session, [GAS] * 4)[1:])
    rewards = session.leading.return_
    session.next()  # keeps the one before
    drive(session, [GAS] * 2)
    session.start(mode="dream", start_state=9)
    dreamt = drive(session, [GAS] * 5)
    session.close()
    assert [sentence.split(" as ")[0] for sentence in told] == [f"Kept a drive of {steps} steps" for steps in (7, 2, 5)]

    folder = tmp_path / "drives" / "simulator"
    assert verify(folder).problems == []
    dataset = Dataset.open(folder)
    assert [(header.seed, header.behaviour, header.length, header.end) for header in dataset.episodes] == [
        (21, "hand+agent", 7, "none"),
        (22, "agent", 2, "none"),
    ]
    episode = read_episode(dataset.episodes[0].path)
    np.testing.assert_array_equal(episode.frames, np.concatenate(pictures))
    assert episode.return_ == pytest.approx(rewards, abs=1e-3)
    np.testing.assert_array_equal(episode.infos["by_hand"], [1, 1, 1, 0, 0, 0, 0])
    assert "progress" in episode.infos

    dreams = tmp_path / "drives" / "dream"
    assert verify(dreams).problems == []
    assert "not simulated" in Dataset.open(dreams).metadata.source
    episode = read_episode(Dataset.open(dreams).episodes[0].path)
    np.testing.assert_array_equal(episode.frames, dreamt)
    assert episode.seed == -1

    # The next wm-gym play adds to them.
    record = DriveRecord(tmp_path / "drives", bundled.model.simulator)
    again = PlaySession(PlaySetup(model=bundled.model, record=record))
    again.start(mode="simulator", seed=4)
    again.keeps_drives = True
    drive(again, [GAS])
    again.keeps_drives = False  # what has been driven by then
    drive(again, [GAS])
    again.close()
    assert [header.length for header in Dataset.open(folder).episodes] == [7, 2, 1]
    assert verify(folder).problems == []


def test_a_drive_is_not_kept_unasked(session, tmp_path):
    session.start(mode="dream")
    drive(session, [GAS] * 2)
    session.next()
    assert not (tmp_path / "drives").exists()


def test_a_drive_may_be_kept_after_its_end(session, tmp_path):
    session.horizon = 3
    session.start(mode="dream")
    drive(session, [GAS] * 3)
    assert session.ended is not None
    session.keeps_drives = True
    session.next()
    assert [header.length for header in Dataset.open(tmp_path / "drives" / "dream").episodes] == [3]


def test_a_drive_that_went_wrong_is_not_kept(tiny_model, tmp_path):
    session = PlaySession(PlaySetup(model=tiny_model, record=DriveRecord(tmp_path, tiny_model.simulator)))
    session.start(mode="dream")
    session.keeps_drives = True
    with torch.no_grad():
        tiny_model.reward_head.mlp[-1].weight.fill_(torch.nan)
    with pytest.raises(BundleError, match="not finite"):
        session.step(GAS)
    assert session.ended == "an error"
    session.close()
    assert not (tmp_path / "dream").exists()


def test_a_drive_that_cannot_be_kept_does_not_end_the_session(setup, tmp_path):
    told = []
    session = PlaySession(setup, told.append)
    session.start(mode="dream")
    session.keeps_drives = True
    drive(session, [GAS])
    (tmp_path / "drives" / "dream").mkdir(parents=True)
    (tmp_path / "drives" / "dream" / "letter.txt").write_text("not ours")
    session.next()
    assert len(told) == 1
    assert told[0].startswith("The drive was not kept: ")
    assert session.step(GAS)


def test_drives_are_not_mixed_into_a_collected_dataset(bundled, tmp_path):
    collection = CollectionSettings(seed=0, behaviours={"random": 1.0})
    DatasetMetadata(simulator=bundled.model.simulator, collection=collection, source="collected").write(
        tmp_path / "simulator"
    )
    with pytest.raises(DatasetError, match="comes from elsewhere"):
        DriveRecord(tmp_path, bundled.model.simulator)


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda session: session.start(seed=1_000_000), "held out"),
        (lambda session: session.start(seed=-1), "not in 0 to"),
        (lambda session: session.start(start_state=session.dream.num_start_states), "there is no start state"),
        (lambda session: setattr(session, "horizon", 0), "horizon"),
        (lambda session: setattr(session, "horizon", 10**9), "too long"),
        (lambda session: setattr(session.dream, "temperature", 0.0), "not in 0.1 to 5"),
        (lambda session: session.dream_again(), "choose both"),
    ],
)
def test_what_is_refused_changes_nothing(session, act, sentence):
    session.start(mode="dream", start_state=5)
    drive(session, [GAS])
    before = (session.seed, session.start_state, session.horizon, session.mode)
    with pytest.raises(ConfigError, match=sentence):
        act(session)
    assert (session.seed, session.start_state, session.horizon, session.mode) == before
    assert session.step(GAS)


def test_without_agent_or_folder(bundled):
    session = PlaySession(PlaySetup(model=bundled.model))
    with pytest.raises(ConfigError, match="--agent"):
        session.pilot.who = "agent"
    with pytest.raises(ConfigError, match="--record"):
        session.keeps_drives = True
    session.start()
    assert session.step(GAS)


@pytest.fixture
def vector_model(debug_config):
    """An untrained model of CarRacing with numbers beside the picture."""
    env = make_simulator("car-racing", vector=["speed", "yaw_rate"])
    torch.manual_seed(0)
    model = WorldModel(debug_config.model, describe_simulator(env)).eval()
    seen = split_observation(env.reset(seed=0)[0])
    env.close()
    image, vector = (torch.from_numpy(part)[None] for part in seen)
    with torch.no_grad():
        model.start_states = model.initial_state(Observation(frames_to_tensor(image), vector))
    return model


def test_the_vector_comes_along_in_both_worlds_and_into_the_record(vector_model, tmp_path):
    session = PlaySession(
        PlaySetup(model=vector_model, record=DriveRecord(tmp_path, vector_model.simulator), termination="never")
    )
    session.start(mode="both", seed=6)
    session.keeps_drives = True
    speeds = [session.views["simulator"].observed.vector[0]]
    for _ in range(5):
        session.step(GAS)
        speeds.append(session.views["simulator"].observed.vector[0])
        dreamt = session.views["dream"].observed.vector
        assert dreamt.shape == (2,)
        assert np.isfinite(dreamt).all()
    assert speeds[-1] > speeds[0]
    session.close()
    assert verify(tmp_path / "simulator").problems == []
    episode = read_episode(Dataset.open(tmp_path / "simulator").episodes[0].path)
    np.testing.assert_array_equal(episode.vectors[:, 0], np.float32(speeds))


def test_what_it_is_started_with_is_checked(bundled, tmp_path):
    for settings in ({"seed": 1_000_000}, {"horizon": 0}, {"termination": "soon"}):
        with pytest.raises(ConfigError):
            PlaySetup(model=bundled.model, **settings)
    (tmp_path / "dream").mkdir()
    (tmp_path / "dream" / "letter.txt").write_text("not ours")
    with pytest.raises(DatasetError, match="not empty"):
        load_setup(record=tmp_path)


def test_the_hand_in_other_action_formats():
    hand = HandControls(steering=-0.5, throttle=0.8, brake=0.2, reverse=True)
    np.testing.assert_allclose(hand.to_action(ActionFormat.driving()), [-0.5, 0.8, 0.2, -1])
    car_racing = ActionFormat(kind="native", low=(-1, 0, 0), high=(1, 1, 1))
    np.testing.assert_allclose(hand.to_action(car_racing), [-0.5, 0.8, 0.2])
    donkey = ActionFormat(kind="native", low=(-2, -1), high=(2, 5))
    np.testing.assert_allclose(hand.to_action(donkey), [-1, 3], rtol=1e-6)
    np.testing.assert_allclose(HandControls(brake=1.0).to_action(donkey), [0, -1])
    np.testing.assert_allclose(hand.to_action(ActionFormat(kind="native", low=(-1,), high=(1,))), [-0.5])
    assert MODES == ("dream", "simulator", "both")
