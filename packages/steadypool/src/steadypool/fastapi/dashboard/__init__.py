"""The live page: what the pool does now, what it did, and why something was slow.

Off until `DATABASE_DASHBOARD` says otherwise. It asks the database nothing, so it works while the pool is exhausted or
the database is away. It loads nothing from elsewhere.

Example:
    database = Database(DatabaseSettings(dashboard="loopback"))
    app = FastAPI(lifespan=lifespan(database))
    install(app, database)
    dashboard(app, database, allow=is_admin)        # http://127.0.0.1:8000/pool
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import lru_cache
from importlib.resources import files
from typing import Any, Protocol, TypeAlias

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse

from steadypool.fastapi.dashboard.access import Allow, may_see
from steadypool.fastapi.dashboard.facts import now_facts, past_facts, series
from steadypool.monitor.monitor import Monitor
from steadypool.settings.database import Dashboard

__all__ = ["DashboardPage", "dashboard"]

STREAM_SECONDS = 20.0
"""How long one stream of events lasts; the browser opens the next. A server that stops never waits longer for it."""
MOST_STREAMS = 32
LONGEST_PAST = 3_600.0
"""Seconds that one look into the past may cover."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
ASSETS = {
    "page.js": "text/javascript",
    "page.css": "text/css",
    "plots.js": "text/javascript",
    "uplot.js": "text/javascript",
    "uplot.css": "text/css",
}
"""What the page loads. The last two are packed at set-up (scripts/pack_page.sh); without them it has no plots."""


class Dashboarded(Protocol):
    """The part of `steadypool.Database` that the page looks at."""

    @property
    def settings(self) -> Any:
        """Its `dashboard` says who may see the page."""
        ...

    @property
    def watch(self) -> Monitor:
        """What recorded."""
        ...


DashboardOf: TypeAlias = Dashboarded | Callable[[], Dashboarded]

Handler = Callable[[Request, Dashboarded], Awaitable[Response]]


def dashboard(
    app: Starlette, database: DashboardOf, *, path: str = "/pool", allow: Allow | None = None
) -> DashboardPage:
    """Add the page to an application.

    `DATABASE_DASHBOARD` says who sees it: nobody (`off`), who comes from this machine or is signed in (`loopback`), or
    only who is signed in (`signed_in`: behind a proxy on the same machine everybody seems to come from there).
    Everybody else gets a 404, as if there were no page.

    Args:
        app: a FastAPI or Starlette application.
        database: a `Database`, or a function that returns one; the function is called for each request.
        path: where the page is.
        allow: gets a request and returns (or awaits) whether somebody is signed in who may see it. What it asks the
            database for may be slow exactly when the page is needed.

    Example:
        >>> dashboard(app, database, allow=lambda request: request.session.get("role") == "operator")
    """
    page = DashboardPage(database, path.rstrip("/"), allow)
    for suffix, handler in page.routes():
        app.add_route(f"{page.path}{suffix}", page.guarded(handler), methods=["GET"], include_in_schema=False)
    return page


class DashboardPage:
    """The page of one application; made by `dashboard`."""

    def __init__(self, database: DashboardOf, path: str, allow: Allow | None) -> None:
        self.path = path
        self._database = database
        self._allow = allow
        self._streams: set[asyncio.Task[Any]] = set()
        self._ended = asyncio.Event()

    def routes(self) -> list[tuple[str, Handler]]:
        """What is where below the path."""
        return [
            ("", self._page),
            ("/", self._to_page),
            ("/assets/{name}", self._asset),
            ("/events", self._events),
            ("/now.json", self._now),
            ("/series.json", self._series),
            ("/moment.json", self._moment),
            ("/export.json", self._export),
        ]

    async def visible_to(self, request: Request) -> bool:
        """Whether who sent this request may see the page: for those who link to it."""
        database = self._current()
        return await may_see(request, Dashboard(database.settings.dashboard), self._allow)

    def _current(self) -> Dashboarded:
        return self._database() if callable(self._database) else self._database

    def guarded(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """The handler for those who may see the page; nothing is there for everybody else."""

        async def handle(request: Request) -> Response:
            if not await self.visible_to(request):
                return PlainTextResponse("Not Found", status_code=404)
            database = self._current()
            response = await handler(request, database)
            response.headers.update(HEADERS)
            return response

        return handle

    def end_streams(self) -> None:
        """The server stops: streams of events end now, so that nobody waits for them."""
        self._ended.set()

    async def _page(self, _request: Request, _database: Dashboarded) -> Response:
        return Response(asset("page.html").replace(b"{{path}}", self.path.encode()), media_type="text/html")

    async def _to_page(self, _request: Request, _database: Dashboarded) -> Response:
        return RedirectResponse(self.path, status_code=308)

    async def _asset(self, request: Request, _database: Dashboarded) -> Response:
        name = request.path_params["name"]
        if name not in ASSETS or not (content := asset(name)):
            return PlainTextResponse("Not Found", status_code=404)
        return Response(content, media_type=ASSETS[name])

    async def _now(self, _request: Request, database: Dashboarded) -> Response:
        return JSONResponse(now_facts(database.watch))

    async def _series(self, request: Request, database: Dashboarded) -> Response:
        recorder = database.watch.recorder
        span = 60 if request.query_params.get("span") == "60" else 1
        since = _number(request, "since", recorder.now - 900)
        seconds, minutes = recorder.seconds.copy(), recorder.minutes.copy()
        return JSONResponse(await asyncio.to_thread(series, seconds, minutes, span, since))

    async def _moment(self, request: Request, database: Dashboarded) -> Response:
        recorder = database.watch.recorder
        since = _number(request, "since", recorder.now - 10)
        until = min(_number(request, "until", since + 10), since + LONGEST_PAST)
        return JSONResponse(past_facts(recorder, since, until))

    async def _export(self, _request: Request, database: Dashboarded) -> Response:
        recorder = database.watch.recorder
        frozen = recorder.frozen()
        body = await asyncio.to_thread(lambda: json.dumps(frozen().as_json(), separators=(",", ":")))
        name = f"steadypool-{int(recorder.now)}.json"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(body, media_type="application/json", headers=headers)

    async def _events(self, _request: Request, database: Dashboarded) -> Response:
        if len(self._streams) >= MOST_STREAMS:
            return PlainTextResponse("so many pages are open already", status_code=503)
        return StreamingResponse(self._stream(database.watch), media_type="text/event-stream")

    async def _stream(self, watch: Monitor) -> AsyncGenerator[bytes]:
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            until = watch.recorder.now + STREAM_SECONDS
            yield b"retry: 500\n\n"
            while not self._ended.is_set() and (left := until - watch.recorder.now) > 0:
                yield b"data: " + json.dumps(now_facts(watch), separators=(",", ":")).encode() + b"\n\n"
                if not await watch.next_look(min(left, 5.0)) and not watch.running:
                    break
        finally:
            self._streams.discard(task)


def _number(request: Request, name: str, default: float) -> float:
    try:
        number = float(request.query_params.get(name, default))
    except ValueError:
        return default
    return number if math.isfinite(number) else default


@lru_cache(maxsize=16)
def asset(name: str) -> bytes:
    """A file of the page; empty where it was not packed."""
    found = files("steadypool.fastapi.dashboard") / "static" / name
    return found.read_bytes() if found.is_file() else b""
