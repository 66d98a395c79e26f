"""Which track a request for audio is about, whether it is allowed, and counting plays."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.models import Track
from backend.services.policy import Publishing, PublishingPolicy, may_see

Rule = Callable[[PublishingPolicy, str, str | None], bool]


class Refusal(Enum):
    """Why there is no audio."""

    UNKNOWN = auto()
    """No track that this viewer may see has such a file."""
    FORBIDDEN = auto()
    """The artist does not let this viewer."""


async def find(
    session: AsyncSession, file_id: str, viewer: str | None, allowed: Rule, track_id: int | None = None
) -> Track | Refusal:
    """The track for which this viewer may have the file: the named one, or the oldest that allows it."""
    query = select(Track).where(Track.file_id == file_id).order_by(Track.id)
    if track_id is not None:
        query = query.where(Track.id == track_id)
    refusal = Refusal.UNKNOWN
    for track in await session.scalars(query):
        policy = Publishing.model_validate(track.publishing).access
        if allowed(policy, track.did, viewer):
            return track
        if may_see(policy, track.did, viewer):
            refusal = Refusal.FORBIDDEN
    return refusal


async def count_play(session: AsyncSession, track_id: int) -> None:
    """One more play. The database adds, so that plays at the same moment are all counted."""
    await session.execute(
        update(Track)
        .where(Track.id == track_id)
        .values(play_count=Track.play_count + 1)
        .execution_options(synchronize_session=False)
    )
