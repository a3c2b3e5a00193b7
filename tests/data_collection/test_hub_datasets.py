"""Datasets on a Hub: the real client against a small server, and one sentence for each thing that is wrong."""

import shutil
import sys
import time
from functools import partial

import cv2
import numpy as np
import pytest
import yaml
from episode_factory import assert_same_episode, make_episode, make_metadata

from tests import sentences
from tests.hub_server import READ_TOKEN, Repository
from wm_gym import hub as client
from wm_gym.cli.main import main
from wm_gym.data_collection import Dataset, DownloadCache, push, verify
from wm_gym.data_collection.datasets import remote_folder
from wm_gym.data_collection.datasets.survey import survey
from wm_gym.data_collection.datasets.training_data import open_training_data
from wm_gym.errors import DatasetError

NAME = "jane/town-drives"
STORED = f"datasets/{NAME}"
URL = f"hf://{STORED}"


@pytest.fixture(autouse=True)
def _surroundings(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("WM_GYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("WM_GYM_CACHE_GB", raising=False)
    monkeypatch.setattr(remote_folder, "BACKOFF_S", 0.001)


@pytest.fixture
def pushed(hub, dataset):
    """A dataset that was pushed."""
    assert dataset.push_to_hub(NAME) == f"{hub.url}/{STORED}"
    return dataset


sentence_of = partial(sentences.sentence_of, DatasetError)


def changed(content: bytes) -> bytes:
    """With another last byte: some tensor's value, so that only a checksum can tell."""
    return content[:-1] + bytes([content[-1] ^ 1])


def episode_downloads(hub) -> list[str]:
    return [line for line in hub.requests if line.startswith("GET") and "/resolve/" in line and "/episodes/" in line]


def test_a_pushed_dataset_comes_back_by_its_url(hub, pushed, episodes):
    names = {f"episodes/{header.path.name}" for header in pushed.episodes}
    assert set(hub.repositories[STORED].files) == {
        ".gitattributes",
        "README.md",
        "dataset.json",
        "episodes.json",
        "frames.png",
        *names,
    }
    remote = Dataset.open(URL)
    assert (remote.path, remote.fingerprint, remote.num_steps) == (URL, pushed.fingerprint, pushed.num_steps)
    assert not episode_downloads(hub)  # opening downloads none
    for position, episode in enumerate(episodes):
        assert_same_episode(remote.read_episode(position), episode)
    assert verify(URL).is_valid and survey(URL).headers == remote.episodes


def test_what_was_opened_and_downloaded_needs_no_network(hub, pushed):
    Dataset.open(URL).download()
    hub.stop()
    data = open_training_data(URL, 0.2)
    assert data.info["fingerprint"] == pushed.fingerprint
    assert data.train.datasets[0].sample_clips(np.random.default_rng(0), 4, 3).frames.shape[:2] == (4, 3)


def test_episodes_are_kept_where_the_cache_is(hub, pushed, tmp_path):
    Dataset.open(URL, downloads=DownloadCache(tmp_path / "mine")).download()
    kept = sorted(path.name for path in (tmp_path / "mine").glob("??/*/*"))
    assert kept == [header.path.name for header in pushed.episodes]
    assert not list((tmp_path / "hub_cache").rglob("episode-*"))  # not twice


def test_a_second_push_sends_what_was_gained(hub, tmp_path, episodes):
    Dataset.create(tmp_path / "less", make_metadata(), episodes[:3]).push_to_hub(NAME)
    more = Dataset.create(tmp_path / "more", make_metadata(), episodes)
    summary = push(more.path, URL)
    assert (summary.url, summary.num_episodes, summary.num_sent) == (f"{hub.url}/{STORED}", 5, 2)
    assert Dataset.open(URL).fingerprint == more.fingerprint
    message = sentence_of(Dataset.open(tmp_path / "less").push_to_hub, NAME)
    assert f"episode 3 at {URL} is not in this dataset, and a dataset there only grows" in message
    other = Dataset.create(tmp_path / "other", make_metadata(), [make_episode(0, steps=4)])
    assert f"episode 0 at {URL} differs from this dataset's" in sentence_of(other.push_to_hub, NAME)
    assert Dataset.open(URL).fingerprint == more.fingerprint


def test_an_episode_that_is_gone_there_is_sent_again(hub, pushed):
    repository = hub.repositories[STORED]
    gone = f"episodes/{pushed.episodes[2].path.name}"
    repository.commit({name: content for name, content in repository.files.items() if name != gone})
    assert f"{URL}/{gone} is gone; push the dataset again" in sentence_of(Dataset.open(URL).read_episode, 2)
    assert push(pushed.path, URL).num_sent == 1
    assert Dataset.open(URL).read_episode(2).index == 2


def test_a_revision_is_what_it_was(hub, tmp_path, episodes):
    less = Dataset.create(tmp_path / "less", make_metadata(), episodes[:3])
    less.push_to_hub(NAME)
    old = hub.repositories[STORED].head
    Dataset.create(tmp_path / "more", make_metadata(), episodes).push_to_hub(NAME)
    remote = Dataset.open(f"{URL}@{old}")
    assert remote.fingerprint == less.fingerprint and remote.read_episode(2).index == 2
    assert f"{STORED} at {hub.url} has no revision 'v9'" in sentence_of(Dataset.open, f"{URL}@v9")


def test_the_card_says_what_is_there(hub, pushed):
    files = hub.repositories[STORED].files
    _, head, body = files["README.md"].decode().split("---\n", 2)
    fields = yaml.safe_load(head)
    assert "license" not in fields  # the owner's to choose
    assert fields["size_categories"] == ["n<1K"] and pushed.metadata.simulator.id in fields["tags"]
    assert f"| episodes | {len(pushed)} |" in body and f"| steps | {pushed.num_steps} |" in body.replace(" (", " |(")
    calm = [header for header in pushed.episodes if header.behaviour == "calm"]
    assert f"| calm | {len(calm)} | {sum(header.length for header in calm)} |" in body
    assert f'Dataset.open("{URL}")' in body and "![6 frames of an episode](frames.png)" in body
    strip = cv2.imdecode(np.frombuffer(files["frames.png"], np.uint8), cv2.IMREAD_COLOR)
    height, width = pushed.metadata.simulator.frame_size
    assert strip.shape == (height, 6 * width, 3)
    np.testing.assert_array_equal(strip[:, :width, ::-1], pushed.read_episode(0).frames[0])


@pytest.mark.parametrize("card", ["---\ntags: [a]\nlicense: cc-by-4.0\n---\n# Mine", "---\nlicense: cc-by-4.0\n---\n"])
def test_a_second_push_keeps_the_license(hub, pushed, card):
    repository = hub.repositories[STORED]
    repository.commit({**repository.files, "README.md": card.encode()})
    pushed.push_to_hub(NAME)
    text = repository.files["README.md"].decode()
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "cc-by-4.0" and "## Drivers" in text


@pytest.mark.parametrize("card", ["", "# No head", "---\n[not, a, mapping]\n---\n", "---\n{damaged\n---\n", "---\n"])
def test_a_card_without_a_license_is_replaced(hub, pushed, card):
    repository = hub.repositories[STORED]
    repository.commit({**repository.files, "README.md": card.encode()})
    pushed.push_to_hub(NAME)
    assert "license:" not in repository.files["README.md"].decode()


def test_many_episodes_are_sent_in_several_commits(hub, dataset, monkeypatch):
    monkeypatch.setattr(client, "_FILES_IN_A_COMMIT", 4)
    dataset.push_to_hub(NAME)
    _, *commits = hub.repositories[STORED].commits.values()
    assert [len(files) - 1 for files in commits] == [1, 5, 9]
    assert ["dataset.json" in files for files in commits] == [False, False, True]
    assert Dataset.open(URL).fingerprint == dataset.fingerprint


def test_a_push_that_was_interrupted_goes_on(hub, dataset, monkeypatch):
    monkeypatch.setattr(client, "_FILES_IN_A_COMMIT", 4)
    hub.commits_before = 1
    assert "answered a request for" in sentence_of(dataset.push_to_hub, NAME)
    assert len(hub.repositories[STORED].files) == 2
    assert f"there is no dataset at {URL}" in sentence_of(Dataset.open, URL)
    hub.commits_before = None
    dataset.push_to_hub(NAME)
    assert Dataset.open(URL).fingerprint == dataset.fingerprint


def test_a_push_that_fails_leaves_what_was_there(hub, tmp_path, episodes):
    less = Dataset.create(tmp_path / "less", make_metadata(), episodes[:3])
    less.push_to_hub(NAME)
    hub.refuse_commits = True
    more = Dataset.create(tmp_path / "more", make_metadata(), episodes)
    assert "answered a request for" in sentence_of(more.push_to_hub, NAME)
    assert Dataset.open(URL).fingerprint == less.fingerprint


def test_a_part_of_a_dataset(hub, dataset, tmp_path, episodes):
    train, _ = dataset.split(0.4)
    train.push_to_hub(NAME)
    assert Dataset.open(URL).fingerprint == train.fingerprint
    one = Dataset.create(tmp_path / "one", make_metadata(), episodes[4:])
    assert "was split by time cannot be pushed; push the whole" in sentence_of(one.split(0.4)[0].push_to_hub, "jane/b")
    assert f"{URL} is no folder of this machine" in sentence_of(Dataset.open(URL).push_to_hub, "jane/b")


def test_a_damaged_dataset_is_not_pushed(hub, dataset):
    file = dataset.episodes[1].path
    file.write_bytes(changed(file.read_bytes()))
    assert file.name in sentence_of(dataset.push_to_hub, NAME)
    assert STORED not in hub.repositories


def test_an_episode_that_was_changed_in_the_repository_is_refused(hub, pushed):
    repository = hub.repositories[STORED]
    name = f"episodes/{pushed.episodes[0].path.name}"
    repository.commit({**repository.files, name: changed(repository.files[name])})
    message = sentence_of(Dataset.open(URL).read_episode, 0)
    assert f"{URL}/{name} cannot be downloaded in 4 attempts: it arrived damaged" in message
    assert len(verify(URL).problems) == 1


def test_a_download_is_tried_again(hub, pushed):
    hub.failing_downloads = 2
    assert Dataset.open(URL).read_episode(1).index == 1
    assert hub.failing_downloads == 0


@pytest.mark.parametrize("token", [None, READ_TOKEN])
def test_a_push_without_permission(hub, dataset, token, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    message = sentence_of(dataset.push_to_hub, NAME)
    assert f"does not let you use {URL}" in message and "hf auth login" in message
    assert STORED not in hub.repositories


def test_private_datasets(hub, dataset, tmp_path, monkeypatch):
    dataset.push_to_hub(NAME, private=True)
    assert hub.repositories[STORED].private and Dataset.open(URL).fingerprint == dataset.fingerprint
    shutil.rmtree(tmp_path / "hub_cache")
    monkeypatch.delenv("HF_TOKEN")
    assert f"there is no {URL} at {hub.url}, or you may not see it" in sentence_of(Dataset.open, URL)
    hub.repositories["datasets/jane/public"] = Repository()
    monkeypatch.setenv("HF_TOKEN", "hf_token_of_the_owner")
    assert "exists and is public" in sentence_of(dataset.push_to_hub, "jane/public", private=True)


def test_other_repositories(hub, dataset):
    hub.repositories[NAME] = Repository()  # a model's: the Hub keeps the names apart
    assert f"there is no {URL} at {hub.url}" in sentence_of(Dataset.open, URL)
    assert "names no dataset on the Hub; write hf://datasets/owner/name" in sentence_of(Dataset.open, f"hf://{NAME}")
    assert f"check the path (a dataset on the Hub is {URL})" in sentence_of(Dataset.open, NAME)
    hub.repositories[STORED] = Repository()
    hub.repositories[STORED].commit({"cats.csv": b"miaow"})
    assert f"there is no dataset at {URL}" in sentence_of(Dataset.open, URL)
    assert f"{URL} exists and is no dataset of wm_gym; push to another name" in sentence_of(dataset.push_to_hub, NAME)
    assert set(hub.repositories[STORED].files) == {"cats.csv"}


def test_an_unreachable_hub(hub, dataset, monkeypatch):
    hub.stop()
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the client's own attempts
    message = sentence_of(Dataset.open, URL)
    assert f"{hub.url} cannot be reached, and this machine keeps no whole copy of {URL}" in message
    assert f"{hub.url} cannot be reached (ConnectError" in sentence_of(dataset.push_to_hub, NAME)


def test_the_commands_push_and_read(hub, dataset, capsys):
    assert main(["push", str(dataset.path), NAME, "--private", "--message", "the first"]) == 0
    assert f"pushed to {hub.url}/{STORED}" in capsys.readouterr().out
    assert main(["dataset", "info", URL]) == 0
    assert main(["dataset", "push", str(dataset.path), URL]) == 0
    assert "5 episodes, 0 of them sent now" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("jane",), "'jane' names no dataset on the Hub"),
        ((f"{NAME}@v1",), "leave @v1 out"),
        ((NAME, "--video", "film.mp4"), "--video belongs to a world model or an agent"),
        ((NAME, "--evaluation", "result.json"), "--evaluation belongs to an agent"),
        ((NAME, "--env-hub"), "--env-hub belongs to a world model"),
    ],
)
def test_the_command_says_what_is_wrong_before_it_asks_the_hub(hub, dataset, capsys, arguments, sentence):
    assert main(["push", str(dataset.path), *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not hub.requests


def test_a_damaged_dataset_is_told_by_the_command(hub, dataset, capsys):
    (dataset.path / "dataset.json").write_text("{}")
    assert main(["push", str(dataset.path), NAME]) == 2
    assert "no wm_gym dataset" in capsys.readouterr().err
    assert not hub.requests


def test_without_the_extra_one_sentence_says_what_to_install(dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'wm_gym[hub]'" in sentence_of(Dataset.open, URL)
    assert "pip install 'wm_gym[hub]'" in sentence_of(dataset.push_to_hub, NAME)
