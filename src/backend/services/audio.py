"""Which track a request for audio is about, whether it is allowed, and counting plays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from sqlalchemy import Text, bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.models import Track
from backend.services.policy import Publishing, PublishingPolicy, may_see
from steadypool import Database

Rule = Callable[[PublishingPolicy, str, str | None], bool]


class Refusal(Enum):
    """Why there is no audio."""

    UNKNOWN = auto()
    """No track that this viewer may see has such a file."""
    FORBIDDEN = auto()
    """The artist does not let this viewer."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A file as one track names it."""

    track_id: int
    title: str
    file_id: str
    file_type: str


_FILE_ID = bindparam("file_id")
_OWN = Track.did.is_not_distinct_from(bindparam("viewer", type_=Text))
# Of all copies of a file, whose number is up to others, the oldest for each decision, and of the viewer's own.
_OLDEST = select(func.min(Track.id)).where(Track.file_id == _FILE_ID).group_by(Track.publishing, _OWN)
_TRACKS = select(Track.did, Track.publishing, Track.id, Track.title, Track.file_id, Track.file_type)
_BY_FILE = _TRACKS.where(Track.id.in_(_OLDEST)).order_by(Track.id)
_ONE_BY_FILE = _TRACKS.where(Track.file_id == _FILE_ID, Track.id == bindparam("track_id"))


async def find(
    database: Database, file_id: str, viewer: str | None, allowed: Rule, track_id: int | None = None
) -> Recording | Refusal:
    """The track for which this viewer may have the file: the named one, or the oldest that allows it."""
    query, values = _BY_FILE, {"file_id": file_id, "viewer": viewer}
    if track_id is not None:
        query, values = _ONE_BY_FILE, {"file_id": file_id, "track_id": track_id}
    refusal = Refusal.UNKNOWN
    for did, publishing, *recording in await database.fetch(query, values, read_only=True):
        policy = Publishing.model_validate(publishing).access
        if allowed(policy, did, viewer):
            return Recording(*recording)
        if may_see(policy, did, viewer):
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
