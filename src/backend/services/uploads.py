"""Uploads: from bytes that arrived to a track.

`accept` makes a promise that survives a crash: the file is kept and the row says everything the track needs.
`publish` keeps it, and may be called any number of times, by any process.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from sqlalchemy import bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.models import Artist, Upload, UploadStatus
from backend.services import files, tracks
from backend.services.tracks import TrackDraft
from backend.storage.base import Incoming, Storage
from steadypool import Database


async def accept(
    session: AsyncSession, storage: Storage, incoming: Incoming, did: str, draft: TrackDraft
) -> uuid.UUID:
    """Keep a finished file and note what is to become of it."""
    await files.lock(session, draft.file_id)
    await storage.keep(incoming, draft.file_id)
    upload = Upload(
        id=uuid.uuid4(),
        did=did,
        status=UploadStatus.PROCESSING,
        file_id=draft.file_id,
        draft=draft.model_dump(mode="json"),
    )
    session.add(upload)
    await session.flush()
    return upload.id


async def publish(session: AsyncSession, upload_id: uuid.UUID) -> None:
    """Turn an upload into its track; one that is finished already is left alone."""
    # The row lock makes a second publisher wait and then see that there is nothing left to do.
    query = select(Upload).where(Upload.id == upload_id, Upload.status == UploadStatus.PROCESSING)
    upload = await session.scalar(query.with_for_update())
    if upload is None:
        return
    artist = await session.get_one(Artist, upload.did)
    track = await tracks.add(session, artist, TrackDraft.model_validate(upload.draft))
    upload.track_id = track.id
    upload.status = UploadStatus.COMPLETED
    await session.flush()


async def fail(session: AsyncSession, upload_id: uuid.UUID, error: str) -> str | None:
    """Note that there will be no track, and why; returns the upload's file, or None if it was finished already."""
    return await session.scalar(
        update(Upload)
        .where(Upload.id == upload_id, Upload.status == UploadStatus.PROCESSING)
        .values(status=UploadStatus.FAILED, error=error)
        .returning(Upload.file_id)
        .execution_options(synchronize_session=False)
    )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an upload is."""

    upload_id: uuid.UUID
    did: str
    status: str
    track_id: int | None
    error: str | None


_BY_ID = select(Upload.id, Upload.did, Upload.status, Upload.track_id, Upload.error).where(
    Upload.id == bindparam("upload_id"), Upload.did == bindparam("artist")
)


async def get(database: Database, upload_id: uuid.UUID, did: str) -> Progress | None:
    """An artist's own upload."""
    row = await database.fetchrow(_BY_ID, {"upload_id": upload_id, "artist": did}, read_only=True)
    return None if row is None else Progress(*row)


async def list_unfinished(session: AsyncSession) -> list[uuid.UUID]:
    """Uploads that somebody still has to publish."""
    return list(await session.scalars(select(Upload.id).where(Upload.status == UploadStatus.PROCESSING)))
