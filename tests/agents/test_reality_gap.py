import numpy as np
import pytest
import torch

from wm_gym.agents.reality_gap import imagine_along, side_by_side
from wm_gym.agents.video import VideoWriter, write_video
from wm_gym.envs.latent_observation import LatentObservation
from wm_gym.envs.simulators import make_simulator
from wm_gym.errors import DatasetError, SimulatorError
from wm_gym.frames import tensor_to_frames


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
