"""The queue, with the rules of HTTP against lost updates: ETag, If-Match, If-None-Match."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from pydantic import BaseModel, ValidationError, field_validator
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import JSONResponse

from backend.api.deps import CurrentArtist, SessionDep, SettingsDep, require_credential
from backend.api.ranges import matches
from backend.api.schemas import QueueOut, track_out
from backend.services import queue, tracks

router = APIRouter(prefix="/queue", tags=["queue"])

_REVISION = re.compile(r'"(0|[1-9][0-9]{0,17})"')


class QueueUpdate(BaseModel):
    """The body of a PUT. `track_ids` has to be right; everything else in the state is the client's own."""

    state: dict[str, Any]

    @field_validator("state")
    @classmethod
    def _check(cls, state: dict[str, Any]) -> dict[str, Any]:
        track_ids = state.get("track_ids", [])
        if not isinstance(track_ids, list) or not all(isinstance(track_id, str) for track_id in track_ids):
            raise ValueError("track_ids must be a list of file ids")
        _check_storable(state)
        return state


def _check_storable(value: Any) -> None:
    """JSON can say things that Postgres' jsonb cannot keep."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair cannot be kept") from None
    if "\\u0000" in text.replace("\\\\", ""):
        raise ValueError("a NUL character cannot be kept")


@router.get("/", response_model=QueueOut)
async def get_queue(request: Request, session: SessionDep, artist: CurrentArtist) -> Response:
    state, revision = await queue.get(session, artist.did)
    if matches(request.headers.get("if-none-match"), _etag(revision)):
        return Response(status_code=304, headers=_headers(revision))
    return await _respond(request, session, artist.did, state, revision)


def _expected(request: Request) -> int:
    header = request.headers.get("if-match")
    if header is None:
        raise HTTPException(
            428, 'send If-Match with the revision that you are changing, such as If-Match: "3"'
        )
    match = _REVISION.fullmatch(header.strip())
    if match is None:
        raise HTTPException(400, 'If-Match must be a quoted revision, such as "3"')
    return int(match[1])


async def _change(request: Request, settings: SettingsDep) -> tuple[int, dict[str, Any]]:
    """The revision expected and the new state, read before a connection is taken."""
    require_credential(request)
    expected = _expected(request)
    limit = settings.queue.max_state_bytes
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise HTTPException(413, f"the queue is larger than the {limit:,} bytes that are kept")
    try:
        return expected, QueueUpdate.model_validate_json(bytes(body)).state
    except ValidationError as error:
        problem: Any = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise HTTPException(422, f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error


# The order of the parameters is the order of the work: the body first, then the session.
@router.put("/", response_model=QueueOut)
async def put_queue(
    request: Request,
    change: Annotated[tuple[int, dict[str, Any]], Depends(_change)],
    session: SessionDep,
    artist: CurrentArtist,
) -> Response:
    expected, state = change
    revision = await queue.put(session, artist.did, state, expected)
    if revision is None:
        state, revision = await queue.get(session, artist.did)
        return await _respond(request, session, artist.did, state, revision, conflict_with=expected)
    response = await _respond(request, session, artist.did, state, revision)
    await session.commit()
    return response


def _etag(revision: int) -> str:
    return f'"{revision}"'


def _headers(revision: int) -> dict[str, str]:
    return {"ETag": _etag(revision), "Cache-Control": "private, no-cache", "Vary": "Authorization, Cookie"}


async def _respond(
    request: Request,
    session: AsyncSession,
    did: str,
    state: dict[str, Any],
    revision: int,
    *,
    conflict_with: int | None = None,
) -> Response:
    named = state.get("track_ids", [])
    views = await tracks.list_by_files(session, named, did)
    out = QueueOut(state=state, revision=revision, tracks=[track_out(view, request, did) for view in views])
    content = out.model_dump(mode="json")
    if conflict_with is None:
        return JSONResponse(content, headers=_headers(revision))
    detail = f"the queue is at revision {revision}, not {conflict_with}; this is how it looks now"
    return JSONResponse({"detail": detail, **content}, 409, headers=_headers(revision))
