"""A server of one page: its parts and whatever else it answers, all below one path that nobody can guess."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

import wm_gym
from wm_gym.agents.web.guard import Guard

ShownT = TypeVar("ShownT")

SHARED_ASSETS = Path(wm_gym.__file__).parent / "pages"
"""What all pages use, below ``shared/``."""
_EVERY_ADDRESS = ("0.0.0.0", "::")
_HEADERS = {
    # Nothing but this server is asked for anything, nothing else shows the page, and its address is not passed on.
    "content-security-policy": "default-src 'self'; img-src {images}; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class PageServer(Generic[ShownT]):
    """Serves a page until Ctrl-C; a sub-class says what there is beside the page's files.

    Args:
        shown: What the page shows.
        listening: See :func:`~wm_gym.agents.web.listening.listen`.
        say: Takes a sentence for the log.
        host: What the socket was made with.

    Attributes:
        guard: The token and the rules for requests.
    """

    assets: ClassVar[Path]
    """Folder of the page's files."""
    max_message_bytes = 4096
    """Most that a browser may send over a WebSocket at once."""
    image_sources = "'self' blob:"
    """Where a page's pictures may come from, in the words of a content security policy."""

    def __init__(
        self, shown: ShownT, listening: socket.socket, say: Callable[[str], None], host: str = "127.0.0.1"
    ) -> None:
        # Listening on every address, it is reached by the machine's name or any of its addresses.
        self.guard = Guard(secrets.token_urlsafe(24), socket.gethostname() if host in _EVERY_ADDRESS else host)
        self._shown = shown
        self._socket = listening
        self._say = say
        # One thread for all models and simulators: they are not made for several, and no step is half done.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="compute")

    @property
    def url(self) -> str:
        """The page's address, with the token in it."""
        host, port = self.guard.host, self._socket.getsockname()[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/{self.guard.token}/"

    def routes(self, below: str) -> Sequence[BaseRoute]:
        """What is answered beside the page's files.

        Args:
            below: What every path begins with.
        """
        return ()

    def run(self) -> None:
        """Serve until Ctrl-C; open connections are closed."""
        config = uvicorn.Config(
            _Guarded(self._app(), self.guard, self._say, self.image_sources),
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            ws_max_size=self.max_message_bytes,
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

    async def compute(self, function: Callable[[], Any]) -> Any:
        """Run a function where models and simulators run, and wait for it without blocking the network."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    def _app(self) -> Starlette:
        below = f"/{self.guard.token}"
        return Starlette(
            routes=[
                *self.routes(below),
                Mount(f"{below}/shared", StaticFiles(directory=SHARED_ASSETS)),
                Mount(below, StaticFiles(directory=self.assets, html=True)),
            ]
        )


class _Guarded:
    """Refuses what the guard refuses, with a sentence in the log, and gives every answer its headers."""

    def __init__(self, app: ASGIApp, guard: Guard, say: Callable[[str], None], image_sources: str) -> None:
        self._app = app
        self._headers = {name.encode(): value.format(images=image_sources).encode() for name, value in _HEADERS.items()}
        self._guard = guard
        self._say = say

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        is_websocket = scope["type"] == "websocket"
        refusal = self._guard.refusal(scope["path"], headers, is_websocket=is_websocket)
        if refusal is None:
            await self._app(scope, receive, send if is_websocket else self._with_headers(send))
            return
        what = "a WebSocket" if is_websocket else "a request"
        self._say(f"{what} was refused, because {refusal}.")
        if is_websocket:
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": ""})  # before it is accepted: HTTP 403
            return
        answer = PlainTextResponse("Refused. Open the address that wm-gym printed.\n", status_code=403)
        await answer(scope, receive, self._with_headers(send))

    def _with_headers(self, send: Send) -> Send:
        async def wrapped(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = self._headers
                kept = [(name, value) for name, value in message["headers"] if name.lower() not in own]
                message = {**message, "headers": [*kept, *own.items()]}
            await send(message)

        return wrapped
