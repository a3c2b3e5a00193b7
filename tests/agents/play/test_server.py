"""The real server, and clients that behave and misbehave."""

import os
import re
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

pytest.importorskip("uvicorn", reason="the server needs the extra play")

from own_page import Page, serving
from serving import get, wait_for
from websockets.exceptions import ConnectionClosed, InvalidStatus

from wm_gym.agents.play import server as server_module
from wm_gym.agents.play.benchmark import measure_play
from wm_gym.cli.main import main
from wm_gym.uncertainty import Uncertainty, VarianceNetwork


@pytest.fixture
def served(setup):
    with serving(setup) as (server, log):
        yield server, log


def test_the_page_and_its_parts(served):
    server, _ = served
    path = urlsplit(server.url).path
    status, headers, page = get(server, path)
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"
    for part in re.findall(rb'(?:src|href)="([^"]+)"', page):
        assert get(server, path + part.decode())[0] == 200
    status, headers, picture = get(server, f"{path}start-states/7.png")
    assert (status, headers["content-type"], picture[:4]) == (200, "image/png", b"\x89PNG")
    assert get(server, f"{path}start-states/999999.png")[0] == 404
    assert get(server, f"{path}../server.py")[0] == 404


def test_strangers_are_refused_with_a_sentence_each(served):
    server, log = served
    path = urlsplit(server.url).path
    assert get(server, "/")[0] == 403
    assert get(server, "/index.html")[0] == 403
    assert get(server, path.replace("/", "/x", 1))[0] == 403
    assert get(server, path, Host="evil.example")[0] == 403
    assert get(server, path, Origin="http://evil.example")[0] == 403
    before = len(log)
    for headers in ({"origin": "http://evil.example"}, {"origin": None}):
        with pytest.raises(InvalidStatus, match="403"):
            Page(server, **headers)
    assert before == 5
    assert [line.split(" was refused, because ")[0] for line in log] == ["a request"] * 5 + ["a WebSocket"] * 2
    assert all(line.count(". ") == 0 for line in log)
    assert server.guard.token not in "".join(log)


def test_driving_over_the_network(served):
    server, _ = served
    page = Page(server)
    header, pictures = page.step()
    assert (header["number"], header["action"], list(pictures)) == (1, None, ["dream"])
    assert page.texts[0]["kind"] == "hello"
    assert page.texts[0]["start_states"] > 0
    page.go(steering=0.5)
    header, _ = page.step()
    assert header["action"] == [0.5, 0.5, 0.0, 1.0]
    page.send(kind="driver", who="agent")
    while page.text("state")["who"] != "agent":
        pass
    page.send(kind="start", mode="both", seed=12)
    while page.text("state")["mode"] != "both":
        pass
    header, pictures = page.step()
    assert set(pictures) == {"simulator", "dream"}
    # Paused, a page is sent one step for each that it asks for.
    page.send(kind="pause", paused=True)
    while not page.text("state")["paused"]:
        pass
    page.send(kind="single_step")
    first = page.step()[0]["worlds"]["simulator"]["steps"]
    page.send(kind="single_step")
    assert page.step()[0]["worlds"]["simulator"]["steps"] == first + 1
    page.send(kind="start", seed=1_000_000)
    assert "held out" in page.text("problem")["text"]
    page.send(kind="again")
    assert page.step()[0]["worlds"]["simulator"]["steps"] == 0
    page.close()


@pytest.mark.parametrize("tells", [False, True])
def test_a_step_has_the_uncertainty_of_the_dream_where_the_model_tells_it(setup, monkeypatch, tells):
    model = setup.model
    if tells:
        network = VarianceNetwork(model.feature_dim, model.simulator.action.dim, horizon=4, hidden_dim=8)
        monkeypatch.setattr(model, "uncertainty", Uncertainty(network))
    with serving(setup) as (server, _):
        page = Page(server)
        page.go(steering=0.5)
        found = {}
        while len(found) < 3:
            numbers = page.step()[0]["worlds"]["dream"]
            found[numbers["steps"]] = numbers["uncertainty"]
        page.close()
    if tells:
        assert found[0] == 0 and 0 < found[1] < found[2]
    else:
        assert set(found.values()) == {None}


def test_a_new_drive_waits_for_the_hand(served):
    server, _ = served
    page = Page(server)
    assert page.text("state")["waits"]
    page.step()
    with pytest.raises(TimeoutError):
        page.socket.recv(timeout=0.5)
    page.go()
    assert not page.text("state")["waits"]
    assert page.step()[0]["worlds"]["dream"]["steps"] == 1
    page.close()


def test_a_page_that_shows_nothing_is_not_flooded(served):
    server, _ = served
    page = Page(server)
    page.step()
    page.send(kind="speed", speed=20.0)
    page.go()
    arrived = 0
    while arrived < 2:  # which may take a while on a busy machine
        arrived += isinstance(page.socket.recv(timeout=60), bytes)
    with pytest.raises(TimeoutError):
        page.socket.recv(timeout=0.7)
    page.close()


def test_pages_come_and_go_and_talk_rubbish_while_another_one_drives(served):
    server, log = served
    driver = Page(server)
    driver.step()
    driver.go()
    driver.step()
    second = Page(server)
    second.step()
    second.close()  # a closed tab
    third = Page(server)
    third.step()
    third.socket.socket.close()  # one that is just gone
    for rubbish in ("hello", b"\x00", '{"kind": "fly"}', "x" * 100_000):
        page = Page(server)
        page.step()
        page.socket.send(rubbish)
        with pytest.raises(ConnectionClosed):
            while True:
                page.step()
    number = driver.step()[0]["number"]
    assert driver.step()[0]["number"] == number + 1
    wait_for(lambda: len(log) == 13)
    ends = sorted(line for line in log if "opened" not in line)
    assert [line.split(" ", 2)[2].split(" because")[0] for line in ends] == [
        "was closed.",
        "was closed.",
        "was refused,",
        "was refused,",
        "was refused,",
        "was closed.",
    ]
    driver.close()


def test_only_so_many_pages_at_once(served):
    server, log = served
    pages = [Page(server) for _ in range(server_module.MAX_PAGES)]
    for page in pages:
        page.step()
    extra = Page(server)
    assert "close one" in extra.text("problem")["text"]
    pages[0].close()
    wait_for(lambda: "page 1 was closed." in log)
    again = Page(server)  # a reload
    again.step()
    for page in (*pages[1:], again):
        page.close()


def test_ctrl_c_keeps_the_drive_and_ends_cleanly(tmp_path, capsys):
    command = [sys.executable, "-m", "wm_gym", "play", "--port", "0", "--mode", "simulator", "--seed", "8"]
    process = subprocess.Popen(
        [*command, "--record", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        opened = process.stdout.readline()
        url = re.search(r"http://\S+", opened)[0]
        page = Page(type("Running", (), {"url": url}))
        page.step()
        page.send(kind="record", on=True)
        page.go()
        for _ in range(5):
            page.step()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, "")
    assert re.search(r"Kept a drive of \d+ steps", out)
    assert out.endswith("ended.\n")
    assert main(["dataset", "verify", str(tmp_path / "simulator")]) == 0
    assert "1 sound episode" in capsys.readouterr().out


def test_the_frames_a_second_are_measured():
    table = measure_play(0.1)
    assert [(row["mode"], row["who"]) for row in table.rows] == [
        (mode, who) for mode in ("dream", "simulator", "both") for who in ("hand", "agent")
    ]
    assert all(row["frames_per_s"] > 0 for row in table.rows)
