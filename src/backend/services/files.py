"""Which audio files are in use, and removing those that are not.

A file belongs to every track and unfinished upload that names it. Adding a name and removing the file both happen
under one lock for each file, so an upload cannot lose its bytes to a removal that looked a moment too early.
"""

from __future__ import annotations

from sqlalchemy import exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.models import Track, Upload, UploadStatus
from backend.storage.base import Storage


async def lock(session: AsyncSession, file_id: str) -> None:
    """Wait for, and hold until the end of the transaction, the right to add or remove this file."""
    # The first 60 bits of the hash: two files sharing a lock would only wait for each other.
    await session.execute(select(func.pg_advisory_xact_lock(int(file_id[:15], 16))))


async def remove_if_unused(session: AsyncSession, storage: Storage, file_id: str) -> bool:
    """Delete the file if nothing names it any more; says whether it did.

    The track's removal must be committed before: were the bytes deleted first, a failed commit would leave a
    track without audio. The other way round a crash leaves a file without a track, which harms nobody.
    """
    await lock(session, file_id)
    used = or_(
        exists().where(Track.file_id == file_id),
        exists().where(Upload.file_id == file_id, Upload.status == UploadStatus.PROCESSING),
    )
    if await session.scalar(select(used)):
        return False
    await storage.delete(file_id)
    return True
