import numpy as np
import pytest
import torch
from toy_world import PointWorld

from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.evaluation.reality_gap import DriveSteps, imagine_along, measure_drive, side_by_side, summarise_gap
from wm_gym.agents.evaluation.video import VideoWriter, write_video
from wm_gym.envs.latent_observation import LatentObservation
from wm_gym.envs.simulators import make_simulator
from wm_gym.errors import DatasetError, SimulatorError
from wm_gym.frames import tensor_to_frames
from wm_gym.state import LatentState
from wm_gym.uncertainty import Uncertainty, VarianceNetwork


@pytest.fixture
def drive(rng):
    frames = rng.integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
    return frames, rng.uniform(0, 1, (6, 4)).astype(np.float32)


def test_a_dream_begins_in_the_state_of_the_real_drive(tiny_model):
    env = LatentObservation(make_simulator("car-racing"), tiny_model)
    env.reset(seed=1)
    frames, actions = [env.unwrapped._observe()], []
    for _ in range(5):
        actions.append(env.action_space.sample())
        env.step(actions[-1])
        frames.append(env.unwrapped._observe())
        if len(actions) == 2:
            state = env.state
    stored = tiny_model.simulator.action.to_stored(np.stack(actions))
    dream = imagine_along(tiny_model, np.stack(frames), stored, context=3)
    assert [len(part) for part in dream] == [3, 3, 3]
    with torch.no_grad():
        for k in range(3):
            state, reward, continuation = tiny_model.imagine(state, torch.from_numpy(stored[2 + k : 3 + k]))
            assert dream.rewards[k] == pytest.approx(reward.item(), abs=1e-5)
            assert dream.continuations[k] == pytest.approx(continuation.item(), abs=1e-5)
            decoded = tensor_to_frames(tiny_model.decode(state))[0].numpy()
            assert np.abs(dream.frames[k].astype(int) - decoded).max() <= 1


def test_later_frames_are_not_seen(tiny_model, drive):
    frames, actions = drive
    dream = imagine_along(tiny_model, frames, actions, context=2)
    changed = frames.copy()
    changed[2:] = 0
    assert np.array_equal(dream.frames, imagine_along(tiny_model, changed, actions, context=2).frames)
    changed[1] = 0
    assert not np.array_equal(dream.frames, imagine_along(tiny_model, changed, actions, context=2).frames)


def test_drives_that_do_not_fit_are_refused(tiny_model, drive):
    frames, actions = drive
    with pytest.raises(DatasetError, match="6 actions need 7 frames, uint8 64x64"):
        imagine_along(tiny_model, frames[:-1], actions)
    with pytest.raises(DatasetError, match="context=7 must be 1 to 6"):
        imagine_along(tiny_model, frames, actions, context=7)


def test_pictures_side_by_side(drive):
    frames, _ = drive
    pictures = side_by_side(frames, 255 - frames, height=128)
    assert len(pictures) == 7
    assert {(picture.shape, picture.dtype.name) for picture in pictures} == {((146, 260, 3), "uint8")}
    left, right = pictures[3][18:, :128], pictures[3][18:, 132:]
    assert np.array_equal(left[::2, ::2], frames[3])
    assert np.array_equal(right, 255 - left)
    assert pictures[0][:18].max() > 200
    with pytest.raises(DatasetError, match="must have one shape"):
        side_by_side(frames, frames[1:])


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_video_that_fails_leaves_nothing(suffix, tmp_path, drive):
    frames, _ = drive
    with pytest.raises(SimulatorError, match="frames of one size, but after 64x64 came 32x64"):
        write_video(tmp_path / f"drive{suffix}", [frames[0], frames[1, ::2]], fps=10)
    with VideoWriter(tmp_path / f"empty{suffix}", 10):
        pass
    assert not list(tmp_path.iterdir())


def test_odd_sides_are_written_too(tmp_path, drive):
    frames, _ = drive
    write_video(tmp_path / "odd.mp4", frames[:, :63, :61], fps=10)
    assert (tmp_path / "odd.mp4").stat().st_size > 0


class Optimist(PointWorld):
    """A world that pays 2 a step where the real one pays 1, and fears an end with probability 0.1 after every step.

    The first value of the latent counts steps; the second is the last steering.
    """

    feature_dim, noise_dim = 2, 0

    def imagine(self, state, action, noise=None):
        latent = torch.stack((state.latent[:, 0] + 1, action[:, 0]), dim=1)
        reward = torch.full((len(latent),), 2.0) + (0.0 if noise is None else noise[:, 0] - 0.5)
        return LatentState(latent, state.memory), reward, torch.full((len(latent),), 0.9)

    def features(self, state):
        return state.latent


class Steers:
    """A policy that steers by what it sees, so that its dream leaves the recorded drive."""

    def predict(self, features, deterministic):
        assert deterministic
        return np.stack((np.tanh(features[:, 0] / 100), np.zeros(len(features))), axis=1).astype(np.float32), None


def real_drive(steps, *, terminated):
    latent = torch.stack((torch.arange(float(steps)), torch.zeros(steps)), dim=1)
    actions = np.tile(np.float32([0.5, 0, 0, 1]), (steps, 1))
    return DriveSteps(LatentState(latent, torch.zeros(steps, 1)), actions, np.ones(steps, np.float32), terminated)


def driver_in(world):
    return Driver(world, Steers(), "steer_accel")


def test_the_gap_of_an_optimist_is_what_can_be_computed_by_hand():
    horizon = 12
    gaps = [measure_drive(driver_in(Optimist()), real_drive(steps, terminated=False), horizon) for steps in (47, 25)]
    assert [len(gap.windows) for gap in gaps] == [4, 0]  # starts 20, 25, 30 and 35; 25 steps leave no room
    found = summarise_gap(gaps, horizon)
    assert (found.windows, found.horizon) == (4, 12)
    assert [by.steps for by in found.by_horizon] == [1, 5, 10, 12]
    for by in found.by_horizon:
        dream = 2 * (1 - 0.9**by.steps) / 0.1
        assert (by.mean_real, by.mean_predicted) == (by.steps, 2 * by.steps)
        assert by.mean_dream == pytest.approx(dream, rel=1e-5)
        assert by.ratio == pytest.approx(dream / by.steps, rel=1e-5)
        assert by.ratio_as_driven == pytest.approx(by.ratio, rel=1e-5)
        assert (by.predicted_error, by.predicted_correlation) == (by.steps, None)
    whole = found.whole_drive
    assert (whole.drives, whole.mean_steps, whole.mean_real) == (2, 36, 36)
    assert whole.mean_dream == pytest.approx(np.mean([20 * (1 - 0.9**steps) for steps in (47, 25)]), rel=1e-5)
    assert whole.correlation == pytest.approx(1.0)
    assert (found.reward.steps, found.reward.expected_calibration_error) == (72, 1.0)
    assert found.termination.brier == pytest.approx(0.01, rel=1e-5)


def test_the_uncertainty_of_an_optimist_is_what_can_be_computed_by_hand():
    world = Optimist()
    network = VarianceNetwork(world.feature_dim, 4, horizon=30, hidden_dim=4)
    network.mlp[-1].weight.data.zero_()
    network.mlp[-1].bias.data.fill_(np.log(np.expm1(6.0)))  # every step adds a variance of 6
    world.uncertainty = Uncertainty(network)
    gap = measure_drive(driver_in(world), real_drive(47, terminated=False), 12)
    assert gap.windows.deviation == pytest.approx(np.sqrt(6 * np.arange(1, 13))[None].repeat(4, 0), rel=1e-5)
    found = summarise_gap([gap], 12).uncertainty
    # Off by 1 after one step, by 12 after twelve; within the root of 6 h where h is up to 6.
    assert [(at.steps, at.mean_error, at.coverage, at.auroc) for at in found] == [
        (1, 1, 1.0, None),
        (5, 5, 1.0, None),
        (10, 10, 0.0, None),
        (12, 12, 0.0, None),
    ]
    ended = measure_drive(driver_in(world), real_drive(27, terminated=True), 10)
    assert ended.windows.deviation[0, -1] == pytest.approx(np.sqrt(6 * 7), rel=1e-5)  # nothing is added beyond an end
    assert (
        summarise_gap([measure_drive(driver_in(Optimist()), real_drive(47, terminated=False), 12)], 12).uncertainty
        == []
    )


def test_behind_a_real_end_nothing_is_earned():
    gap = measure_drive(driver_in(Optimist()), real_drive(27, terminated=True), 10)
    assert gap.windows.real.sum(1).tolist() == [7, 2]
    assert gap.windows.predicted.sum(1).tolist() == [14, 4]
    # The dream goes on where the drive is over: what it promises there is part of the gap.
    assert gap.windows.dreamt.sum(1) == pytest.approx([20 * (1 - 0.9**10)] * 2, rel=1e-5)
    assert gap.terminated.nonzero()[0].tolist() == [26]
    found = summarise_gap([gap], 10)
    longest, ends = found.by_horizon[-1], found.termination
    assert longest.ratio == pytest.approx(20 * (1 - 0.9**10) / 4.5, rel=1e-5)
    assert longest.ratio_as_driven == pytest.approx(10 * (2 - 0.9**7 - 0.9**2) / 4.5, rel=1e-5)
    assert (ends.num_real, ends.recall, ends.precision) == (1, 0.0, None)


def test_dreams_choose_while_predictions_follow_the_record():
    seen = []

    class Watched(Optimist):
        def imagine(self, state, action, noise=None):
            seen.append((state.latent[:, 0].clone(), action[:, 0].clone()))
            return super().imagine(state, action, noise)

    measure_drive(driver_in(Watched()), real_drive(30, terminated=False), 5)
    # Each step is one call for all dreams: the whole drive, two that choose, two along the record; then one by one.
    assert [len(steering) for _, steering in seen] == [5] * 5 + [1] * 25 + [30]
    for step, (count, steering) in enumerate(seen[:5]):
        assert count.tolist() == [step, 20 + step, 25 + step, 20 + step, 25 + step]
        assert steering[:3].numpy() == pytest.approx(np.tanh(count[:3].numpy() / 100))
        assert steering[3:].tolist() == [0.5, 0.5]


def test_the_noise_follows_the_seed():
    world = Optimist()
    world.noise_dim = 1
    drive = real_drive(40, terminated=False)
    one, same, other = (measure_drive(driver_in(world), drive, 10, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.windows.dreamt, same.windows.dreamt)
    assert one.dream_return == same.dream_return
    assert not np.array_equal(one.windows.dreamt, other.windows.dreamt)
    assert not np.array_equal(one.windows.dreamt, one.windows.predicted)


def test_numbers_that_are_not_finite_do_not_count():
    class Diverges(Optimist):
        def imagine(self, state, action, noise=None):
            following, reward, continuation = super().imagine(state, action, noise)
            return following, torch.where(following.latent[:, 0] > 35, torch.nan, reward), continuation

    found = summarise_gap([measure_drive(driver_in(Diverges()), real_drive(40, terminated=False), 10)], 10)
    assert found.windows == 2  # starts 20 and 25; the one from 30 reaches beyond step 35
    assert found.whole_drive is None
    assert found.reward.steps == 35
    short = summarise_gap([measure_drive(driver_in(Diverges()), real_drive(5, terminated=False), 10)], 10)
    assert (short.windows, short.by_horizon) == (0, [])
    assert short.whole_drive.mean_real == 5


def test_a_return_of_zero_or_less_has_no_ratio():
    drive = real_drive(30, terminated=False)._replace(rewards=np.full(30, -0.1, np.float32))
    found = summarise_gap([measure_drive(driver_in(Optimist()), drive, 5)], 5)
    assert {by.ratio for by in found.by_horizon} == {found.whole_drive.ratio} == {None}
