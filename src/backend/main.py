"""The composition root: puts the application together, and owns nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from backend.api import audio, auth, page, queue, tracks, uploads
from backend.api.answers import EVERYWHERE
from backend.api.bodies import BodyLimit
from backend.api.limits import AddressLimit, on_limit_exceeded
from backend.config import Settings, get_settings
from backend.services.limits import LimitExceeded, Limits
from backend.services.live_queues import LiveQueues
from backend.services.sign_in import SignInCodes
from backend.services.upload_jobs import UploadJobs
from backend.storage.local import LocalStorage
from backend.storage.probe import AudioProbe
from backend.utilities.database import build_database, get_database, use_database
from backend.utilities.observability import make_observable, observed
from steadypool.fastapi import install
from steadypool.fastapi.dashboard import DashboardPage, dashboard

ALLOWED_HEADERS = [
    "Authorization",
    "Content-Type",
    "If-Match",
    "If-None-Match",
    "If-Range",
    "Last-Event-ID",
    "Range",
]
MOST_BODY = 64 * 1024
"""Bytes of a body, for routes that say nothing else."""
EXPOSED_HEADERS = ["ETag", "Retry-After", "Accept-Ranges", "Content-Range", "Content-Disposition"]


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; nothing is opened before its lifespan begins.

    Args:
        settings: everything it needs to know; the environment where none are given.
    """
    settings = settings or get_settings()
    storage = LocalStorage(settings.storage.audio_dir, settings.storage.max_upload_bytes)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        await asyncio.to_thread(storage.remove_leftovers)
        database = build_database(settings)
        with use_database(database):
            live_queues = LiveQueues(database)
            async with observed(app, database), database, UploadJobs(database, storage) as jobs, live_queues:
                app.state.jobs = jobs
                app.state.live_queues = live_queues
                yield

    # /docs would load its script from elsewhere; /openapi.json is there.
    app = FastAPI(
        title="plyr",
        summary="music on atproto",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.settings = settings
    app.state.storage = storage
    app.state.probe = AudioProbe()
    app.state.limits = limits = Limits(settings.limits)
    app.state.sign_in_codes = SignInCodes()
    make_observable(app, settings)
    # CORS last: what is added later stands outside, and its headers belong on error answers as well.
    install(app, get_database)
    app.state.pool_page = dashboard(app, get_database)
    app.add_middleware(BodyLimit, most=MOST_BODY)
    app.add_middleware(AddressLimit, limits=limits)
    origins = settings.server.cors_origins
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins or ["*"],
        allow_credentials=bool(origins),
        allow_methods=["GET", "HEAD", "POST", "PUT", "DELETE"],
        allow_headers=ALLOWED_HEADERS,
        expose_headers=EXPOSED_HEADERS,
    )
    app.add_exception_handler(ClientDisconnect, _client_is_gone)
    app.add_exception_handler(LimitExceeded, on_limit_exceeded)
    app.add_exception_handler(RequestValidationError, _is_invalid)
    # Uploads before tracks: /tracks/uploads/… is not a track's id.
    for module in (auth, uploads, tracks, audio, queue, page):
        app.include_router(module.router, responses=EVERYWHERE)
    return app


def end_streams(app: FastAPI) -> None:
    """The server stops: what would go on for ever ends now, so that nobody has to wait for it."""
    live_queues: LiveQueues | None = getattr(app.state, "live_queues", None)
    if live_queues is not None:
        live_queues.end_watches()
    pool_page: DashboardPage = app.state.pool_page
    pool_page.end_streams()


async def _client_is_gone(request: Request, error: Exception) -> Response:
    """Nobody reads this answer; without a handler it would be logged as a fault of ours."""
    return Response(status_code=400)


async def _is_invalid(request: Request, error: Exception) -> Response:
    """What is wrong and where; not what was sent, which may be what no JSON can hold (NaN, half a surrogate pair)."""
    assert isinstance(error, RequestValidationError)
    problems = [{name: problem[name] for name in ("type", "loc", "msg")} for problem in error.errors()]
    return Response(json.dumps({"detail": problems}), 422, media_type="application/json")
