"""What a dataset holds, sound or not."""

import pytest
from episode_factory import make_episode, make_metadata

from wm_gym.data_collection import Dataset, DownloadCache, push
from wm_gym.data_collection.datasets.survey import survey
from wm_gym.errors import DatasetError


def test_headers_are_those_of_the_dataset(dataset):
    found = survey(dataset.path)
    assert found.headers == dataset.episodes
    assert found.problems == {}
    assert found.metadata == dataset.metadata


def test_a_damaged_header_is_a_sentence(dataset):
    headers = dataset.episodes
    headers[1].path.write_bytes(b"nothing")
    headers[3].path.rename(headers[3].path.with_name("episode-000099.safetensors"))
    found = survey(dataset.path)
    assert [header.index for header in found.headers] == [0, 2, 4]
    assert list(found.problems) == ["episode-000001.safetensors", "episode-000099.safetensors"]
    assert "holds episode 3" in found.problems["episode-000099.safetensors"]


def test_an_episode_of_another_size_is_a_sentence(dataset, tmp_path):
    other = Dataset.create(tmp_path / "other", make_metadata(size=(8, 8)), [make_episode(2, size=(8, 8))])
    dataset.episodes[2].path.write_bytes(other.episodes[0].path.read_bytes())
    assert "8x8" in survey(dataset.path).problems["episode-000002.safetensors"]


def test_a_remote_dataset(dataset, tmp_path):
    push(dataset.path, "memory://surveyed", progress=False)
    downloads = DownloadCache(tmp_path / "cache")
    found = survey("memory://surveyed", downloads)
    assert [header.sha256 for header in found.headers] == [header.sha256 for header in dataset.episodes]
    assert not downloads.folder.exists()


def test_no_dataset(tmp_path, dataset):
    with pytest.raises(DatasetError):
        survey(tmp_path / "nowhere")
    for header in dataset.episodes:
        header.path.unlink()
    with pytest.raises(DatasetError, match="no episodes yet"):
        survey(dataset.path)
