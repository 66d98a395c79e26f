"""Tracks: finding, making and removing them."""

from __future__ import annotations

import re
import secrets
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict
from sqlalchemy import ColumnElement, Select, Text, any_, delete, func, literal, or_, select
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import joinedload

from backend.models import Album, Artist, Like, Track
from backend.services import atproto
from backend.services.policy import Publishing


class TrackDraft(BaseModel):
    """Everything a track is made of, beside its artist."""

    model_config = ConfigDict(frozen=True)

    title: str
    file_id: str
    file_type: str
    duration: float | None = None
    description: str | None = None
    album: str | None = None
    tags: tuple[str, ...] = ()
    publishing: Publishing = Publishing()


@dataclass(frozen=True, slots=True)
class TrackView:
    """A track with its artist and album loaded, and what is counted about it."""

    track: Track
    like_count: int


def _select_views() -> Select[Track, int]:
    likes = select(func.count()).where(Like.track_id == Track.id).correlate(Track).scalar_subquery()
    return select(Track, likes).options(joinedload(Track.artist), joinedload(Track.album))


def _visible_to(viewer: str | None) -> ColumnElement[bool]:
    public = Track.visibility != "private"
    return public if viewer is None else or_(public, Track.did == viewer)


async def _views(session: AsyncSession, query: Select[Track, int]) -> list[TrackView]:
    return [TrackView(track, likes) for track, likes in await session.execute(query)]


async def list_public(session: AsyncSession, limit: int) -> list[TrackView]:
    """The newest public tracks."""
    query = _select_views().where(Track.visibility == "public").order_by(Track.id.desc()).limit(limit)
    return await _views(session, query)


async def list_by_artist(session: AsyncSession, did: str, limit: int) -> list[TrackView]:
    """An artist's own newest tracks, whatever their visibility."""
    query = _select_views().where(Track.did == did).order_by(Track.id.desc()).limit(limit)
    return await _views(session, query)


async def list_liked(session: AsyncSession, did: str, limit: int) -> list[TrackView]:
    """What an artist likes and may still see, the newest like first."""
    query = (
        _select_views()
        .join(Like, Like.track_id == Track.id)
        .where(Like.did == did, _visible_to(did))
        .order_by(Like.created_at.desc(), Track.id.desc())
        .limit(limit)
    )
    return await _views(session, query)


async def list_by_files(
    session: AsyncSession, file_ids: Sequence[str], viewer: str | None
) -> list[TrackView]:
    """One track for each file id that has one, in the order given, repeated where it is repeated."""
    if not file_ids:
        return []
    query = (
        _select_views()
        .where(Track.file_id == any_(literal(sorted(set(file_ids)), ARRAY(Text))), _visible_to(viewer))
        .order_by(Track.id.desc())
    )
    # the oldest track of a file stands for it: it comes last, and so wins
    by_file = {view.track.file_id: view for view in await _views(session, query)}
    return [by_file[file_id] for file_id in file_ids if file_id in by_file]


async def get(session: AsyncSession, track_id: int, viewer: str | None) -> TrackView | None:
    """One track, if this viewer may see it."""
    return await _first(session, Track.id == track_id, viewer)


async def get_by_uri(session: AsyncSession, uri: str, viewer: str | None) -> TrackView | None:
    """One track by its AT-URI, if this viewer may see it."""
    return await _first(session, Track.atproto_record_uri == uri, viewer)


async def _first(
    session: AsyncSession, condition: ColumnElement[bool], viewer: str | None
) -> TrackView | None:
    views = await _views(session, _select_views().where(condition, _visible_to(viewer)))
    return views[0] if views else None


async def add(session: AsyncSession, artist: Artist, draft: TrackDraft) -> Track:
    """Publish a draft as a track of the artist; the track has its id when this returns."""
    created_at = datetime.now(UTC)
    record_key = atproto.tid(time.time_ns() // 1000, secrets.randbelow(1024))
    track = Track(
        did=artist.did,
        album_id=await _album_id(session, artist.did, draft.album) if draft.album else None,
        title=draft.title,
        description=draft.description,
        tags=list(draft.tags),
        file_id=draft.file_id,
        file_type=draft.file_type,
        duration=draft.duration,
        visibility=draft.publishing.access.visibility,
        publishing=draft.publishing.model_dump(),
        created_at=created_at,
        atproto_record_uri=atproto.track_uri(artist.did, record_key),
        atproto_record_cid=atproto.cid(_record(artist, draft, created_at)),
    )
    session.add(track)
    await session.flush()
    return track


def _record(artist: Artist, draft: TrackDraft, created_at: datetime) -> dict[str, atproto.Value]:
    """What a repository of the AT Protocol would hold of the track; optional fields are left out, not null."""
    optional = {
        "album": draft.album,
        "description": draft.description,
        "duration": None if draft.duration is None else round(draft.duration),
        "tags": draft.tags or None,
    }
    return {
        "$type": atproto.TRACK_COLLECTION,
        "title": draft.title,
        "artist": artist.display_name,
        "fileId": draft.file_id,
        "fileType": draft.file_type,
        "createdAt": created_at.isoformat(),
        **{name: value for name, value in optional.items() if value is not None},
    }


async def _album_id(session: AsyncSession, did: str, title: str) -> uuid.UUID:
    """The artist's album of this name; made when there is none. One statement, so two uploads cannot collide."""
    statement = insert(Album).values(id=uuid.uuid4(), did=did, title=title, slug=slugify(title))
    statement = statement.on_conflict_do_update(
        index_elements=[Album.did, Album.slug],
        set_={"slug": statement.excluded.slug},  # changes nothing, but lets RETURNING see the row
    )
    return (await session.scalars(statement.returning(Album.id))).one()


def slugify(title: str) -> str:
    """A title as it can stand in a URL.

    Example:
        >>> slugify("Sea & Sky, Vol. 2")
        'sea-sky-vol-2'
    """
    return re.sub(r"[\W_]+", "-", title.casefold()).strip("-") or "untitled"


async def remove(session: AsyncSession, track_id: int, did: str) -> str | None:
    """Remove a track of this artist; returns its file id, or None where the artist has no such track."""
    statement = delete(Track).where(Track.id == track_id, Track.did == did).returning(Track.file_id)
    return await session.scalar(statement)
