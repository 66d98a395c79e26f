"""What routes ask for, as annotated dependencies."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, HTTPException, Path, Query
from starlette.requests import Request

from backend.config import Settings
from backend.services import artists
from backend.services.artists import Identity
from backend.services.limits import Limits
from backend.services.live_queues import LiveQueues
from backend.services.sign_in import SignInCodes
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
    """The bearer token if there is one, else the session cookie.

    The token was chosen for this request; a cookie comes along by itself, and any program on this host may have set it,
    since cookies know no port.

    Raises:
        HTTPException: 403 where a page of another origin would change something by the cookie.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and (token := token.strip()):
        return token
    cookie = request.cookies.get("session_id") or None
    if cookie is not None and request.method not in ("GET", "HEAD") and _is_of_another_origin(request):
        raise HTTPException(403, "a page of another origin may not use the session cookie (CORS_ORIGINS)")
    return cookie


def _is_of_another_origin(request: Request) -> bool:
    """Whether a browser says that a page of an origin sent this that is neither the service's own nor in CORS_ORIGINS.

    Forms need no preflight, so CORS does not hinder them. What is no browser sends neither header.
    """
    origin = request.headers.get("origin")
    if origin is not None and origin in _settings(request).server.cors_origins:
        return False
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    return origin is not None and origin.partition("://")[2] != request.headers.get("host")


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


def _limits(request: Request) -> Limits:
    limits: Limits = request.app.state.limits
    return limits


LimitsDep = Annotated[Limits, Depends(_limits)]


async def _current_artist(request: Request, database: DatabaseDep, limits: LimitsDep) -> Identity:
    artist = await authenticate(database, require_credential(request))
    limits.by_artist.take(artist.did)
    return artist


async def _viewer(request: Request, database: DatabaseDep, limits: LimitsDep) -> str | None:
    credential = _credential(request)
    artist = None if credential is None else await artists.authenticate(database, credential)
    if artist is None:
        return None
    limits.by_artist.take(artist.did)
    return artist.did


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


def _sign_in_codes(request: Request) -> SignInCodes:
    codes: SignInCodes = request.app.state.sign_in_codes
    return codes


SettingsDep = Annotated[Settings, Depends(_settings)]
StorageDep = Annotated[Storage, Depends(_storage)]
ProbeDep = Annotated[AudioProbe, Depends(_probe)]
JobsDep = Annotated[UploadJobs, Depends(_jobs)]
LiveQueuesDep = Annotated[LiveQueues, Depends(_live_queues)]
SignInCodesDep = Annotated[SignInCodes, Depends(_sign_in_codes)]
