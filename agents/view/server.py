"""The server of ``wm-gym view``: the page, the list of the episodes, their pictures, and what a model makes of them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from wm_gym.agents.view.episodes import PIECE
from wm_gym.agents.view.imagination import MAX_DREAM_STEPS, Imagination, Imagined
from wm_gym.agents.web.page_server import PageServer
from wm_gym.agents.web.pictures import encode_picture, encode_pictures
from wm_gym.errors import ConfigError, WMGymError

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from wm_gym.agents.view.loading import ViewSetup

ASSETS = Path(__file__).parent / "assets"
_BYTES = "application/octet-stream"
_PROBLEM = 422  # what was asked for is understood, and cannot be had: a damaged episode, for example


class ViewServer(PageServer):
    """The server of one ``wm-gym view``.

    What cannot be had is answered with a sentence, and said once in the log; nothing stops.

    Args:
        setup: What all pages share.
        listening: See :func:`~wm_gym.agents.web.listening.listen`.
        say: Takes a sentence for the log.
        host: What the socket was made with.
    """

    def __init__(
        self, setup: ViewSetup, listening: socket.socket, say: Callable[[str], None], host: str = "127.0.0.1"
    ) -> None:
        super().__init__(ASSETS, listening, say, host)
        self._setup = setup
        self._said: set[str] = set()

    def routes(self, below: str) -> Sequence[BaseRoute]:
        """The dataset, and of each episode its strip, steps, frames, reconstructions and dreams."""
        from starlette.routing import Route

        episode = f"{below}/episodes/{{position:int}}"
        return (
            Route(f"{below}/dataset.json", self._dataset),
            Route(f"{episode}/strip", self._strip),
            Route(f"{episode}/steps", self._steps),
            Route(f"{episode}/frames/{{number:int}}", self._frames),
            Route(f"{episode}/reconstructions/{{number:int}}", self._reconstructions),
            Route(f"{episode}/dreams/{{start:int}}/{{steps:int}}/{{seed:int}}", self._dream),
        )

    async def _dataset(self, request: Any) -> Any:
        from starlette.responses import JSONResponse

        setup = self._setup
        return JSONResponse(
            {
                **setup.shelf.listing(),
                "model": {"name": setup.model_name, "is_there": setup.imagination is not None},
                "most_dream_steps": MAX_DREAM_STEPS,
            }
        )

    async def _strip(self, request: Any) -> Any:
        from starlette.responses import Response

        def make() -> Response:
            content, media_type = encode_picture(self._setup.shelf.strip(request.path_params["position"]))
            return Response(content, media_type=media_type)

        return await self._answer(asyncio.to_thread(make))

    async def _steps(self, request: Any) -> Any:
        from starlette.responses import JSONResponse

        def make() -> JSONResponse:
            return JSONResponse(self._setup.shelf.steps(request.path_params["position"]))

        return await self._answer(asyncio.to_thread(make))

    async def _frames(self, request: Any) -> Any:
        number = request.path_params["number"]

        def make() -> Any:
            return _pictures({}, self._setup.shelf.piece(request.path_params["position"], number).image, number * PIECE)

        return await self._answer(asyncio.to_thread(make))

    async def _reconstructions(self, request: Any) -> Any:
        number = request.path_params["number"]

        def make() -> Any:
            shown = self._model.reconstruct(request.path_params["position"], number)
            return _pictures(_numbers(shown), shown.frames, number * PIECE)

        return await self._answer(self.compute(make))

    async def _dream(self, request: Any) -> Any:
        asked = request.path_params

        def make() -> Any:
            shown = self._model.dream(asked["position"], asked["start"], asked["steps"], asked["seed"])
            return _pictures(_numbers(shown), shown.frames, asked["start"] + 1)

        return await self._answer(self.compute(make))

    @property
    def _model(self) -> Imagination:
        if self._setup.imagination is None:
            raise ConfigError(f"there is no world model here: {self._setup.model_name}.")
        return self._setup.imagination

    async def _answer(self, work: Awaitable[Any]) -> Any:
        from starlette.responses import JSONResponse

        try:
            return await work
        except WMGymError as error:
            sentence = str(error)
            if sentence not in self._said:
                self._said.add(sentence)
                self._say(sentence)
            return JSONResponse({"problem": sentence}, status_code=_PROBLEM)


def _pictures(header: dict[str, Any], frames: NDArray[Any], first: int) -> Any:
    """Frames ``(T, H, W, 3)`` uint8, each by its number in the episode."""
    from starlette.responses import Response

    named = {str(first + place): frame for place, frame in enumerate(frames)}
    return Response(encode_pictures({"first": first, **header}, named), media_type=_BYTES)


def _numbers(shown: Imagined) -> dict[str, Any]:
    """What the model says of each moment, as JSON values; numbers that are not finite are ``None``."""

    def plain(values: NDArray[Any]) -> list[float | None]:
        return [round(value, 5) if abs(value) < float("inf") else None for value in map(float, values)]

    numbers: dict[str, Any] = {"psnr": plain(shown.psnr), "vectors": [plain(column) for column in shown.vectors.T]}
    if shown.rewards is not None and shown.continuations is not None:
        numbers.update(rewards=plain(shown.rewards), continuations=plain(shown.continuations))
    return numbers
