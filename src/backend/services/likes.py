"""Likes: each artist likes a track once or not at all."""

from __future__ import annotations

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from backend.models import Like


async def like(session: AsyncSession, track_id: int, did: str) -> bool:
    """Like a track; liking it again changes nothing. False where the track is gone; then roll back."""
    try:
        await session.execute(insert(Like).values(track_id=track_id, did=did).on_conflict_do_nothing())
    except IntegrityError:  # the foreign key: removed since the caller saw it
        return False
    return True


async def unlike(session: AsyncSession, track_id: int, did: str) -> None:
    """Take a like back; none of it changes nothing."""
    await session.execute(delete(Like).where(Like.track_id == track_id, Like.did == did))
