"""What routes ask for, as annotated dependencies."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, HTTPException, Path, Query
from starlette.requests import Request

from backend.config import Settings
from backend.services import artists
from backend.services.artists import Identity
from backend.services.live_queues import LiveQueues
from backend.services.upload_jobs import UploadJobs
from backend.storage.base import Storage
from backend.storage.probe import AudioProbe
from backend.utilities.database import get_database
from steadypool import Database

MAX_PAGE = 1000

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]
TrackId = Annotated[int, Path(ge=1, le=2**63 - 1)]


async def _database() -> Database:
    return get_database()


DatabaseDep = Annotated[Database, Depends(_database)]
"""For what is only read: single statements, for which nobody holds a connection. Writes are in `db_session()`."""


def _credential(request: Request) -> str | None:
    """The session cookie if there is one, else the bearer token."""
    if cookie := request.cookies.get("session_id"):
        return cookie
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _unauthorized(detail: str) -> HTTPException:
    return HTTPException(401, detail, headers={"WWW-Authenticate": "Bearer"})


def require_credential(request: Request) -> str:
    """What the request would sign in with, not looked at yet; 401 if there is nothing. Needs no database."""
    credential = _credential(request)
    if credential is None:
        raise _unauthorized("not signed in: send a session cookie or `Authorization: Bearer <token>`")
    return credential


async def authenticate(database: Database, credential: str) -> Identity:
    """Who signs in with this; 401 for nobody."""
    artist = await artists.authenticate(database, credential)
    if artist is None:
        raise _unauthorized("the token is not valid, or has expired")
    return artist


async def _current_artist(request: Request, database: DatabaseDep) -> Identity:
    return await authenticate(database, require_credential(request))


async def _viewer(request: Request, database: DatabaseDep) -> str | None:
    credential = _credential(request)
    artist = None if credential is None else await artists.authenticate(database, credential)
    return None if artist is None else artist.did


CurrentArtist = Annotated[Identity, Depends(_current_artist)]
"""Who is signed in; 401 for nobody."""

Viewer = Annotated[str | None, Depends(_viewer)]
"""The DID of who is signed in, or None: for what everybody may ask."""


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _storage(request: Request) -> Storage:
    storage: Storage = request.app.state.storage
    return storage


def _probe(request: Request) -> AudioProbe:
    probe: AudioProbe = request.app.state.probe
    return probe


def _jobs(request: Request) -> UploadJobs:
    jobs: UploadJobs = request.app.state.jobs
    return jobs


def _live_queues(request: Request) -> LiveQueues:
    live_queues: LiveQueues = request.app.state.live_queues
    return live_queues


SettingsDep = Annotated[Settings, Depends(_settings)]
StorageDep = Annotated[Storage, Depends(_storage)]
ProbeDep = Annotated[AudioProbe, Depends(_probe)]
JobsDep = Annotated[UploadJobs, Depends(_jobs)]
LiveQueuesDep = Annotated[LiveQueues, Depends(_live_queues)]
