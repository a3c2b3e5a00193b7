"""The server of ``wm-gym view``: the page, the list of the episodes, their pictures, and what a model makes of them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from wm_gym.agents.view.episodes import PIECE
from wm_gym.agents.view.imagination import MAX_DREAM_STEPS, Imagination, Imagined
from wm_gym.agents.view.loading import ViewSetup
from wm_gym.agents.web.page_server import PageServer
from wm_gym.agents.web.pictures import encode_picture, encode_pictures
from wm_gym.errors import ConfigError, WMGymError

_BYTES = "application/octet-stream"
_PROBLEM = 422  # what was asked for is understood, and cannot be had: a damaged episode, for example


class ViewServer(PageServer[ViewSetup]):
    """The server of one ``wm-gym view``.

    What cannot be had is answered with a sentence, and said once in the log; nothing stops.
    """

    assets = Path(__file__).parent / "assets"

    def __init__(
        self, setup: ViewSetup, listening: socket.socket, say: Callable[[str], None], host: str = "127.0.0.1"
    ) -> None:
        super().__init__(setup, listening, say, host)
        self._said: set[str] = set()

    def routes(self, below: str) -> Sequence[BaseRoute]:
        """The dataset, and of each episode its strip, steps, frames, reconstructions and dreams."""
        episode = f"{below}/episodes/{{position:int}}"
        dream = f"{episode}/dreams/{{start:int}}/{{steps:int}}/{{seed:int}}"
        return (
            Route(f"{below}/dataset.json", self._answering(self._dataset)),
            Route(f"{episode}/strip", self._answering(self._strip)),
            Route(f"{episode}/steps", self._answering(self._steps)),
            Route(f"{episode}/frames/{{number:int}}", self._answering(self._frames)),
            Route(f"{episode}/reconstructions/{{number:int}}", self._answering(self._reconstructions, self.compute)),
            Route(dream, self._answering(self._dream, self.compute)),
        )

    def _answering(
        self, make: Callable[..., Response], run: Callable[..., Awaitable[Response]] = asyncio.to_thread
    ) -> Callable[[Request], Awaitable[Response]]:
        """The end of a route: ``run`` calls ``make`` with the numbers of the path, off the thread of the network."""

        async def answer(request: Request) -> Response:
            try:
                return await run(partial(make, **request.path_params))
            except WMGymError as error:
                sentence = str(error)
                if sentence not in self._said:
                    self._said.add(sentence)
                    self._say(sentence)
                return JSONResponse({"problem": sentence}, status_code=_PROBLEM)

        return answer

    def _dataset(self) -> Response:
        setup = self._shown
        return JSONResponse(
            {
                **setup.shelf.listing(),
                "model": {"name": setup.model_name, "is_there": setup.imagination is not None},
                "most_dream_steps": MAX_DREAM_STEPS,
            }
        )

    def _strip(self, position: int) -> Response:
        content, media_type = encode_picture(self._shown.shelf.strip(position))
        return Response(content, media_type=media_type)

    def _steps(self, position: int) -> Response:
        return JSONResponse(self._shown.shelf.steps(position))

    def _frames(self, position: int, number: int) -> Response:
        return _pictures({}, self._shown.shelf.piece(position, number).image, number * PIECE)

    def _reconstructions(self, position: int, number: int) -> Response:
        shown = self._model.reconstruct(position, number)
        return _pictures(_numbers(shown), shown.frames, number * PIECE)

    def _dream(self, position: int, start: int, steps: int, seed: int) -> Response:
        shown = self._model.dream(position, start, steps, seed)
        return _pictures(_numbers(shown), shown.frames, start + 1)

    @property
    def _model(self) -> Imagination:
        if self._shown.imagination is None:
            raise ConfigError(f"there is no world model here: {self._shown.model_name}.")
        return self._shown.imagination


def _pictures(header: dict[str, Any], frames: NDArray[Any], first: int) -> Response:
    """Frames ``(T, H, W, 3)`` uint8, each by its number in the episode."""
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
