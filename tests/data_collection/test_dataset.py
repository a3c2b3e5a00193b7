import json
import pickle
from collections import Counter

import numpy as np
import pytest
from episode_factory import assert_same_episode, make_episode, make_metadata

from wm_gym.data_collection import Dataset
from wm_gym.data_collection.datasets.episode_file import write_episode
from wm_gym.errors import DatasetError


def test_counts_and_episodes(dataset, episodes):
    assert dataset.num_episodes == len(dataset) == 5
    assert dataset.num_steps == sum(len(episode) for episode in episodes)
    assert [header.behaviour for header in dataset.episodes] == ["calm", "wild", "calm", "wild", "calm"]
    assert [header.end for header in dataset.episodes] == ["truncated"] * 3 + ["terminated", "truncated"]
    for i, episode in enumerate(episodes):
        assert_same_episode(dataset.read_episode(i), episode)
        assert dataset.episodes[i].return_ == pytest.approx(float(episode.rewards.sum()), abs=1e-5)


def test_clips_are_parts_of_their_episodes(dataset, episodes):
    clip = dataset.read_clip(2, 4, 5)
    np.testing.assert_array_equal(clip.frames[0], episodes[2].frames[4:9])
    np.testing.assert_array_equal(clip.actions[0], episodes[2].actions[4:8])
    np.testing.assert_array_equal(clip.rewards[0], episodes[2].rewards[4:8])
    last = dataset.read_clip(3, len(episodes[3]) - 3, 4)
    np.testing.assert_array_equal(last.terminated[0], [False, False, True])


@pytest.mark.parametrize(
    ("position", "start", "length"), [(0, -1, 3), (0, 5, 3), (0, 0, 8), (0, 0, 1), (9, 0, 2), (-1, 0, 2)]
)
def test_a_clip_outside_is_refused(dataset, position, start, length):
    with pytest.raises(DatasetError):
        dataset.read_clip(position, start, length)


def test_sampling_is_uniform_over_all_starts(dataset, episodes):
    length = 8
    possible = {
        episode.frames[start].tobytes(): (episode.index, start)
        for episode in episodes
        for start in range(max(0, len(episode) + 2 - length))
    }
    assert dataset.num_clips(length) == len(possible) == sum(max(0, len(e) + 2 - length) for e in episodes)
    rng = np.random.default_rng(0)
    draws = 200 * len(possible)
    clips = dataset.sample_clips(rng, draws, length)
    counts = Counter(possible[first.tobytes()] for first in clips.frames[:, 0])
    assert counts.keys() == set(possible.values())
    expected = draws / len(possible)
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < len(possible) + 4 * np.sqrt(2 * len(possible))


def test_sampled_clips_belong_together(dataset, episodes):
    clips = dataset.sample_clips(np.random.default_rng(3), 50, 4)
    assert clips.frames.shape == (50, 4, 16, 24, 3)
    assert clips.actions.shape == (50, 3, 4)
    by_action = {episode.actions[t].tobytes(): (episode, t) for episode in episodes for t in range(len(episode))}
    for row in range(50):
        episode, start = by_action[clips.actions[row, 0].tobytes()]
        np.testing.assert_array_equal(clips.frames[row], episode.frames[start : start + 4])
        np.testing.assert_array_equal(clips.actions[row], episode.actions[start : start + 3])
        np.testing.assert_array_equal(clips.rewards[row], episode.rewards[start : start + 3])
        np.testing.assert_array_equal(clips.terminated[row], episode.terminated[start : start + 3])


@pytest.mark.parametrize("codec", ["raw", "png", "webp"])
def test_same_generator_same_clips_with_any_cache(tmp_path, episodes, codec):
    Dataset.create(tmp_path / "data", make_metadata(codec), episodes)
    half = sum(episode.frames.nbytes for episode in episodes) // 2
    batches = [
        Dataset.open(tmp_path / "data", cache_bytes=cache).sample_clips(np.random.default_rng(5), 64, 5)
        for cache in (0, half, 1 << 30)
    ]
    for batch in batches[1:]:
        for left, right in zip(batches[0], batch, strict=True):
            np.testing.assert_array_equal(left, right)


def test_the_cache_holds_no_more_than_its_limit(dataset, episodes, monkeypatch):
    opened = Dataset.open(dataset.path, cache_bytes=episodes[0].frames.nbytes + episodes[1].frames.nbytes)
    for position in (0, 1, 2, 3, 4):
        opened.read_clip(position, 0, 2)
    for header in opened.episodes:
        header.path.unlink()
    opened.read_clip(0, 1, 3)  # from memory
    opened.read_clip(1, 1, 3)
    for position in (2, 3, 4):
        with pytest.raises(DatasetError, match="cannot be read"):
            opened.read_clip(position, 1, 3)


def test_clips_must_fit_some_episode(dataset):
    assert dataset.sample_clips(np.random.default_rng(0), 2, 19).frames.shape[1] == 19
    with pytest.raises(DatasetError, match=r"no episode of .* has 20 frames \(the longest has 19\)"):
        dataset.sample_clips(np.random.default_rng(0), 2, 20)
    with pytest.raises(DatasetError, match="2 frames or more"):
        dataset.sample_clips(np.random.default_rng(0), 2, 1)


def test_sampling_from_a_damaged_file_raises(dataset):
    path = dataset.episodes[4].path
    content = bytearray(path.read_bytes())
    content[-20] ^= 1  # some tensor's value: only the checksum can tell
    path.write_bytes(content)
    for cache in (0, 1 << 30):
        opened = Dataset.open(dataset.path, cache_bytes=cache)
        with pytest.raises(DatasetError, match="checksum"):
            opened.sample_clips(np.random.default_rng(0), 64, 3)


def test_split_covers_everything_once_and_is_stable(tmp_path):
    metadata = make_metadata(size=(4, 4))
    many = [make_episode(i, steps=2, size=(4, 4)) for i in range(30)]
    whole = Dataset.create(tmp_path / "whole", metadata, many)
    train, validation = whole.split(0.1)
    assert [header.index for header in validation.episodes] == [9, 19, 29]
    assert sorted(h.index for part in (train, validation) for h in part.episodes) == list(range(30))
    _, earlier = Dataset.create(tmp_path / "fewer", metadata, many[:20]).split(0.1)
    assert [header.index for header in earlier.episodes] == [9, 19]
    assert len({whole.fingerprint, train.fingerprint, validation.fingerprint}) == 3


def test_split_of_small_datasets(tmp_path):
    metadata = make_metadata(size=(4, 4))
    train, validation = Dataset.create(
        tmp_path / "two", metadata, [make_episode(i, steps=2, size=(4, 4)) for i in range(2)]
    ).split(0.1)
    assert (len(train), len(validation)) == (1, 1)
    one = Dataset.create(tmp_path / "one", metadata, [make_episode(0, steps=2, size=(4, 4))])
    with pytest.raises(DatasetError, match="has 2 steps, but 3 are the least that can be split by time"):
        one.split(0.1)
    for fraction in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(DatasetError, match="validation_fraction"):
            one.split(fraction)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_one_long_recording_is_split_by_time(tmp_path, cache_bytes):
    recorded = make_episode(3, steps=40, size=(4, 4), terminated=True)
    Dataset.create(tmp_path / "one", make_metadata(size=(4, 4)), [recorded])
    whole = Dataset.open(tmp_path / "one", cache_bytes=cache_bytes)
    train, validation = whole.split(0.25)
    assert (train.num_steps, validation.num_steps) == (29, 10)  # and a step between them
    assert [dataset.episodes[0].end for dataset in (train, validation)] == ["none", "terminated"]
    assert len({whole.fingerprint, train.fingerprint, validation.fingerprint}) == 3
    for part, first in ((train, 0), (validation, 30)):
        steps = part.num_steps
        episode = part.read_episode(0)
        episode.check()
        np.testing.assert_array_equal(episode.frames, recorded.frames[first : first + steps + 1])
        np.testing.assert_array_equal(episode.infos["speed"], recorded.infos["speed"][first : first + steps])
        clip = part.read_clip(0, 2, 5)
        np.testing.assert_array_equal(clip.frames[0], recorded.frames[first + 2 : first + 7])
        np.testing.assert_array_equal(clip.actions[0], recorded.actions[first + 2 : first + 6])
        assert part.num_clips(5) == steps - 3
        drawn = part.sample_clips(np.random.default_rng(0), 64, 5)
        allowed = {recorded.frames[at].tobytes() for at in range(first, first + steps + 1)}
        assert {frame.tobytes() for frame in drawn.frames.reshape(-1, 4, 4, 3)} <= allowed
        with pytest.raises(DatasetError, match="does not lie in episode 3"):
            part.read_clip(0, steps - 2, 5)
    copied = pickle.loads(pickle.dumps(validation))
    np.testing.assert_array_equal(copied.read_clip(0, 0, 2).frames, validation.read_clip(0, 0, 2).frames)


def test_a_recording_that_is_most_of_a_few_is_split_by_time(tmp_path):
    metadata = make_metadata(size=(4, 4))
    episodes = [make_episode(i, steps=steps, size=(4, 4)) for i, steps in enumerate((5, 60, 6))]
    train, validation = Dataset.create(tmp_path / "few", metadata, episodes).split(0.1)
    assert train.episode_lengths().tolist() == [5, 53, 6]
    assert [(header.index, header.length) for header in validation.episodes] == [(1, 6)]
    np.testing.assert_array_equal(train.read_episode(2).frames, episodes[2].frames)
    np.testing.assert_array_equal(validation.read_episode(0).frames, episodes[1].frames[54:])


def test_fingerprint_follows_content(dataset, episodes, tmp_path):
    assert Dataset.open(dataset.path).fingerprint == dataset.fingerprint
    episodes[1].rewards[0] += 1
    assert Dataset.create(tmp_path / "other", make_metadata(), episodes).fingerprint != dataset.fingerprint


def test_a_dataset_can_be_sent_to_another_process(dataset):
    dataset.sample_clips(np.random.default_rng(1), 4, 3)
    copy = pickle.loads(pickle.dumps(dataset))
    left, right = (d.sample_clips(np.random.default_rng(2), 4, 3).frames for d in (dataset, copy))
    np.testing.assert_array_equal(left, right)


def test_leftovers_of_a_killed_writer_are_ignored(dataset):
    (dataset.path / "episodes" / "episode-000009.safetensors.123.partial").write_bytes(b"half")
    assert Dataset.open(dataset.path).num_episodes == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no dataset.json"),
        ("", "damaged"),
        ("{", "damaged"),
        ("[" * 100_000, "damaged"),
        ("[]", "does not declare the format"),
        ('{"format": "lerobot"}', "does not declare the format"),
        ('{"format": "wm_gym.dataset", "version": 2}', "dataset version 2"),
        ('{"format": "wm_gym.dataset", "version": 1}', "damaged at 'simulator'"),
    ],
)
def test_bad_folders_are_one_sentence(tmp_path, content, message):
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DatasetError, match=message) as caught:
        Dataset.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_empty_dataset(tmp_path, dataset):
    with pytest.raises(DatasetError, match="there is no dataset"):
        Dataset.open(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="is a file"):
        Dataset.open(dataset.path / "dataset.json")
    for header in dataset.episodes:
        header.path.unlink()
    with pytest.raises(DatasetError, match="no episodes yet"):
        Dataset.open(dataset.path)


def test_an_episode_of_another_size_is_refused(dataset):
    write_episode(dataset.path / "episodes", make_episode(7, size=(8, 8)), dataset.metadata.codec)
    with pytest.raises(DatasetError, match=r"episode-000007\.safetensors has frames of 8x8 pixels"):
        _ = Dataset.open(dataset.path).episodes


def test_create_is_whole_or_nothing(tmp_path, episodes):
    out = tmp_path / "new"
    episodes[3].rewards[0] = np.nan
    with pytest.raises(DatasetError, match="not finite"):
        Dataset.create(out, make_metadata(), episodes)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DatasetError, match="two episodes have the index 0"):
        Dataset.create(out, make_metadata(), [make_episode(0), make_episode(0)])
    assert not list(tmp_path.iterdir())
    (tmp_path / "new").mkdir()
    Dataset.create(out, make_metadata(), episodes[:2])
    with pytest.raises(DatasetError, match="already"):
        Dataset.create(out, make_metadata(), episodes[:2])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(DatasetError, match="not empty"):
        Dataset.create(tmp_path / "other", make_metadata(), episodes[:2])


def test_metadata_file_is_plain_json(dataset):
    content = json.loads((dataset.path / "dataset.json").read_text())
    assert content["format"] == "wm_gym.dataset"
    assert content["simulator"]["id"] == "Toy-v0"
    assert content["codec"] == {"name": "png", "quality": None}
