"""Uploads: a form is taken in as it arrives, then published; events tell how far it is."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.sse import EventSourceResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Json, StringConstraints, ValidationError

from backend.api.answers import answers
from backend.api.bodies import allow_body
from backend.api.deps import CurrentArtist, DatabaseDep, JobsDep, LimitsDep, ProbeDep, SettingsDep, StorageDep
from backend.api.limits import ARTIST_STREAMS, ARTIST_UPLOADS
from backend.api.multipart import MalformedForm, read_form
from backend.api.schemas import ProgressOut, UploadOut
from backend.models import UploadStatus
from backend.services import uploads
from backend.services.policy import Publishing
from backend.services.tracks import TrackDraft
from backend.services.uploads import Progress, TooManyCopies
from backend.storage.audio import NotAudio
from backend.storage.base import StorageFull, TooLarge
from backend.storage.probe import ProbeBusy
from backend.utilities.database import UPLOADS, db_session
from steadypool import Database
from steadypool.fastapi import route_deadline

router = APIRouter(prefix="/tracks", tags=["uploads"])

# What the form may add to the size of the file: its text fields and its own structure.
FORM_OVERHEAD = 2 * 1024 * 1024


def _storable(text: str) -> str:
    if "\0" in text:  # Postgres keeps no NUL in a text
        raise ValueError("a NUL character cannot be kept")
    return text


Text = Annotated[str, StringConstraints(strip_whitespace=True), AfterValidator(_storable)]
Tag = Annotated[Text, Field(min_length=1, max_length=50)]


class UploadForm(BaseModel):
    """The text fields of an upload."""

    model_config = ConfigDict(extra="ignore")

    title: Annotated[Text, Field(min_length=1, max_length=256)]
    album: Annotated[Text, Field(max_length=256)] | None = None
    description: Annotated[Text, Field(max_length=10_000)] | None = None
    tags: Json[Annotated[list[Tag], Field(max_length=20)]] = []
    publishing: Json[Publishing] = Publishing()


# A body takes as long as the client's line needs, and events as long as the work.
NO_DEADLINE = [Depends(route_deadline(None))]


@router.post(
    "/", status_code=202, dependencies=[*NO_DEADLINE, ARTIST_UPLOADS], responses=answers(401, 415, 507)
)
async def upload_track(
    request: Request,
    artist: CurrentArtist,
    settings: SettingsDep,
    storage: StorageDep,
    probe: ProbeDep,
    jobs: JobsDep,
    limits: LimitsDep,
) -> UploadOut:
    try:
        _refuse_early(request, settings.storage.max_upload_bytes)
        allow_body(request, settings.storage.max_upload_bytes + FORM_OVERHEAD)
        async with storage.receive() as incoming:
            try:
                form = _validated(await read_form(request, "file", incoming.write))
            finally:
                limits.upload_bytes.charge(artist.did, incoming.size)
            file_id = await incoming.finish()
            audio = await probe.inspect(incoming.path, artist.did)
            draft = TrackDraft(
                title=form.title,
                description=form.description,
                album=form.album,
                tags=tuple(dict.fromkeys(form.tags)),
                publishing=form.publishing,
                file_id=file_id,
                file_type=audio.file_type,
                duration=audio.duration,
            )
            async with db_session(UPLOADS) as session:
                upload_id = await uploads.accept(
                    session, storage, incoming, artist.did, draft, max_copies=limits.copies
                )
                await session.commit()
    except MalformedForm as error:
        raise HTTPException(400, str(error)) from error
    except TooLarge as error:
        raise HTTPException(413, str(error), headers={"Connection": "close"}) from error
    except TooManyCopies as error:
        raise HTTPException(409, str(error)) from error
    except NotAudio as error:
        raise HTTPException(415, str(error)) from error
    except ProbeBusy as error:
        raise HTTPException(503, str(error), headers={"Retry-After": "5"}) from error
    except StorageFull as error:
        raise HTTPException(507, str(error)) from error
    jobs.start(upload_id)
    return UploadOut(upload_id=upload_id, status=UploadStatus.PROCESSING)


def _refuse_early(request: Request, limit: int) -> None:
    """Before a byte is read, if the length alone says that it is too much."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limit + FORM_OVERHEAD:
        raise TooLarge(limit)


def _validated(fields: dict[str, str]) -> UploadForm:
    try:
        return UploadForm.model_validate(fields)
    except ValidationError as error:
        problems: list[Any] = error.errors(include_url=False, include_input=False, include_context=False)
        text = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems)
        raise HTTPException(422, text) from error


async def _own_upload(upload_id: uuid.UUID, artist: CurrentArtist, database: DatabaseDep) -> Progress:
    return await _read(database, upload_id, artist.did)


async def _read(database: Database, upload_id: uuid.UUID, did: str) -> Progress:
    upload = await uploads.get(database, upload_id, did)
    if upload is None:
        raise HTTPException(404, "upload not found")
    return upload


@router.get(
    "/uploads/{upload_id}/progress",
    response_class=EventSourceResponse,
    dependencies=[*NO_DEADLINE, ARTIST_STREAMS],
    responses=answers(401, 404),
)
async def upload_progress(
    upload: Annotated[Progress, Depends(_own_upload)], database: DatabaseDep, jobs: JobsDep
) -> AsyncIterator[ProgressOut]:
    if upload.status == UploadStatus.PROCESSING:
        yield ProgressOut(status=upload.status)
        # Whoever watches also finishes it, should the process that accepted it be gone.
        await jobs.finish(upload.upload_id)
        upload = await _read(database, upload.upload_id, upload.did)
    yield ProgressOut(status=upload.status, track_id=upload.track_id, error=upload.error)
