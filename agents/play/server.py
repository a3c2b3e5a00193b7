"""The server of ``wm-gym play``: the page, its WebSocket, and pictures of the start states."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from wm_gym.agents.play.connection import Connection
from wm_gym.agents.play.messages import MAX_MESSAGE_BYTES
from wm_gym.agents.play.session import PlaySetup
from wm_gym.agents.web.page_server import PageServer
from wm_gym.data_collection.datasets.codec import FrameCodec
from wm_gym.frames import tensor_to_frames

MAX_PAGES = 4
"""Pages that drive at once; each has dreams and, where it wants one, a simulator of its own."""
_TOO_MANY = 1013  # WebSocket: try again later


class PlayServer(PageServer[PlaySetup]):
    """The server of one ``wm-gym play``; where episodes are to be kept, those under way are written at its end."""

    assets = Path(__file__).parent / "assets"
    max_message_bytes = MAX_MESSAGE_BYTES

    def __init__(
        self, setup: PlaySetup, listening: socket.socket, say: Callable[[str], None], host: str = "127.0.0.1"
    ) -> None:
        super().__init__(setup, listening, say, host)
        self._pages = 0
        self._pages_so_far = 0
        self._thumbnails: dict[int, bytes] = {}

    def routes(self, below: str) -> Sequence[BaseRoute]:
        """The WebSocket that episodes are driven over, and the pictures of the start states."""
        return (
            WebSocketRoute(f"{below}/drive", self._drive),
            Route(f"{below}/start-states/{{number:int}}.png", self._thumbnail),
        )

    async def _drive(self, websocket: WebSocket) -> None:
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
            await Connection(websocket, self._shown, self.compute, self._say, name).run()
        finally:
            self._pages -= 1

    async def _thumbnail(self, request: Request) -> Response:
        number = request.path_params["number"]
        picture = await self.compute(lambda: self._start_picture(number))
        return Response(status_code=404) if picture is None else Response(picture, media_type="image/png")

    def _start_picture(self, number: int) -> bytes | None:
        """A start state's picture, as PNG; ``None`` where there is no such start state."""
        states = self._shown.model.start_states
        if states is None or number >= states.batch_size:
            return None
        if number not in self._thumbnails:
            row = torch.tensor([number], device=states.latent.device)
            with torch.inference_mode():
                frame = tensor_to_frames(self._shown.model.decode(states.select(row)))[0].contiguous().cpu().numpy()
            self._thumbnails[number] = FrameCodec(name="png").encode(frame)
        return self._thumbnails[number]
