"""How many frames a second ``wm-gym play`` sends to a page."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

from wm_gym.agents.play.loading import load_setup
from wm_gym.agents.play.messages import FASTEST
from wm_gym.agents.play.session import MODES, Mode
from wm_gym.agents.web.listening import check_requirements, listen
from wm_gym.agents.web.pictures import decode_pictures
from wm_gym.bench.table import Table

if TYPE_CHECKING:
    from wm_gym.agents.play.server import PlayServer


def measure_play(seconds: float, *, model: str = "bundled", device: str = "cpu", seed: int = 0) -> Table:
    """Steps a second that arrive over the network, each with its pictures, as fast as the server can.

    A client of this process takes the place of the page: it asks for the highest speed and confirms each step. An
    episode that ends begins anew.

    Args:
        seconds: Time for each measurement.
        model: World model's path or ``"bundled"``.
        device: Where model and agent compute.
        seed: Of the first episode.

    Raises:
        ConfigError: The libraries of the extra ``play`` are missing.
        SimulatorError: The model's simulator is not that of the bundled agent, or cannot be made.
    """
    check_requirements("wm-gym bench --parts play")
    from wm_gym.agents.play.server import PlayServer

    own = None if model == "bundled" else model  # the bundled agent sees through the bundled model
    setup = load_setup("bundled", own, horizon=10_000, termination="never", seed=seed, device=device)
    server = PlayServer(setup, listen("127.0.0.1", 0), lambda line: None)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        rows = [
            {"mode": mode, "who": who, "frames_per_s": _frames_per_second(server, mode, who, seconds)}
            for mode in MODES
            for who in ("hand", "agent")
        ]
    finally:
        server.stop()
        thread.join()
    step_s = setup.model.simulator.step_s
    return Table(
        "play",
        "Frames a second that wm-gym play sends",
        (("mode", "driven in", ""), ("who", "at the wheel", ""), ("frames_per_s", "frames/s", ",.1f")),
        rows,
        (f"In simulated time it is {1.0 / step_s if step_s > 0 else 0.0:.1f} a second.",),
    )


def _frames_per_second(server: PlayServer, mode: Mode, who: str, seconds: float) -> float:
    from websockets.sync.client import connect
    from websockets.typing import Origin

    address = server.url.replace("http:", "ws:") + "drive"
    with connect(address, origin=Origin(server.url.rsplit("/", 2)[0]), proxy=None) as page:

        def send(**message: Any) -> None:
            page.send(json.dumps(message))

        send(kind="start", mode=mode)
        send(kind="speed", speed=FASTEST)
        send(kind="driver", who=who)
        send(kind="controls", steering=0.05, throttle=0.3, brake=0.0)
        frames, started = -10, 0.0  # the first ones do not count
        while not started or time.perf_counter() - started < seconds:
            received = page.recv()
            if isinstance(received, str):
                if json.loads(received).get("ended"):
                    send(kind="next")
                continue
            header, _ = decode_pictures(received)
            send(kind="shown", number=header["number"])
            frames += mode == "dream" or "simulator" in header["worlds"]
            if frames == 0 and not started:
                started = time.perf_counter()
        return frames / (time.perf_counter() - started)
