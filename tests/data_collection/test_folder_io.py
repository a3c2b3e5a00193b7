import math

import cv2
import numpy as np
import pytest

from wm_gym.data_collection.conversion.folder_io import import_folder
from wm_gym.data_collection.datasets.verification import verify
from wm_gym.errors import ConfigError, DatasetError

DRIVING = "steering,throttle,brake,gear"


def write_recording(folder, name, frames, table, *, suffix=".png", size=(20, 30)):
    """Frame ``i`` is filled with the level ``10 * i``."""
    path = folder / name
    (path / "frames").mkdir(parents=True)
    for i in range(frames):
        frame = np.full((*size, 3), (10 * i, 0, 7), np.uint8)
        cv2.imwrite(str(path / "frames" / f"frame{i}{suffix}"), frame[..., ::-1])
    (path / "actions.csv").write_text(table)
    return path


def rows(count, row="0.5,0.25,0,1"):
    return "\n".join([row] * count) + "\n"


def test_frames_and_actions_arrive_in_natural_order(tmp_path):
    table = DRIVING + "\n" + "".join(f"{i / 20},0.5,0,1\n" for i in range(12))
    write_recording(tmp_path / "src", "drive10", 13, table)
    write_recording(tmp_path / "src", "drive9", 3, DRIVING + "\n" + rows(2))
    (tmp_path / "src" / "drive9" / "frames" / "._frame0.png").write_bytes(b"\0\5\x16\7")  # macOS leaves such files
    dataset = import_folder(tmp_path / "src", tmp_path / "out", step_s=0.1)
    assert [header.length for header in dataset.episodes] == [2, 12]
    episode = dataset.read_episode(1)
    np.testing.assert_array_equal(episode.frames[:, 0, 0, 0], 10 * np.arange(13))
    assert (episode.frames[..., 2] == 7).all()
    np.testing.assert_allclose(episode.actions[:, 0], np.arange(12) / 20, rtol=1e-6)
    assert not episode.rewards.any()
    assert (episode.truncated[-1], episode.terminated[-1], episode.seed) == (True, False, -1)
    assert dataset.metadata.simulator.step_s == 0.1
    assert dataset.metadata.simulator.frame_size == (20, 30)
    assert verify(tmp_path / "out").is_valid


def test_steer_accel_and_further_columns(tmp_path):
    table = (
        " steering , acceleration,reward,terminated,speed_mps\n1,0.5,1.5,false,3\n-1,-0.25,2,False,4\n\n0,0,-1,true,5\n"
    )
    write_recording(tmp_path / "src", "a", 4, table, suffix=".jpg")
    episode = import_folder(tmp_path / "src", tmp_path / "out").read_episode(0)
    np.testing.assert_array_equal(episode.actions, np.float32([[1, 0.5, 0, 1], [-1, 0, 0.25, 1], [0, 0, 0, 1]]))
    np.testing.assert_array_equal(episode.rewards, np.float32([1.5, 2, -1]))
    np.testing.assert_array_equal(episode.terminated, [False, False, True])
    assert not episode.truncated.any()
    np.testing.assert_array_equal(episode.infos["speed_mps"], np.float32([3, 4, 5]))


def test_equal_counts_drop_the_last_action_and_say_so(tmp_path):
    write_recording(tmp_path / "src", "a", 5, DRIVING + "\n" + rows(5))
    said = []
    dataset = import_folder(tmp_path / "src", tmp_path / "out", notify=said.append)
    assert dataset.num_steps == 4
    assert len(said) == 1
    assert "a has as many frames as actions (5)" in said[0]


def test_resizing(tmp_path):
    write_recording(tmp_path / "src", "a", 3, DRIVING + "\n" + rows(2), size=(20, 30))
    write_recording(tmp_path / "src", "b", 3, DRIVING + "\n" + rows(2), size=(40, 40))
    with pytest.raises(DatasetError, match="40x40 pixels, but the first frame has 20x30"):
        import_folder(tmp_path / "src", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    dataset = import_folder(tmp_path / "src", tmp_path / "out", frame_size=(16, 8))
    assert {header.frame_size for header in dataset.episodes} == {(16, 8)}
    np.testing.assert_array_equal(dataset.read_episode(1).frames[:, 0, 0, 0], [0, 10, 20])


@pytest.mark.parametrize(
    ("frames", "table", "message"),
    [
        (5, DRIVING + "\n" + rows(3), "5 frames and 3 actions"),
        (3, DRIVING + "\n" + rows(4), "3 frames and 4 actions"),
        (1, DRIVING + "\n", "1 frames and 0 actions"),
        (3, "steering,throttle\n1,1\n1,1\n", "lacks the column 'brake'"),
        (3, "a,b\n1,1\n1,1\n", "has the header 'a,b'"),
        (3, "", "has the header ''"),
        (3, DRIVING + "\n1,1,1,1\n1,1,1\n", "3 values in row 2"),
        (3, DRIVING + "\n1,1,1,1\n1,x,1,1\n", "'x' in column 'throttle', row 2"),
        (3, DRIVING + "\n1,1,1,1\n1.5,1,1,1\n", "steering 1.5 in row 2"),
        (3, DRIVING + "\n1,-0.5,1,1\n1,1,1,1\n", "throttle -0.5 in row 1"),
        (3, DRIVING + "\nnan,1,1,1\n1,1,1,1\n", "steering nan in row 1"),
        (3, DRIVING + ",terminated\n1,1,1,1,1\n1,1,1,1,0\n", "marked terminated at step 0"),
        (3, DRIVING + ",reward\n1,1,1,1,inf\n1,1,1,1,0\n", "rewards that are not finite"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_left(tmp_path, frames, table, message):
    write_recording(tmp_path / "src", "good", 3, DRIVING + "\n" + rows(2))
    write_recording(tmp_path / "src", "zbad", frames, table)
    with pytest.raises(DatasetError, match=message) as caught:
        import_folder(tmp_path / "src", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_missing_parts(tmp_path):
    with pytest.raises(DatasetError, match="there is no folder"):
        import_folder(tmp_path / "src", tmp_path / "out")
    (tmp_path / "src" / "a").mkdir(parents=True)
    with pytest.raises(DatasetError, match="holds no episode"):
        import_folder(tmp_path / "src", tmp_path / "out")
    path = write_recording(tmp_path / "src", "b", 3, DRIVING + "\n" + rows(2))
    (path / "frames" / "frame1.png").write_text("no image")
    with pytest.raises(DatasetError, match=r"frame1\.png is no image"):
        import_folder(tmp_path / "src", tmp_path / "out")
    (path / "actions.csv").unlink()
    with pytest.raises(DatasetError, match=r"actions\.csv is missing"):
        import_folder(tmp_path / "src", tmp_path / "out")


@pytest.mark.parametrize("step_s", [-1, math.nan, math.inf])
def test_a_step_that_is_none_is_refused(tmp_path, step_s):
    write_recording(tmp_path / "src", "drive", 3, DRIVING + "\n" + rows(2))
    with pytest.raises(ConfigError, match=r"--step-s .* must be a number of seconds"):
        import_folder(tmp_path / "src", tmp_path / "out", step_s=step_s)
    assert not (tmp_path / "out").exists()
