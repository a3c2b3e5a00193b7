"""The report that is served while a run goes on: what it shows when, and the real server."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("uvicorn", reason="the server needs the extra play")

from serving import get, running, wait_for

from wm_gym.agents.reports import live
from wm_gym.agents.reports.live import LiveReport
from wm_gym.agents.reports.server import ReportServer
from wm_gym.agents.web.listening import listen
from wm_gym.cli.main import main
from wm_gym.errors import BundleError


def record(folder, *rows, end="\n"):
    """Append rows to a training's metrics; the last line ends with ``end``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n".join(json.dumps(row) for row in rows) + end)


def update(number, loss=1.0):
    return {"kind": "train", "update": number, "loss": loss}


def dream(steps):
    return {"kind": "train", "dream_steps": steps, "ep_rew_mean": steps / 100}


EVALUATION = {"returns": [1.0, 3.0], "lengths": [5, 5], "seeds": [7, 8], "mean_return": 2.0, "ci95": [1.0, 3.0]}


class Clock:
    """Time as the test has it; every look at it takes ``look`` seconds."""

    def __init__(self, look=0.0):
        self.now, self.look = 0.0, look

    def __call__(self):
        self.now += self.look
        return self.now


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "run"


def test_it_shows_what_is_there_as_it_comes(folder):
    report = LiveReport(folder, Clock())
    first = report.current()
    assert "nothing of a run" in first.html
    assert report.current() is first
    folder.mkdir()
    record(folder / "model", update(10), update(20))
    second = report.current()
    assert "20 updates" in second.html
    assert "not finished" in second.html
    assert second.html.count("<img") == 1
    record(folder / "model", update(30))
    third = report.current()
    assert "30 updates" in third.html
    assert third.stamp != second.stamp
    assert report.current() is third
    (folder / "model" / "config.yaml").write_text("format: 1\n")
    record(folder / "agent", dream(4_000))
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "random.json").write_text(json.dumps(EVALUATION | {"driving": {"driving_score": 12.5}}))
    last = report.current().html
    assert re.search(r"world model</td><td>30 updates</td><td>[^<]+</td><td[^>]*>finished", last)
    assert re.search(r"agent</td><td>4,000 dream steps</td><td>[^<]+</td><td[^>]*>not finished", last)
    headings = re.findall("<h2>(.*?)</h2>", last)
    assert headings[:4] == ["So far", "Training", "Returns in the simulator", "CARLA&#39;s scores"]
    shutil.rmtree(folder)
    assert "nothing of a run" in report.current().html


def test_a_line_that_is_half_written_waits(folder):
    record(folder / "model", update(10), update(20), end='\n{"kind": "train", "upd')
    report = LiveReport(folder, Clock())
    page = report.current()
    assert (page.problem, "20 updates" in page.html) == (None, True)
    with (folder / "model" / "metrics.jsonl").open("a") as file:
        file.write('ate": 30, "loss": 1.0}\n')
    assert "30 updates" in report.current().html


def test_a_damaged_file_is_said_and_the_last_report_stays(folder):
    record(folder / "model", update(10))
    report = LiveReport(folder, Clock())
    good = report.current()
    (folder / "summary.json").write_text("{")
    page = report.current()
    assert page.html == good.html
    assert page.stamp != good.stamp
    assert "summary.json' is damaged" in page.problem
    (folder / "summary.json").unlink()
    assert report.current().problem is None


def test_drawing_takes_a_small_share_of_the_time(folder, monkeypatch):
    clock = Clock(look=0.5)  # between the two looks round a drawing: it takes 0.5 s
    record(folder / "model", update(10))
    report = LiveReport(folder, clock)
    first = report.current()
    rests = 0.5 * (1 / live.MOST_OF_THE_TIME - 1)
    record(folder / "model", update(20))
    clock.now += rests - 1.0
    assert report.current() is first
    clock.now += 1.0
    assert "20 updates" in report.current().html


def test_a_clone_of_episodes_has_no_dream_steps(folder):
    record(folder / "agent", {"kind": "train", "update": 5, "value_loss": 1.0})
    assert LiveReport(folder, Clock()).current().problem is None


def test_a_file_and_a_single_training_are_refused(folder):
    record(folder / "model", update(10))
    with pytest.raises(BundleError, match="is a file"):
        LiveReport(folder / "model" / "metrics.jsonl")
    with pytest.raises(BundleError, match="is the folder of a single training"):
        LiveReport(folder / "model")


@pytest.fixture
def server(folder):
    """The server of a folder; ``server.log`` has its sentences."""
    log = []
    made = ReportServer(LiveReport(folder, Clock()), listen("127.0.0.1", 0), log.append)
    made.log = log
    with running(made):
        yield made


def ask(server, known=""):
    status, _, body = get(server, f"report?known={known}")
    return status, json.loads(body) if body else None


def test_the_page_its_parts_and_its_report(server, folder):
    status, headers, page = get(server, "")
    assert status == 200
    assert "default-src 'self'; img-src 'self' data:;" in headers["content-security-policy"]
    parts = re.findall(rb'(?:src|href)="([^"]+)"', page)
    assert len(parts) == 4
    for part in parts:
        assert get(server, part.decode())[0] == 200
    status, empty = ask(server, "none")
    assert (status, "nothing of a run" in empty["html"]) == (200, True)
    record(folder / "model", update(10))
    status, told = ask(server, empty["stamp"])
    assert (status, told["problem"]) == (200, None)
    assert '<img width="' in told["html"]
    assert ask(server, told["stamp"]) == (204, None)
    record(folder / "model", update(20))
    status, again = ask(server, told["stamp"])
    assert (status, "20 updates" in again["html"]) == (200, True)
    for _ in range(2):
        (folder / "summary.json").write_text("[")
        assert "summary.json" in ask(server)[1]["problem"]
    assert len(server.log) == 1, "it is said once"


def test_strangers_are_refused(server):
    assert get(server, "/report")[0] == 403
    path = urlsplit(server.url).path
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        assert get(server, f"{path}report", **headers)[0] == 403
    assert len(server.log) == 3


def test_what_is_wrong_at_the_start_is_one_sentence(folder, capsys):
    record(folder / "model", update(10))
    assert main(["report", str(folder / "model"), "--serve", "--port", "0"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("wm-gym report: ")
    assert told.count("\n") == 1
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert main(["report", str(folder), "--serve", "--port", str(port)]) == 2
    assert f"port {port}" in capsys.readouterr().err


def test_ctrl_c_ends_the_command_cleanly(folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "wm_gym", "report", str(folder), "--serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("Open "), process.stderr.read()
        asked = type("Running", (), {"url": re.search(r"http://\S+", line)[0]})
        assert "nothing of a run" in ask(asked, "none")[1]["html"]
        record(folder / "agent", dream(100))
        wait_for(lambda: "100 dream steps" in ask(asked, "none")[1]["html"])
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "ended.\n", "")
    assert [file.name for file in folder.iterdir()] == ["agent"], "nothing is written"


def test_the_page_renews_itself_in_a_browser(server, folder, browser):
    record(folder / "model", update(10))
    (folder / "model" / "run_config.yaml").write_text("training: {seed: 0}\n")
    (folder / "model" / "run.json").write_text("{}")
    page = browser.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.goto(server.url)
    page.wait_for_selector("td:text('10 updates')")
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 200)")
    page.click("summary >> nth=0")
    record(folder / "model", update(20))
    page.wait_for_selector("td:text('20 updates')")
    assert page.evaluate("document.querySelector('details').open")
    assert "Renewed at" in page.text_content("#live")
    (folder / "summary.json").write_text("{")
    page.wait_for_selector("#live.problem")
    assert "summary.json" in page.text_content("#live")
    assert page.query_selector("td:text('20 updates')") is not None
    page.close()
    assert errors == []
