"""Uploads: from bytes that arrived to a track.

`accept` makes a promise that survives a crash: the file is kept and the row says everything the track needs.
`publish` keeps it, and may be called any number of times, by any process.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.models import Artist, Track, Upload, UploadStatus
from backend.services import files, tracks
from backend.services.tracks import TrackDraft
from backend.storage.base import Incoming, Storage
from steadypool import Database


class TooManyCopies(Exception):
    """The artist has made as many tracks of this file as one may."""


async def accept(
    session: AsyncSession,
    storage: Storage,
    incoming: Incoming,
    did: str,
    draft: TrackDraft,
    *,
    max_copies: int | None = None,
) -> uuid.UUID:
    """Keep a finished file and note what is to become of it.

    Args:
        session: in whose transaction it is noted.
        storage: where the file is kept.
        incoming: the file.
        did: the artist.
        draft: the track to be.
        max_copies: tracks that the artist may make of one file; None for any number.

    Raises:
        TooManyCopies: there are so many already, or soon will be.
    """
    await files.lock(session, draft.file_id)
    if max_copies is not None and await _copies(session, did, draft.file_id) >= max_copies:
        raise TooManyCopies(
            f"there are {max_copies} tracks of yours with this file already; delete one of them first"
        )
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


async def _copies(session: AsyncSession, did: str, file_id: str) -> int:
    """How many tracks the artist has of this file, those on their way included."""
    tracks_of_it = select(func.count()).where(Track.did == did, Track.file_id == file_id)
    on_their_way = select(func.count()).where(
        Upload.did == did, Upload.file_id == file_id, Upload.status == UploadStatus.PROCESSING
    )
    total = select(tracks_of_it.scalar_subquery() + on_their_way.scalar_subquery())
    return (await session.scalars(total)).one()


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
