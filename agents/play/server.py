"""The server: a page, its parts and its WebSocket, all below one path that nobody can guess."""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import secrets
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wm_gym.agents.play.guard import Guard, is_loopback
from wm_gym.agents.play.messages import MAX_MESSAGE_BYTES
from wm_gym.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.types import ASGIApp, Receive, Scope, Send

    from wm_gym.agents.play.session import PlaySetup

ASSETS = Path(__file__).parent / "assets"
MAX_PAGES = 4
"""Pages that drive at once; each has dreams and, where it wants one, a simulator of its own."""
_NEEDED = ("starlette", "uvicorn", "websockets")
_EVERY_ADDRESS = ("0.0.0.0", "::")
_TOO_MANY = 1013  # WebSocket: try again later
_HEADERS = {
    # Nothing but this server is asked for anything, nothing else shows the page, and its address is not passed on.
    "content-security-policy": "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def has_libraries() -> bool:
    """Whether there is what the server needs beyond the package's own dependencies."""
    return not _missing()


def check_requirements() -> None:
    """Look for what the server needs beyond the package's own dependencies.

    Raises:
        ConfigError: Something is missing.
    """
    missing = _missing()
    if missing:
        raise ConfigError(
            f"wm-gym play needs {', '.join(missing)}, which is not installed; run `pip install 'wm_gym[play]'`."
        )


def _missing() -> list[str]:
    return [name for name in _NEEDED if importlib.util.find_spec(name) is None]


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: Name or address of this machine.
        port: 0 takes any that is free.

    Raises:
        ConfigError: The port is out of range, or no address of this machine is called like that.
        OutputError: The port is taken.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port} is not in 0 to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"--host {host} is no address of this machine; leave it out to listen on 127.0.0.1."
        ) from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise OutputError(
                f"port {port} of {host} is taken, perhaps by another wm-gym play; end that one, or give another "
                "--port (0 takes any that is free)."
            ) from error
        raise ConfigError(f"wm-gym play cannot listen on {host}:{port}: {error.strerror}.") from error
    return listening


class PlayServer:
    """The server of one ``wm-gym play``.

    Args:
        setup: What all pages share.
        listening: See :func:`listen`.
        say: Takes a sentence for the log.
        host: What the socket was made with.

    Attributes:
        guard: The token and the rules for requests.
    """

    def __init__(
        self, setup: PlaySetup, listening: socket.socket, say: Callable[[str], None], host: str = "127.0.0.1"
    ) -> None:
        # Listening on every address, it is reached by the machine's name or any of its addresses.
        self.guard = Guard(secrets.token_urlsafe(24), socket.gethostname() if host in _EVERY_ADDRESS else host)
        self._setup = setup
        self._socket = listening
        self._say = say
        self._pages = 0
        self._pages_so_far = 0
        self._thumbnails: dict[int, bytes] = {}
        # One thread for all models and simulators: they are not made for several, and no step is half done.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="play")

    @property
    def url(self) -> str:
        """The page's address, with the token in it."""
        host, port = self.guard.host, self._socket.getsockname()[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/{self.guard.token}/"

    def run(self) -> None:
        """Serve until Ctrl-C; open pages are closed, and drives that are to be kept are written."""
        import uvicorn

        config = uvicorn.Config(
            _Guarded(self._app(), self.guard, self._say),
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            ws_max_size=MAX_MESSAGE_BYTES,
            timeout_graceful_shutdown=30,
        )
        try:
            self._server = uvicorn.Server(config)
            with suppress(KeyboardInterrupt):  # the way to end it
                asyncio.run(self._server.serve(sockets=[self._socket]))
        finally:
            self._executor.shutdown()
            self._socket.close()

    def stop(self) -> None:
        """End :meth:`run` from another thread."""
        self._server.should_exit = True

    def _app(self) -> Starlette:
        from starlette.applications import Starlette
        from starlette.routing import Mount, Route, WebSocketRoute
        from starlette.staticfiles import StaticFiles

        below = f"/{self.guard.token}"
        return Starlette(
            routes=[
                WebSocketRoute(f"{below}/drive", self._drive),
                Route(f"{below}/start-states/{{number:int}}.png", self._thumbnail),
                Mount(below, StaticFiles(directory=ASSETS, html=True)),
            ]
        )

    async def _compute(self, function: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    async def _drive(self, websocket: Any) -> None:
        from wm_gym.agents.play.connection import Connection

        await websocket.accept()
        self._pages_so_far += 1
        name = f"page {self._pages_so_far}"
        if self._pages >= MAX_PAGES:
            self._say(f"{name} was refused, because {MAX_PAGES} pages are open; close one of them.")
            await websocket.send_json({"kind": "problem", "text": f"{MAX_PAGES} pages are open; close one of them."})
            await websocket.close(_TOO_MANY)
            return
        self._pages += 1
        self._say(f"{name} was opened.")
        try:
            await Connection(websocket, self._setup, self._compute, self._say, name).run()
        finally:
            self._pages -= 1

    async def _thumbnail(self, request: Any) -> Any:
        from starlette.responses import Response

        number = request.path_params["number"]
        picture = await self._compute(lambda: self._start_picture(number))
        return Response(status_code=404) if picture is None else Response(picture, media_type="image/png")

    def _start_picture(self, number: int) -> bytes | None:
        """A start state's picture, as PNG; ``None`` where there is no such start state."""
        import torch

        from wm_gym.data_collection.datasets.codec import FrameCodec
        from wm_gym.frames import tensor_to_frames

        states = self._setup.model.start_states
        if states is None or number >= states.batch_size:
            return None
        if number not in self._thumbnails:
            row = torch.tensor([number], device=states.latent.device)
            with torch.inference_mode():
                frame = tensor_to_frames(self._setup.model.decode(states.select(row)))[0].contiguous().cpu().numpy()
            self._thumbnails[number] = FrameCodec(name="png").encode(frame)
        return self._thumbnails[number]


class _Guarded:
    """Refuses what the guard refuses, with a sentence in the log, and gives every answer its headers."""

    def __init__(self, app: ASGIApp, guard: Guard, say: Callable[[str], None]) -> None:
        self._app = app
        self._guard = guard
        self._say = say

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.responses import PlainTextResponse

        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        is_websocket = scope["type"] == "websocket"
        refusal = self._guard.refusal(scope["path"], headers, is_websocket=is_websocket)
        if refusal is None:
            await self._app(scope, receive, send if is_websocket else _with_headers(send))
            return
        what = "a WebSocket" if is_websocket else "a request"
        self._say(f"{what} was refused, because {refusal}.")
        if is_websocket:
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": ""})  # before it is accepted: HTTP 403
            return
        answer = PlainTextResponse("Refused. Open the address that wm-gym play printed.\n", status_code=403)
        await answer(scope, receive, _with_headers(send))


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Any) -> None:
        if message["type"] == "http.response.start":
            own = {name.encode(): value.encode() for name, value in _HEADERS.items()}
            kept = [(name, value) for name, value in message["headers"] if name.lower() not in own]
            message = {**message, "headers": [*kept, *own.items()]}
        await send(message)

    return wrapped


def warning_of(host: str) -> str | None:
    """What to say where the server is reached from other machines; ``None`` where it is not."""
    if is_loopback(host):
        return None
    return "Other machines can reach this page: whoever has its address can drive, and nothing on the way is encrypted."
