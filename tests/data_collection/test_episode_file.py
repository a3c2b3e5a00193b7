import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from episode_factory import assert_same_episode, make_episode
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save_file

from wm_gym.data_collection import Episode, FrameCodec
from wm_gym.data_collection.datasets.episode_file import (
    EpisodeRecorder,
    episode_file_name,
    read_episode,
    read_header,
    read_slice,
    write_episode,
)
from wm_gym.errors import DatasetError
from wm_gym.observation import split_observation

LOSSLESS = ("raw", "png", "webp")
finite = st.floats(-1e6, 1e6, width=32)


@st.composite
def any_episode(draw):
    steps = draw(st.integers(1, 6))
    height, width, dim = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 4))
    end = draw(st.sampled_from(["terminated", "truncated", "both", "none"]))
    last = np.arange(steps) == steps - 1
    names = draw(st.lists(st.text(min_size=1, max_size=8).filter(lambda s: s.isprintable()), max_size=3, unique=True))
    return Episode(
        frames=draw(arrays.arrays(np.uint8, (steps + 1, height, width, 3))),
        actions=draw(arrays.arrays(np.float32, (steps, dim), elements=finite)),
        rewards=draw(arrays.arrays(np.float32, steps, elements=finite)),
        terminated=last & (end in ("terminated", "both")),
        truncated=last & (end in ("truncated", "both")),
        infos={name: draw(arrays.arrays(np.float32, steps, elements=st.floats(width=32))) for name in names},
        seed=draw(st.integers(-1, 999_999)),
        behaviour=draw(st.text(max_size=12)),
        index=draw(st.integers(0, 2_000_000)),
    )


@settings(max_examples=60, deadline=None)
@given(any_episode(), st.sampled_from(LOSSLESS))
def test_round_trip_keeps_every_value(episode, codec):
    with tempfile.TemporaryDirectory() as folder:
        header = write_episode(Path(folder), episode, FrameCodec.parse(codec))
        assert_same_episode(read_episode(header.path), episode)
        assert (header.length, header.frame_size, header.behaviour) == (
            len(episode),
            episode.frame_size,
            episode.behaviour,
        )
        assert header.return_ == episode.return_
        assert [path.name for path in Path(folder).iterdir()] == [episode_file_name(episode.index)]


@pytest.mark.parametrize("codec", [*LOSSLESS, "jpeg:90"])
def test_slice_equals_the_same_part_of_the_whole(tmp_path, codec):
    header = write_episode(tmp_path, make_episode(steps=9), FrameCodec.parse(codec))
    whole = read_episode(header.path)
    for start in range(8):
        part = read_slice(header, start, 3)
        np.testing.assert_array_equal(part.frames, whole.frames[start : start + 3])
        np.testing.assert_array_equal(part.actions, whole.actions[start : start + 2])
        np.testing.assert_array_equal(part.rewards, whole.rewards[start : start + 2])
        np.testing.assert_array_equal(part.terminated, whole.terminated[start : start + 2])


def test_jpeg_loses_little_and_says_so(tmp_path):
    episode = make_episode()
    episode.frames[:] = np.linspace(0, 255, episode.frames.shape[2], dtype=np.uint8)[:, None]
    header = write_episode(tmp_path, episode, FrameCodec.parse("jpeg:95"))
    assert not header.codec.is_lossless
    assert header.codec.quality == 95
    assert np.abs(read_episode(header.path).frames.astype(int) - episode.frames).mean() < 4


@pytest.mark.parametrize("codec", LOSSLESS)
def test_a_cut_file_always_raises(tmp_path, codec):
    header = write_episode(tmp_path, make_episode(steps=4), FrameCodec.parse(codec))
    content = header.path.read_bytes()
    for size in sorted({0, 1, 7, 8, 9, len(content) - 1, *range(0, len(content), 97)}):
        header.path.write_bytes(content[:size])
        for read in (read_episode, read_header):
            with pytest.raises(DatasetError, match=header.path.name):
                read(header.path)
        with pytest.raises(DatasetError, match=header.path.name):
            read_slice(header, 0, 3)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_byte_always_raises(data):
    codec = data.draw(st.sampled_from(LOSSLESS))
    with tempfile.TemporaryDirectory() as folder:
        header = write_episode(Path(folder), make_episode(steps=3, size=(4, 4)), FrameCodec.parse(codec))
        content = bytearray(header.path.read_bytes())
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] ^= data.draw(st.integers(1, 255))
        header.path.write_bytes(content)
        try:
            episode = read_episode(header.path)
        except DatasetError:
            return
        # JSON leaves some freedom: white space in the container's header carries no content.
        assert_same_episode(episode, make_episode(steps=3, size=(4, 4)))


def test_added_bytes_raise(tmp_path):
    header = write_episode(tmp_path, make_episode(), FrameCodec())
    header.path.write_bytes(header.path.read_bytes() + b"\0")
    with pytest.raises(DatasetError, match="damaged"):
        read_episode(header.path)


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    path = tmp_path / episode_file_name(0)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DatasetError, match="damaged"):
        read_episode(path)
    assert not (tmp_path / "exploded").exists()


def test_foreign_safetensors_and_versions_are_refused(tmp_path):
    path = tmp_path / episode_file_name(0)
    save_file({"weights": np.zeros(3, np.float32)}, path)
    with pytest.raises(DatasetError, match="no wm_gym episode"):
        read_header(path)
    save_file({"weights": np.zeros(3, np.float32)}, path, {"format": "wm_gym.episode", "version": "3"})
    with pytest.raises(DatasetError, match="version '3'"):
        read_header(path)
    save_file({"weights": np.zeros(3, np.float32)}, path, {"format": "wm_gym.episode", "version": "1"})
    with pytest.raises(DatasetError, match="damaged"):
        read_header(path)


def test_links_pipes_and_folders_are_refused(tmp_path):
    outside = write_episode(tmp_path, make_episode(), FrameCodec()).path
    inside = tmp_path / "inside"
    inside.mkdir()
    link = inside / outside.name
    link.symlink_to(outside)
    with pytest.raises(DatasetError, match="no regular file"):
        read_episode(link)
    os.mkfifo(inside / episode_file_name(1))
    with pytest.raises(DatasetError, match="no regular file"):
        read_header(inside / episode_file_name(1))
    with pytest.raises(DatasetError, match="no regular file"):
        read_header(inside)


def test_a_renamed_episode_is_refused(tmp_path):
    header = write_episode(tmp_path, make_episode(index=4), FrameCodec())
    header.path.rename(tmp_path / episode_file_name(5))
    with pytest.raises(DatasetError, match="holds episode 4"):
        read_header(tmp_path / episode_file_name(5))


def test_a_slice_of_a_replaced_file_is_refused(tmp_path):
    header = write_episode(tmp_path, make_episode(), FrameCodec())
    write_episode(tmp_path, make_episode(steps=20), FrameCodec())
    with pytest.raises(DatasetError, match="has changed"):
        read_slice(header, 0, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.actions.__setitem__((2, 1), np.nan), "actions that are not finite, at step 2"),
        (lambda e: e.rewards.__setitem__(3, np.inf), "rewards that are not finite, at step 3"),
        (lambda e: e.terminated.__setitem__(4, True), "marked terminated at step 4 of 12"),
        (lambda e: setattr(e, "frames", e.frames[:-1]), "12 frames and actions of shape"),
        (lambda e: setattr(e, "frames", e.frames.astype(float)), "uint8 is wanted"),
        (lambda e: setattr(e, "frames", e.frames[..., :1]), r"\(T \+ 1, H, W, 3\) is wanted"),
        (lambda e: setattr(e, "rewards", e.rewards.astype(np.float64)), "rewards of type float64"),
        (lambda e: e.infos.update(speed=e.infos["speed"][:3]), "info.speed of shape"),
        (lambda e: setattr(e, "index", -1), "index -1"),
    ],
)
def test_what_does_not_fit_is_refused_before_writing(tmp_path, change, message):
    episode = make_episode()
    change(episode)
    with pytest.raises(DatasetError, match=message):
        write_episode(tmp_path, episode, FrameCodec())
    assert not list(tmp_path.iterdir())


def test_recorder_fills_late_and_absent_infos_with_nan(tmp_path):
    episode = make_episode(steps=3)
    seen = [split_observation(frame) for frame in episode.frames]
    recorder = EpisodeRecorder(FrameCodec(), seen[0], seed=1, behaviour="b", index=0)
    for t, infos in enumerate(({}, {"lap": 1.0}, None)):
        recorder.add(
            episode.actions[t],
            seen[t + 1],
            1.0,
            terminated=t == 2,
            truncated=False,
            infos=infos,
        )
    read = read_episode(recorder.write(tmp_path).path)
    np.testing.assert_array_equal(read.infos["lap"], np.float32([np.nan, 1.0, np.nan]))


def test_recorder_refuses_a_frame_of_another_size(tmp_path):
    square, other = (split_observation(np.zeros((side, 4, 3), np.uint8)) for side in (4, 5))
    recorder = EpisodeRecorder(FrameCodec(), square, seed=1, behaviour="b", index=0)
    with pytest.raises(DatasetError, match="shape \\(5, 4, 3\\)"):
        recorder.add(np.zeros(4), other, 0.0, terminated=False, truncated=False)


def test_a_full_disk_is_a_sentence_and_leaves_no_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DatasetError, match="the disk is full"):
        write_episode(tmp_path, make_episode(), FrameCodec())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["pngg", "jpeg:0", "jpeg:101", "jpeg:x", "png:3", ""])
def test_unknown_codecs_are_refused(text):
    with pytest.raises(DatasetError):
        FrameCodec.parse(text)


@pytest.mark.parametrize("text", ["raw", "png", "webp", "jpeg:80"])
def test_codec_text_round_trip(text):
    assert str(FrameCodec.parse(text)) == text
