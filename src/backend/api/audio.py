"""Audio, whole or in parts. The database is asked first and let go; then the file is sent."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Query, Request, Response
from starlette.responses import StreamingResponse
from starlette.types import Send

from backend.api.answers import AUDIO
from backend.api.deps import DatabaseDep, LimitsDep, StorageDep, Viewer
from backend.api.limits import LISTENER_STREAMS, listener_of
from backend.api.ranges import Slice, Unsatisfiable, matches, parse_range, range_applies
from backend.services import audio
from backend.services.audio import Recording, Refusal
from backend.services.policy import may_download, may_listen
from backend.storage.audio import MEDIA_TYPES
from backend.storage.base import FILE_ID, Storage
from backend.utilities.database import db_session

router = APIRouter(prefix="/audio", tags=["audio"])

# Safari asks for two bytes first, to see whether ranges work; that is nobody listening.
PROBE = 2

OnlyTrack = Annotated[int | None, Query(alias="track", ge=1, le=2**63 - 1)]


class BytesResponse(StreamingResponse):
    """What a generator yields; the generator is closed whichever way this ends."""

    def __init__(self, content: AsyncGenerator[bytes], **arguments: Any) -> None:
        self._content = content
        super().__init__(content, **arguments)

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._content):
            await super().stream_response(send)


@router.get("/{file_id}", response_class=Response, responses=AUDIO, dependencies=[LISTENER_STREAMS])
@router.head("/{file_id}", include_in_schema=False)
async def stream_audio(
    request: Request,
    file_id: str,
    viewer: Viewer,
    database: DatabaseDep,
    storage: StorageDep,
    limits: LimitsDep,
    track: OnlyTrack = None,
) -> Response:
    size = await _size(storage, file_id)
    part, headers = _select(request, file_id, size)
    plays = request.method == "GET" and part is not None and part.start == 0 and part.length > PROBE
    found = _allowed(await audio.find(database, file_id, viewer, may_listen, track), viewer)
    if plays and limits.plays.counts(listener_of(request, viewer), found.track_id):
        async with db_session() as session:
            await audio.count_play(session, found.track_id)
            await session.commit()
    return _answer(request, storage, found, size, part, headers)


@router.get("/{file_id}/download", response_class=Response, responses=AUDIO, dependencies=[LISTENER_STREAMS])
@router.head("/{file_id}/download", include_in_schema=False)
async def download_audio(
    request: Request,
    file_id: str,
    viewer: Viewer,
    database: DatabaseDep,
    storage: StorageDep,
    track: OnlyTrack = None,
) -> Response:
    size = await _size(storage, file_id)
    part, headers = _select(request, file_id, size)
    found = _allowed(await audio.find(database, file_id, viewer, may_download, track), viewer)
    name = f"{found.title}.{found.file_type}"
    headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
    return _answer(request, storage, found, size, part, headers)


async def _size(storage: Storage, file_id: str) -> int:
    size = await storage.size(file_id) if FILE_ID.fullmatch(file_id) else None
    if size is None:
        raise HTTPException(404, "audio not found")
    return size


def _allowed(found: Recording | Refusal, viewer: str | None) -> Recording:
    if found is Refusal.UNKNOWN:
        raise HTTPException(404, "audio not found")
    if found is Refusal.FORBIDDEN:
        if viewer is None:
            raise HTTPException(401, "sign in first", headers={"WWW-Authenticate": "Bearer"})
        raise HTTPException(403, "the artist does not permit this")
    return found


def _select(request: Request, file_id: str, size: int) -> tuple[Slice | None, dict[str, str]]:
    """The part to send (None for none, because the client has it or it is not there) and the headers about it."""
    etag = f'"{file_id}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=3600",
        "Vary": "Authorization, Cookie",
        "X-Content-Type-Options": "nosniff",
    }
    if matches(request.headers.get("if-none-match"), etag):
        return None, headers
    # Ranges are defined for GET alone (RFC 9110, section 14.2): HEAD tells about the whole.
    asked = request.method == "GET" and range_applies(request.headers.get("if-range"), etag)
    try:
        part = parse_range(request.headers.get("range") if asked else None, size)
    except Unsatisfiable:
        headers["Content-Range"] = f"bytes */{size}"
        return None, headers
    if part is None:
        part = Slice(0, size)
    else:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
    headers["Content-Length"] = str(part.length)
    return part, headers


def _answer(
    request: Request,
    storage: Storage,
    track: Recording,
    size: int,
    part: Slice | None,
    headers: dict[str, str],
) -> Response:
    if part is None:
        if "Content-Range" in headers:
            return _unsatisfiable(size, headers)
        return Response(status_code=304, headers=headers)
    status = 206 if "Content-Range" in headers else 200
    media_type = MEDIA_TYPES.get(track.file_type, "application/octet-stream")
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    content = storage.read(track.file_id, part.start, part.stop)
    return BytesResponse(content, status_code=status, headers=headers, media_type=media_type)


def _unsatisfiable(size: int, headers: dict[str, str]) -> Response:
    body = f'{{"detail":"the range lies outside of the {size} bytes there are"}}'
    return Response(body, 416, headers, "application/json")
