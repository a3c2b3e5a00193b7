"""The server of ``wm-gym report --serve``: a page that renews itself while the run goes on."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wm_gym.agents.reports.page import TEMPLATES
from wm_gym.agents.web.page_server import PageServer

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from wm_gym.agents.reports.live import LiveReport

ASSETS = Path(__file__).parent / "assets"
_UNCHANGED = 204


class ReportServer(PageServer):
    """The server of one report; nothing that a run's files hold stops it.

    Args:
        report: What it shows.
        listening: See :func:`~wm_gym.agents.web.listening.listen`.
        say: Takes a sentence for the log.
        host: What the socket was made with.
    """

    image_sources = "'self' data:"

    def __init__(
        self, report: LiveReport, listening: socket.socket, say: Callable[[str], None], host: str = "127.0.0.1"
    ) -> None:
        super().__init__(ASSETS, listening, say, host)
        self._report = report
        self._said: str | None = None

    def routes(self, below: str) -> Sequence[BaseRoute]:
        """The report, where it is another one than the page knows, and how it looks."""
        from starlette.routing import Route

        return (Route(f"{below}/report", self._answer), Route(f"{below}/report.css", self._look))

    async def _answer(self, request: Any) -> Any:
        from starlette.responses import JSONResponse, Response

        page = await self.compute(self._report.current)
        if page.problem is not None and page.problem != self._said:
            self._say(page.problem)
        self._said = page.problem
        if request.query_params.get("known") == page.stamp:
            return Response(status_code=_UNCHANGED)
        return JSONResponse(page._asdict())

    async def _look(self, request: Any) -> Any:
        from starlette.responses import FileResponse

        return FileResponse(TEMPLATES / "report.css")
