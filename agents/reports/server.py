"""The server of ``wm-gym report --serve``: a page that renews itself while the run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from wm_gym.agents.reports.live import LiveReport
from wm_gym.agents.reports.page import TEMPLATES
from wm_gym.agents.web.page_server import PageServer

_UNCHANGED = 204


class ReportServer(PageServer[LiveReport]):
    """The server of one report; nothing that a run's files hold stops it."""

    assets = Path(__file__).parent / "assets"
    image_sources = "'self' data:"
    _said: str | None = None

    def routes(self, below: str) -> Sequence[BaseRoute]:
        """The report, where it is another one than the page knows, and how it looks."""
        return (Route(f"{below}/report", self._answer), Route(f"{below}/report.css", self._look))

    async def _answer(self, request: Request) -> Response:
        page = await self.compute(self._shown.current)
        if page.problem is not None and page.problem != self._said:
            self._say(page.problem)
        self._said = page.problem
        if request.query_params.get("known") == page.stamp:
            return Response(status_code=_UNCHANGED)
        return JSONResponse(page._asdict())

    async def _look(self, request: Request) -> Response:
        return FileResponse(TEMPLATES / "report.css")
