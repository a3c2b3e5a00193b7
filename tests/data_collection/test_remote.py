"""Datasets on object storage: real fsspec file systems, and a web server that fails in the middle."""

import json
import multiprocessing
import os
import pickle
import shutil
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
from episode_factory import assert_same_episode, make_episode, make_metadata

from wm_gym.agents.alarm import best_recorded_return
from wm_gym.cli.main import main
from wm_gym.data_collection import Dataset, DownloadCache, describe, push, verify
from wm_gym.data_collection.datasets import remote_folder
from wm_gym.data_collection.datasets.remote_folder import RemoteFolder, is_url, local_folder
from wm_gym.data_collection.datasets.training_data import open_training_data
from wm_gym.data_collection.recording.collector import collect
from wm_gym.errors import ConfigError, DatasetError


@pytest.fixture(autouse=True)
def _surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("WM_GYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("WM_GYM_CACHE_GB", raising=False)
    monkeypatch.setattr(remote_folder, "BACKOFF_S", 0.001)


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    """Where to put a dataset."""
    return "memory://bucket/car" if request.param == "memory" else f"file://{tmp_path}/elsewhere/car"


def stored(url):
    """The file system and the folder of a URL."""
    return fsspec.core.url_to_fs(url)


def cached(folder):
    """Names of the episodes in a cache."""
    return sorted(path.name for path in folder.glob("??/*/*"))


class Server(ThreadingHTTPServer):
    """Serves a folder; ``faults`` says for each request of an episode what to do to it, the first one first."""

    def __init__(self, folder):
        self.faults = []
        self.paths = []
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.paths.append(self.path)
        fault = self.server.faults.pop(0) if self.server.faults and self.path.endswith(".safetensors") else None
        if fault == "error":
            self.send_error(503)
        elif fault is None:
            super().do_GET()
        else:
            content = bytearray(Path(self.translate_path(self.path)).read_bytes())
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if fault == "change":
                content[-20] ^= 1  # some tensor's value: only the checksum can tell
            self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
            self.close_connection = True

    def log_message(self, *arguments):
        pass


@contextmanager
def serving(folder):
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_what_is_pushed_is_read_back(dataset, episodes, url, tmp_path):
    summary = push(dataset.path, url, progress=False)
    assert (summary.url, summary.num_episodes, summary.num_sent) == (url, 5, 5)
    assert summary.sent_bytes == sum(header.file_bytes for header in dataset.episodes)
    remote = Dataset.open(url)
    assert remote.path == url
    assert remote.fingerprint == dataset.fingerprint
    assert remote.num_steps == dataset.num_steps
    assert cached(tmp_path / "cache") == []  # opening downloads no episode
    for position, episode in enumerate(episodes):
        assert_same_episode(remote.read_episode(position), episode)
    for left, right in zip(
        remote.sample_clips(np.random.default_rng(0), 32, 4),
        dataset.sample_clips(np.random.default_rng(0), 32, 4),
        strict=True,
    ):
        np.testing.assert_array_equal(left, right)
    assert describe(remote).reward == describe(dataset).reward
    assert best_recorded_return(Dataset.open(url), 3) == best_recorded_return(dataset, 3)


def test_only_drawn_episodes_are_downloaded_and_kept(dataset, tmp_path, monkeypatch):
    push(dataset.path, "memory://car", progress=False)
    train, _ = Dataset.open("memory://car").split(0.4)
    train.read_clips(np.array([[0, 1], [2, 0], [0, 2]]), 3)
    names = [train.episodes[position].path.name for position in (0, 2)]
    assert cached(tmp_path / "cache") == names
    fs, root = stored("memory://car")
    fs.rm(f"{root}/episodes", recursive=True)
    for cache_bytes in (0, 1 << 20):
        again, _ = Dataset.open("memory://car", cache_bytes=cache_bytes).split(0.4)
        again.read_clips(np.array([[0, 1], [2, 0]]), 3)
    with pytest.raises(DatasetError, match=r"memory://car/episodes/episode-0.*safetensors is gone; push"):
        again.read_clips(np.array([[1, 0]]), 3)


def test_equal_episodes_are_kept_once_and_the_folder_can_be_chosen(dataset, tmp_path):
    for name in ("one", "two"):
        push(dataset.path, f"memory://{name}", progress=False)
        Dataset.open(f"memory://{name}", downloads=DownloadCache(tmp_path / "mine")).download()
    assert cached(tmp_path / "mine") == [header.path.name for header in dataset.episodes]
    assert not (tmp_path / "cache").exists()


def test_a_remote_dataset_goes_to_another_process(dataset):
    push(dataset.path, "memory://car", progress=False)
    remote = Dataset.open("memory://car")
    remote.read_clip(1, 0, 3)
    copied = pickle.loads(pickle.dumps(remote))
    np.testing.assert_array_equal(copied.read_clip(1, 0, 3).frames, dataset.read_clip(1, 0, 3).frames)
    assert copied.fingerprint == dataset.fingerprint


def test_the_limit_drops_what_was_not_read_for_longest(dataset, tmp_path):
    push(dataset.path, "memory://car", progress=False)
    sizes = [header.file_bytes for header in dataset.episodes]
    downloads = DownloadCache(tmp_path / "small", limit_bytes=sizes[0] + sizes[1] + sizes[2])
    remote = Dataset.open("memory://car", cache_bytes=0, downloads=downloads)
    for position in (0, 1, 2, 0):
        remote.read_clip(position, 0, 2)
        time.sleep(0.01)  # times of files are no finer everywhere
    remote.read_clip(3, 0, 2)
    kept = cached(tmp_path / "small")
    assert "episode-000003.safetensors" in kept
    assert "episode-000001.safetensors" not in kept
    total = sum(path.stat().st_size for path in (tmp_path / "small").glob("??/*/*"))
    assert total <= downloads.limit_bytes
    np.testing.assert_array_equal(remote.read_clip(1, 2, 3).frames, dataset.read_clip(1, 2, 3).frames)


def test_room_is_made_while_others_download_and_remove(tmp_path, monkeypatch):
    downloads = DownloadCache(tmp_path, limit_bytes=250)
    first, second, third = (downloads.path(checksum * 32, "episode") for checksum in ("aa", "bb", "cc"))
    partial_download = first.parent.with_name(f".{'ab' * 32}.1.partial") / "episode"
    partial_download.parent.mkdir(parents=True)
    partial_download.write_bytes(bytes(1000))
    scandir = os.scandir

    def removed_first(folder="."):
        # Whatever one process lists, another may have moved into place or removed since.
        vanishing = (partial_download.parent, first.parent)
        if not isinstance(folder, int) and Path(folder) in vanishing and third.exists():
            monkeypatch.setattr(os, "scandir", scandir)
            shutil.rmtree(folder)
            monkeypatch.setattr(os, "scandir", removed_first)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", removed_first)
    for path in (first, second, third):
        downloads.fetch(path, 100, lambda temporary: temporary.write_bytes(bytes(100)))
    assert not first.exists()
    assert (second.exists(), third.exists()) == (True, True)  # what is being downloaded does not count


def test_a_copy_that_the_disk_spoilt_is_downloaded_again(dataset):
    push(dataset.path, "memory://car", progress=False)
    for cache_bytes in (0, 1 << 20):
        remote = Dataset.open("memory://car")
        remote.download()
        first, second = remote.episodes[0].path, remote.episodes[1].path
        content = bytearray(first.read_bytes())
        content[-20] ^= 1
        first.write_bytes(content)
        second.write_bytes(second.read_bytes()[:100])
        again = Dataset.open("memory://car", cache_bytes=cache_bytes)
        for position in (0, 1):
            clip = again.read_clip(position, 1, 3)
            np.testing.assert_array_equal(clip.frames, dataset.read_clip(position, 1, 3).frames)


def _download_all(url, barrier):
    barrier.wait(240)
    Dataset.open(url).download()


def test_processes_share_the_cache(dataset, tmp_path):
    push(dataset.path, f"file://{tmp_path}/elsewhere", progress=False)
    # What a killed process has left goes when the episode is downloaded.
    header = Dataset.open(f"file://{tmp_path}/elsewhere").episodes[0]
    left = header.path.parent.with_name(f".{header.sha256}.1.partial")
    left.mkdir(parents=True)
    with serving(tmp_path / "elsewhere") as server:
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(3)
        workers = [context.Process(target=_download_all, args=(server.url, barrier)) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(300)
        assert [worker.exitcode for worker in workers] == [0, 0, 0]
        requests = [path for path in server.paths if path.endswith(".safetensors")]
    assert sorted(set(requests)) == sorted(requests)  # one download each
    assert cached(tmp_path / "cache") == [header.path.name for header in dataset.episodes]
    assert not left.exists()
    assert not list((tmp_path / "cache").glob("??/.*.partial"))


@pytest.mark.parametrize("faults", [["cut"], ["error", "cut", "change"]])
def test_a_failure_in_the_middle_is_tried_again(dataset, tmp_path, faults):
    push(dataset.path, f"file://{tmp_path}/elsewhere", progress=False)
    with serving(tmp_path / "elsewhere") as server:
        server.faults = list(faults)
        remote = Dataset.open(server.url)
        np.testing.assert_array_equal(remote.read_clip(2, 1, 4).frames, dataset.read_clip(2, 1, 4).frames)
        assert server.faults == []
        assert len([path for path in server.paths if path.endswith(".safetensors")]) == len(faults) + 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("cut", r"cannot be downloaded in 4 attempts: .*check the network"),
        ("error", r"cannot be downloaded in 4 attempts: 503.*check the network"),
        ("change", r"cannot be downloaded in 4 attempts: it arrived damaged, its checksum does not match; delete"),
    ],
)
def test_a_failure_that_stays_is_one_sentence(dataset, tmp_path, fault, words):
    push(dataset.path, f"file://{tmp_path}/elsewhere", progress=False)
    with serving(tmp_path / "elsewhere") as server:
        remote = Dataset.open(server.url)
        server.faults = [fault] * 4
        with pytest.raises(DatasetError, match=words) as caught:
            remote.read_clip(0, 0, 3)
        assert "\n" not in str(caught.value)
        assert cached(tmp_path / "cache") == []
        assert not list((tmp_path / "cache").glob("??/.*.partial"))
        remote.read_clip(0, 0, 3)
    with pytest.raises(DatasetError, match=r"dataset.json cannot be read in 4 attempts"):
        Dataset.open(server.url)


def test_protocols_and_folders_that_are_not_there(dataset, tmp_path, monkeypatch):
    with pytest.raises(DatasetError, match=r"there is no dataset at memory://nowhere: the bucket, the folder or"):
        Dataset.open("memory://nowhere")
    with pytest.raises(DatasetError, match=r"nope://bucket cannot be reached: Protocol not known: nope"):
        Dataset.open("nope://bucket")
    for protocol, package in (("s3", "s3fs"), ("gs", "gcsfs")):
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(DatasetError, match=rf"needs a package for {protocol}://.*`pip install {package}`\.$"):
            Dataset.open(f"{protocol}://bucket/car")
    fs, root = stored("memory://car")
    fs.pipe_file(f"{root}/dataset.json", (dataset.path / "dataset.json").read_bytes())
    with pytest.raises(DatasetError, match=r"memory://car has no episodes.json.*push"):
        Dataset.open("memory://car")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DatasetError, match=r"Not a directory.*check the rights"):
        push(dataset.path, f"file://{tmp_path}/file/car", progress=False)


def test_passwords_are_not_shown():
    with pytest.raises(DatasetError) as caught:
        Dataset.open("nope://me:secret@host/car")
    assert "secret" not in str(caught.value)
    assert RemoteFolder("memory://me:secret@host/car").url == "memory://host/car"


def test_what_is_a_url():
    assert all(is_url(text) for text in ("s3://b/car", "gs://b", "file:///data", "simplecache::s3://b"))
    assert not any(is_url(text) for text in ("data/car", "/data", "C://data", "minari:car/x-v0", ""))
    with pytest.raises(DatasetError, match=r"s3://b/car is no folder of this machine.*dataset push"):
        local_folder("s3://b/car")


def test_nothing_is_made_at_a_url(tmp_path, monkeypatch, episodes):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match="no folder of this machine"):
        Dataset.create("memory://car", make_metadata(), episodes)
    with pytest.raises(DatasetError, match="no folder of this machine"):
        collect("memory://car", "car-racing", make_behaviour=None, episodes=1)
    assert list(tmp_path.iterdir()) == []


def test_a_push_goes_on_where_it_was(dataset, url, monkeypatch):
    class NetworkIsDownError(Exception):
        pass

    fs, root = stored(url)
    sent = []

    def put(paths, targets, **further):
        for path, target in zip(paths, targets, strict=True):
            if len(sent) == 2:
                raise NetworkIsDownError("connection lost")
            fs.put_file(path, target)
            sent.append(target)

    monkeypatch.setattr(fs, "put", put)
    with pytest.raises(DatasetError, match=r"cannot be written in 4 attempts: connection lost; check the network"):
        push(dataset.path, url, progress=False)
    with pytest.raises(DatasetError, match="there is no dataset"):
        Dataset.open(url)
    monkeypatch.undo()
    # The second one is only half there, the third is another episode of the same size.
    fs.pipe_file(sent[1], fs.cat_file(sent[1])[:100])
    content = bytearray(dataset.episodes[2].path.read_bytes())
    at = content.index(dataset.episodes[2].sha256.encode())
    content[at : at + 64] = b"0" * 64
    fs.pipe_file(f"{root}/episodes/{dataset.episodes[2].path.name}", bytes(content))
    assert push(dataset.path, url, progress=False).num_sent == 4
    assert push(dataset.path, url, progress=False).num_sent == 0


def test_dataset_json_comes_last(dataset, monkeypatch):
    seen = []
    write, upload = RemoteFolder.write, RemoteFolder.upload
    monkeypatch.setattr(
        RemoteFolder, "write", lambda self, name, content: (seen.append(name), write(self, name, content))
    )
    monkeypatch.setattr(
        RemoteFolder, "upload", lambda self, paths, names: (seen.extend(names), upload(self, paths, names))
    )
    push(dataset.path, "memory://car", progress=False)
    assert seen == [*(f"episodes/{header.path.name}" for header in dataset.episodes), "episodes.json", "dataset.json"]


def test_a_dataset_there_only_grows(tmp_path, episodes, url):
    metadata = make_metadata()
    few = Dataset.create(tmp_path / "few", metadata, episodes[:3])
    many = Dataset.create(tmp_path / "many", metadata, episodes)
    push(few.path, url, progress=False)
    reader = Dataset.open(url)
    assert push(many.path, url, progress=False).num_sent == 2
    assert Dataset.open(url).fingerprint == many.fingerprint
    assert reader.fingerprint == few.fingerprint
    reader.download()

    other = Dataset.create(tmp_path / "other", metadata, [*episodes[:4], make_episode(4, steps=5)])
    resized = Dataset.create(tmp_path / "resized", make_metadata(size=(8, 8)), [make_episode(0, size=(8, 8))])
    for path, words in (
        (few.path, "episode 3 at .* is not in this dataset, and a dataset there only grows"),
        (other.path, "episode 4 at .* differs from this dataset's"),
        (resized.path, r"there is another dataset at .* \(simulator.frame_size"),
    ):
        with pytest.raises(DatasetError, match=words):
            push(path, url, progress=False)
    assert verify(url).is_valid


def test_a_damaged_episode_is_not_pushed(dataset):
    path = dataset.episodes[3].path
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"000003.* checksum"):
        push(dataset.path, "memory://car", progress=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sha256": "../../../../etc/passwd"}, "damaged at 'episodes.0.sha256'"),
        ({"index": 4}, "not in order"),
        ({"frame_size": [8, 8]}, "has frames of 8x8 pixels"),
        ({"codec": {"name": "pickle"}}, "damaged at 'episodes.0.codec.name'"),
    ],
)
def test_a_list_of_episodes_that_is_bad_is_refused(dataset, change, words):
    push(dataset.path, "memory://car", progress=False)
    fs, root = stored("memory://car")
    index = json.loads(fs.cat_file(f"{root}/episodes.json"))
    index["episodes"][0].update(change)
    fs.pipe_file(f"{root}/episodes.json", json.dumps(index).encode())
    with pytest.raises(DatasetError, match=words):
        Dataset.open("memory://car")


def test_a_list_that_does_not_agree_with_the_episode_is_found(dataset):
    push(dataset.path, "memory://car", progress=False)
    fs, root = stored("memory://car")
    index = json.loads(fs.cat_file(f"{root}/episodes.json"))
    index["episodes"][0]["length"] += 1
    fs.pipe_file(f"{root}/episodes.json", json.dumps(index).encode())
    with pytest.raises(DatasetError, match=r"not the episode that episodes.json names \(length differs\)"):
        Dataset.open("memory://car").read_episode(0)


def test_verify_downloads_everything_anew(dataset, tmp_path):
    push(dataset.path, "memory://car", progress=False)
    Dataset.open("memory://car").download()
    found = verify("memory://car")
    assert (found.path, found.num_episodes, found.num_steps) == ("memory://car", 5, dataset.num_steps)
    fs, root = stored("memory://car")
    path = f"{root}/episodes/{dataset.episodes[1].path.name}"
    content = bytearray(fs.cat_file(path))
    content[-20] ^= 1
    fs.pipe_file(path, bytes(content))
    fs.rm(f"{root}/episodes/{dataset.episodes[2].path.name}")
    problems = verify("memory://car").problems
    assert len(problems) == 2
    assert "000001" in problems[0]
    assert "checksum" in problems[0]
    assert "000002.safetensors is gone" in problems[1]


def test_training_data_of_a_url(dataset, tmp_path):
    push(dataset.path, "memory://car", progress=False)
    opened = open_training_data(["memory://car", dataset.path], 0.4, downloads=DownloadCache(tmp_path / "mine"))
    assert opened.info["path"] == f"memory://car, {dataset.path}"
    assert opened.train.read_clips(np.array([[0, 0], [1, 1], [4, 0]]), 3).frames.shape[:2] == (3, 3)
    assert len(cached(tmp_path / "mine")) == 2


def test_the_command_line(dataset, capsys, tmp_path, monkeypatch):
    assert main(["dataset", "push", str(dataset.path), "memory://car", "--quiet"]) == 0
    assert "memory://car: 5 episodes, 5 of them sent now" in capsys.readouterr().out
    assert main(["dataset", "info", "memory://car", "--json", "--cache", str(tmp_path / "mine")]) == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == dataset.fingerprint
    assert len(cached(tmp_path / "mine")) == 5
    assert main(["dataset", "verify", "memory://car"]) == 0
    assert main(["dataset", "info", "memory://nowhere"]) == 2
    assert "there is no dataset at memory://nowhere" in capsys.readouterr().err
    monkeypatch.setenv("WM_GYM_CACHE_GB", "much")
    assert main(["dataset", "info", "memory://car"]) == 2
    assert "WM_GYM_CACHE_GB=much must be a positive number" in capsys.readouterr().err


def test_the_environment_names_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("WM_GYM_CACHE_GB", "1.5")
    found = DownloadCache.default()
    assert (found.folder, found.limit_bytes) == (tmp_path / "cache", 1_500_000_000)
    assert DownloadCache.default(tmp_path / "mine").folder == tmp_path / "mine"
    monkeypatch.delenv("WM_GYM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sys.platform", "linux")
    assert DownloadCache.default().folder == tmp_path / "home" / "wm_gym"
    for wrong in ("-1", "0", "inf", "nan"):
        monkeypatch.setenv("WM_GYM_CACHE_GB", wrong)
        with pytest.raises(ConfigError, match="WM_GYM_CACHE_GB"):
            DownloadCache.default()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a folder that cannot be written")
def test_a_cache_that_cannot_be_written(dataset, tmp_path):
    push(dataset.path, "memory://car", progress=False)
    (tmp_path / "locked").mkdir(mode=0o500)
    remote = Dataset.open("memory://car", downloads=DownloadCache(tmp_path / "locked"))
    with pytest.raises(DatasetError, match=r"the cache .* cannot be written: Permission denied"):
        remote.read_episode(0)
