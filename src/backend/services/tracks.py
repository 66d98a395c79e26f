"""Tracks: finding, making and removing them."""

from __future__ import annotations

import re
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict
from sqlalchemy import (
    ColumnElement,
    Executable,
    Integer,
    Text,
    any_,
    bindparam,
    case,
    delete,
    func,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncSession

from backend.models import Album, Artist, Like, Track
from backend.services import atproto
from backend.services.policy import Publishing
from steadypool import Database
from steadypool._rows import Row


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


class AlbumView(NamedTuple):
    """An album, as far as a track tells about it."""

    id: uuid.UUID
    title: str
    slug: str


@dataclass(frozen=True, slots=True)
class TrackView:
    """A track as it is shown, with its artist, its album and what is counted about it. In the order of `_COLUMNS`.

    In lists `description` is an excerpt.
    """

    id: int
    did: str
    artist: str
    artist_handle: str
    title: str
    description: str | None
    tags: list[str]
    file_id: str
    file_type: str
    duration: float | None
    visibility: str
    publishing: Publishing
    play_count: int
    atproto_record_uri: str
    atproto_record_cid: str
    created_at: datetime
    like_count: int
    album: AlbumView | None

    @classmethod
    def from_row(cls, row: Row) -> TrackView:
        """A row of `_COLUMNS`: the last three columns are the album's."""
        *track, album_id, album_title, album_slug = row
        track.append(None if album_id is None else AlbumView(album_id, album_title, album_slug))
        view = cls(*track)
        return replace(view, publishing=Publishing.model_validate(view.publishing))


_COLUMNS = (
    Track.id,
    Track.did,
    Artist.display_name,
    Artist.handle,
    Track.title,
    Track.description,
    Track.tags,
    Track.file_id,
    Track.file_type,
    Track.duration,
    Track.visibility,
    Track.publishing,
    Track.play_count,
    Track.atproto_record_uri,
    Track.atproto_record_cid,
    Track.created_at,
    select(func.count()).where(Like.track_id == Track.id).correlate(Track).scalar_subquery(),
    Album.id,
    Album.title,
    Album.slug,
)
MAX_EXCERPT = 280
"""Characters of a description in a list; of a longer one its beginning, with an ellipsis at the end."""
_BEGINNING = func.concat(func.left(Track.description, MAX_EXCERPT - 1), "…")
_EXCERPT = case((func.length(Track.description) > MAX_EXCERPT, _BEGINNING), else_=Track.description).label(
    "description"
)
_LIST_COLUMNS = tuple(_EXCERPT if column is Track.description else column for column in _COLUMNS)

MAX_LIST_BYTES = 2 * 1024 * 1024
"""What the tracks of one list may hold in texts of any length; the list ends before the first that would exceed it."""

# Made once: to build a statement takes longer than to ask it.
_VIEWER = bindparam("viewer", type_=Text)
_VISIBLE = or_(Track.visibility != "private", Track.did == _VIEWER)
_LIMIT = bindparam("limit", type_=Integer)

_FIXED_BYTES = 512
_TEXTS = (
    Track.title,
    _EXCERPT,
    func.array_to_string(Track.tags, ","),
    Artist.display_name,
    Artist.handle,
    Album.title,
    Album.slug,
)
_BYTES = _FIXED_BYTES + func.octet_length(func.concat(*_TEXTS))

# The type of a query differs between the series of SQLAlchemy.
Query = Any


def _joined(*columns: Any) -> Query:
    return select(*columns).join(Track.artist).outerjoin(Track.album)


def _listed(narrowed: Callable[[Query], Query], *order: ColumnElement[Any]) -> Executable:
    """The list that `narrowed` makes of all tracks, in this order, at most `limit` of them and `MAX_LIST_BYTES`."""
    so_far = func.sum(_BYTES).over(order_by=order, rows=(None, 0)).label("so_far")
    rows = narrowed(_joined(*_LIST_COLUMNS, so_far)).order_by(*order).limit(_LIMIT).subquery()
    *columns, so_far = rows.c
    return select(*columns).where(so_far <= MAX_LIST_BYTES).order_by(so_far)


_NEWEST = Track.id.desc()
_PUBLIC = _listed(lambda tracks: tracks.where(Track.visibility == "public"), _NEWEST)
_BY_ARTIST = _listed(lambda tracks: tracks.where(Track.did == _VIEWER), _NEWEST)
_LIKED = _listed(
    lambda tracks: tracks.join(Like, Like.track_id == Track.id).where(Like.did == _VIEWER, _VISIBLE),
    Like.created_at.desc(),
    _NEWEST,
)
_FILE_IDS = bindparam("file_ids", type_=ARRAY(Text))
_WANTED = (
    func.unnest(_FILE_IDS)
    .table_valued("file_id", with_ordinality="place", name="wanted")
    .render_derived()  # names its columns
)
# Of all copies of a file, whosever they are, the oldest stands for it.
_OLDEST = select(func.min(Track.id)).where(Track.file_id == any_(_FILE_IDS), _VISIBLE).group_by(Track.file_id)
_BY_FILES = _listed(
    lambda tracks: tracks.join(_WANTED, _WANTED.c.file_id == Track.file_id).where(Track.id.in_(_OLDEST)),
    _WANTED.c.place,
)
_BY_ID = _joined(*_COLUMNS).where(Track.id == bindparam("track_id"), _VISIBLE)
_BY_URI = _joined(*_COLUMNS).where(Track.atproto_record_uri == bindparam("uri"), _VISIBLE)


async def _views(database: Database, query: Executable, **values: Any) -> list[TrackView]:
    return [TrackView.from_row(row) for row in await database.fetch(query, values, read_only=True)]


async def list_public(database: Database, limit: int) -> list[TrackView]:
    """The newest public tracks."""
    return await _views(database, _PUBLIC, limit=limit)


async def list_by_artist(database: Database, did: str, limit: int) -> list[TrackView]:
    """An artist's own newest tracks, whatever their visibility."""
    return await _views(database, _BY_ARTIST, viewer=did, limit=limit)


async def list_liked(database: Database, did: str, limit: int) -> list[TrackView]:
    """What an artist likes and may still see, the newest like first."""
    return await _views(database, _LIKED, viewer=did, limit=limit)


async def list_by_files(database: Database, file_ids: Sequence[str], viewer: str | None) -> list[TrackView]:
    """One track for each file id that has one, each once, in the order of their first places."""
    if not file_ids:
        return []
    each_once = list(dict.fromkeys(file_ids))
    return await _views(database, _BY_FILES, file_ids=each_once, viewer=viewer, limit=len(each_once))


async def get(database: Database, track_id: int, viewer: str | None) -> TrackView | None:
    """One track, if this viewer may see it."""
    return next(iter(await _views(database, _BY_ID, track_id=track_id, viewer=viewer)), None)


async def get_by_uri(database: Database, uri: str, viewer: str | None) -> TrackView | None:
    """One track by its AT-URI, if this viewer may see it."""
    return next(iter(await _views(database, _BY_URI, uri=uri, viewer=viewer)), None)


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
