"""The queue, with the rules of HTTP against lost updates (ETag, If-Match, If-None-Match), and its changes as events."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ValidationError, field_validator
from starlette.responses import JSONResponse

from backend.api.answers import answers
from backend.api.bodies import allow_body
from backend.api.deps import (
    CurrentArtist,
    DatabaseDep,
    LiveQueuesDep,
    SettingsDep,
    authenticate,
    require_credential,
)
from backend.api.headers import own_url
from backend.api.limits import ARTIST_STREAMS
from backend.api.ranges import matches
from backend.api.schemas import QueueOut, track_out
from backend.services import tracks
from backend.services.live_queues import LiveQueues
from backend.services.queue_cache import Queue
from backend.utilities.database import db_session
from steadypool import Database
from steadypool._clock import Backoff
from steadypool._sqlstate import sqlstate_in
from steadypool.errors import DeadlineExceeded, SteadypoolError
from steadypool.fastapi import route_deadline

router = APIRouter(prefix="/queue", tags=["queue"])

log = logging.getLogger(__name__)

_REVISION = re.compile(r'"(0|[1-9][0-9]{0,17})"')
_VALUE = re.compile(rb'"(?:[^"\\]|\\.)*+"?|([\[{,])', re.DOTALL)
"""What begins another value in JSON, as its group; strings are skipped."""
VALUES_PER_TRACK, VALUES_BESIDE = 4, 1_000
"""JSON values that a queue may hold, for each track that it may name and beside them. A value of two bytes takes a
hundred times as long to read as two bytes of a string do, and it is read before the caller has signed in."""


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


@router.get(
    "/",
    response_model=QueueOut,
    responses=answers(401) | {304: {"description": "The client has it (If-None-Match)"}},
)
async def get_queue(
    request: Request, database: DatabaseDep, artist: CurrentArtist, live_queues: LiveQueuesDep
) -> Response:
    found = await live_queues.get(artist.did)
    headers = _headers(found.revision)
    if matches(request.headers.get("if-none-match"), _etag(found.revision)):
        return Response(status_code=304, headers=headers)
    return JSONResponse(await _content(request, database, artist.did, found), headers=headers)


def _has_more_values(text: bytes, most: int) -> bool:
    """Whether JSON holds more values than that; read no further than needed to tell."""
    found = (match for match in _VALUE.finditer(text) if match[1])
    return next(islice(found, most, None), None) is not None


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
    allow_body(request, settings.queue.max_state_bytes)
    body = await request.body()
    most_values = VALUES_BESIDE + VALUES_PER_TRACK * settings.queue.max_tracks
    if _has_more_values(body, most_values):
        raise HTTPException(422, f"state: a queue has at most {most_values:,} values")
    try:
        state = QueueUpdate.model_validate_json(body).state
    except ValidationError as error:
        problem: Any = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise HTTPException(422, f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
    if len(state.get("track_ids", [])) > settings.queue.max_tracks:
        raise HTTPException(
            422, f"state.track_ids: a queue names {settings.queue.max_tracks:,} tracks at most"
        )
    return expected, state


# The order of the parameters is the order of the work: the body first.
@router.put("/", response_model=QueueOut, responses=answers(401, 409, 428))
async def put_queue(
    request: Request,
    change: Annotated[tuple[int, dict[str, Any]], Depends(_change)],
    artist: CurrentArtist,
    database: DatabaseDep,
    live_queues: LiveQueuesDep,
) -> Response:
    expected, state = change
    did = artist.did
    new = Queue(state, expected + 1)
    # Before the change: once that is made, nothing may fail any more.
    content = await _content(request, database, did, new)
    async with db_session() as session:
        revision = await live_queues.put(session, did, state, expected)
        if revision is not None:
            await live_queues.commit(session, did, new)
            return JSONResponse(content, headers=_headers(revision))
    current = await live_queues.get_current(did)
    detail = f"the queue is at revision {current.revision}, not {expected}; this is how it looks now"
    content = {"detail": detail} | await _content(request, database, did, current)
    return JSONResponse(content, 409, headers=_headers(current.revision))


def _etag(revision: int) -> str:
    return f'"{revision}"'


def _headers(revision: int) -> dict[str, str]:
    return {"ETag": _etag(revision), "Cache-Control": "private, no-cache", "Vary": "Authorization, Cookie"}


async def _content(request: Request, database: Database, did: str, found: Queue) -> dict[str, Any]:
    views = await tracks.list_by_files(database, found.state.get("track_ids", []), did)
    shown = [track_out(view, request, did) for view in views]
    return QueueOut(state=found.state, revision=found.revision, tracks=shown).model_dump(mode="json")


# -- events --------------------------------------------------------------------------------------------------


@router.get(
    "/events",
    response_class=EventSourceResponse,
    dependencies=[Depends(route_deadline(None)), ARTIST_STREAMS],
    responses=answers(401),
)
async def queue_events(
    request: Request, artist: CurrentArtist, database: DatabaseDep, live_queues: LiveQueuesDep
) -> AsyncIterator[ServerSentEvent]:
    """The queue now and after each change, several changes in quick succession as one. The id is the revision.

    Who comes back with `Last-Event-ID` gets the queue at once if it is another one by now. Nothing is held from the
    pool while nothing happens.

    `stale` says that changes made elsewhere are not heard any more: the database may sleep. Any request to this
    instance ends that, and then the queue is told in any case.
    """
    known = request.headers.get("last-event-id", "").strip()
    backoff = Backoff(first=0.1, ceiling=10.0)
    yield ServerSentEvent(comment="the queue follows", retry=1000)
    with live_queues.watch(artist.did) as watch:
        while True:
            pause: float | None = None
            try:
                if not live_queues.is_dormant:
                    event = await _event(request, database, live_queues, artist.did, known)
                    if event is not None:
                        known = event.id or ""
                        yield event
            except (HTTPException, DeadlineExceeded):
                return  # signed out meanwhile, or the time that the client gave is over
            except Exception as error:
                if not _is_the_databases(error):
                    raise
                log.info("the queue could not be read for those who watch it, trying again: %s", error)
                pause = backoff.next_pause()
            else:
                backoff.reset()
            if (reason := live_queues.stale_because) is not None:
                known = ""
                yield ServerSentEvent(data={"reason": reason}, event="stale")
            if not await watch.changed(pause):
                return


def _is_the_databases(error: Exception) -> bool:
    """Whether it is away, slow or refuses, in whichever driver's words: whoever watches waits for it."""
    return isinstance(error, SteadypoolError) or sqlstate_in(error) is not None


async def _event(
    request: Request, database: Database, live_queues: LiveQueues, did: str, known: str
) -> ServerSentEvent | None:
    """The queue, if it is another one than is known to the client."""
    async with live_queues.readers:
        await authenticate(database, require_credential(request))
        found = await live_queues.get(did)
        if str(found.revision) == known:
            return None

    async def write() -> str:
        async with live_queues.readers:
            return json.dumps(await _content(request, database, did, found))

    text = await live_queues.writing((did, own_url(request), found.revision), write)
    return ServerSentEvent(raw_data=text, event="queue", id=str(found.revision))
