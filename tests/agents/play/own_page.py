"""A real server in a thread, and a client that speaks as a page does."""

import json
from contextlib import ExitStack, contextmanager

from serving import running
from websockets.sync.client import connect

from wm_gym.agents.play.server import PlayServer
from wm_gym.agents.web.listening import listen
from wm_gym.agents.web.pictures import decode_pictures


@contextmanager
def serving(setup):
    """A server in a thread of its own, and the sentences of its log."""
    log: list[str] = []
    server = PlayServer(setup, listen("127.0.0.1", 0), log.append)
    with running(server):
        yield server, log


class Page:
    """What a page does, without a browser."""

    def __init__(self, server, **headers):
        base = server.url.replace("http:", "ws:")
        headers.setdefault("origin", server.url.rsplit("/", 2)[0])
        self._stack = ExitStack()
        self.socket = self._stack.enter_context(connect(f"{base}drive", proxy=None, **headers))
        self.texts: list[dict] = []

    def send(self, **message):
        self.socket.send(json.dumps(message))

    def step(self):
        """The next step's header and pictures; texts before it are kept."""
        while isinstance(received := self.socket.recv(timeout=60), str):
            self.texts.append(json.loads(received))
        header, pictures = decode_pictures(received)
        self.send(kind="shown", number=header["number"])
        return header, pictures

    def text(self, kind):
        """The next text of a kind; steps before it are taken as shown."""
        while True:
            received = self.socket.recv(timeout=60)
            if not isinstance(received, str):
                self.send(kind="shown", number=decode_pictures(received)[0]["number"])
                continue
            self.texts.append(json.loads(received))
            if self.texts[-1]["kind"] == kind:
                return self.texts[-1]

    def go(self, **controls):
        self.send(kind="controls", **{"steering": 0.0, "throttle": 0.5, "brake": 0.0, **controls})

    def close(self):
        self._stack.close()
