"""The real server: what is asked of it, what is wrong with datasets and models, and remote ones."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import pytest

pytest.importorskip("uvicorn", reason="the server needs the extra play")

from serving import get, running

from wm_gym.agents.view.loading import load_view
from wm_gym.agents.view.server import ViewServer
from wm_gym.agents.web.listening import listen
from wm_gym.agents.web.pictures import decode_pictures
from wm_gym.cli.main import main
from wm_gym.data_collection import DownloadCache, push
from wm_gym.errors import SimulatorError


@pytest.fixture
def model_folder(model, tmp_path):
    return str(model.save_pretrained(tmp_path / "model"))


@pytest.fixture
def serve():
    """Starts a server; ``serve.log`` has its sentences."""
    open_servers = []

    def start(setup):
        server = ViewServer(setup, listen("127.0.0.1", 0), start.log.append)
        context = running(server)
        context.__enter__()
        open_servers.append(context)
        return server

    start.log = []
    yield start
    for context in open_servers:
        context.__exit__(None, None, None)


def get_json(server, path):
    status, _, body = get(server, path)
    return status, json.loads(body)


def test_the_page_and_its_parts(serve, dataset):
    server = serve(load_view(dataset.path))
    status, headers, page = get(server, "")
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]
    for part in re.findall(rb'(?:src|href)="([^"#]+)"', page):
        assert get(server, part.decode())[0] == 200
    for script in ("main", "list", "episode", "moments", "plots", "frames", "server"):
        text = get(server, f"{script}.js")[2].decode()
        for imported in re.findall(r'from "\./([^"]+)"', text):
            assert get(server, imported)[0] == 200


def test_strangers_are_refused(serve, dataset):
    server = serve(load_view(dataset.path))
    assert get(server, "/dataset.json")[0] == 403
    path = urlsplit(server.url).path
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        assert get(server, f"{path}dataset.json", **headers)[0] == 403
    assert len(serve.log) == 3


def test_what_a_page_asks_for(serve, dataset, model_folder):
    server = serve(load_view(dataset.path, model_folder))
    status, listing = get_json(server, "dataset.json")
    assert status == 200
    assert listing["model"] == {"name": model_folder, "is_there": True}
    status, headers, picture = get(server, "episodes/2/strip")
    assert (status, headers["content-type"], picture[:2]) == (200, "image/jpeg", b"\xff\xd8")
    assert len(get_json(server, "episodes/2/steps")[1]["rewards"]) == 63
    header, pictures = decode_pictures(get(server, "episodes/0/frames/2")[2])
    assert header["first"] == 64
    assert list(pictures) == [str(frame) for frame in range(64, 71)]
    header, pictures = decode_pictures(get(server, "episodes/0/reconstructions/1")[2])
    assert (header["first"], len(header["psnr"]), len(header["vectors"])) == (32, 32, 2)
    header, pictures = decode_pictures(get(server, "episodes/0/dreams/40/6/0")[2])
    assert list(pictures) == [str(frame) for frame in range(41, 47)]
    assert len(header["rewards"]) == len(header["continuations"]) == 6
    assert serve.log == []


def test_what_cannot_be_had_is_a_sentence_and_nothing_stops(serve, dataset, damaged, model_folder):
    cut, changed = damaged(dataset, 0, header=True), damaged(dataset, 1)
    server = serve(load_view(dataset.path, model_folder))
    _, listing = get_json(server, "dataset.json")
    assert list(listing["problems"]) == [cut.name]
    assert str(cut) in listing["problems"][cut.name]
    assert [entry["index"] for entry in listing["episodes"]] == [1, 2, 3]
    for part in ("strip", "steps", "frames/0", "reconstructions/0", "dreams/0/5/0"):
        status, told = get_json(server, f"episodes/0/{part}")
        assert status == 422
        assert told["problem"].startswith(f"{changed} is damaged")
        assert get(server, f"episodes/1/{part}")[0] == 200
    assert get_json(server, "episodes/9/strip")[1]["problem"].startswith("there is no episode")
    assert "no step after" in get_json(server, "episodes/1/dreams/999/5/0")[1]["problem"]
    assert get(server, "episodes/-1/strip")[0] == 404
    assert get(server, "episodes/x/strip")[0] == 404
    assert len(serve.log) == 3, "each is said once"


def test_a_dataset_whose_files_are_all_damaged_is_shown(serve, dataset, damaged):
    for position in range(4):
        damaged(dataset, position, header=True)
    _, listing = get_json(serve(load_view(dataset.path)), "dataset.json")
    assert (len(listing["episodes"]), len(listing["problems"])) == (0, 4)


def test_the_bundled_model_is_taken_where_it_fits(car_racing_data, dataset):
    assert load_view(car_racing_data).model_name == "bundled"
    other = load_view(dataset.path)
    assert other.imagination is None
    assert re.match(
        r"the bundled world model does not fit, because .* gives these numbers .*speed, light", other.model_name
    )
    assert load_view(car_racing_data, "none").imagination is None
    with pytest.raises(SimulatorError, match="does not fit"):
        load_view(dataset.path, "bundled")


def test_without_a_model_the_rest_works(serve, dataset):
    server = serve(load_view(dataset.path, "none"))
    assert get(server, "episodes/0/frames/0")[0] == 200
    assert "no world model" in get_json(server, "episodes/0/reconstructions/0")[1]["problem"]


def test_a_remote_dataset_is_downloaded_as_it_is_looked_at(serve, dataset, tmp_path, model_folder):
    url = "memory://bucket/looked-at"
    push(dataset.path, url, progress=False)
    cache = DownloadCache(tmp_path / "cache")
    try:
        server = serve(load_view(url, model_folder, downloads=cache))
        _, listing = get_json(server, "dataset.json")
        assert listing["path"] == url
        assert len(listing["episodes"]) == 4
        assert list(cache.folder.glob("??/*/*")) == []
        assert get(server, "episodes/2/strip")[0] == 200
        assert [path.name for path in cache.folder.glob("??/*/*")] == ["episode-000002.safetensors"]
        assert get(server, "episodes/2/dreams/3/4/0")[0] == 200
        fs, root = fsspec.core.url_to_fs(url)
        fs.rm(f"{root}/episodes/episode-000001.safetensors")
        status, told = get_json(server, "episodes/1/steps")
        assert (status, "is gone; push the dataset again" in told["problem"]) == (422, True)
        assert get(server, "episodes/0/steps")[0] == 200
    finally:
        fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{folder}/nowhere"], "nowhere"),
        (["{folder}"], "dataset"),
        (["memory://no/such/place"], "there is no dataset at memory://no/such/place"),
        (["{data}", "--model", "{folder}/nowhere"], "nowhere"),
        (["{data}", "--model", "bundled"], "does not fit"),
        (["{data}", "--device", "abacus"], "abacus"),
    ],
)
def test_what_is_wrong_at_the_start_is_one_sentence(dataset, tmp_path, capsys, arguments, sentence):
    (tmp_path / "empty").mkdir()
    given = [text.format(folder=tmp_path / "empty", data=dataset.path) for text in arguments]
    assert main(["view", *given, "--port", "0"]) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.startswith("wm-gym view: ")
    assert told.count("\n") == 1


def test_ctrl_c_ends_it_cleanly(dataset, damaged, tmp_path):
    cut = damaged(dataset, 3, header=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "wm_gym", "view", str(dataset.path), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        lines = []
        while not lines or not lines[-1].startswith("Open "):
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read()
        url = re.search(r"http://\S+", lines[-1])[0]
        assert get(type("Running", (), {"url": url}), "dataset.json")[0] == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, "")
    assert out == "ended.\n"
    assert lines[0].startswith(str(Path(cut)))
    assert lines[1].startswith("Without a world model: the bundled world model does not fit")
