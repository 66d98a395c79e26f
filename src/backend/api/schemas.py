"""What goes over the wire."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel
from starlette.requests import Request

from backend.models import Track
from backend.services.policy import Publishing, may_listen
from backend.services.tracks import TrackView


class AlbumOut(BaseModel):
    """An album, as far as a track tells about it."""

    id: uuid.UUID
    title: str
    slug: str


class TrackOut(BaseModel):
    """A track as clients see it. `r2_url` is where its audio is; the name is the one that clients know."""

    id: int
    title: str
    description: str | None
    file_id: str
    file_type: str
    duration: float | None
    artist: str
    artist_handle: str
    artist_did: str
    play_count: int
    like_count: int
    album: AlbumOut | None
    r2_url: str
    tags: list[str]
    created_at: datetime
    visibility: str
    unlisted: bool
    publishing: Publishing
    gated: bool
    atproto_record_uri: str
    atproto_record_cid: str


class TrackList(BaseModel):
    """Some tracks."""

    tracks: list[TrackOut]


class MeOut(BaseModel):
    """Who is signed in."""

    did: str
    handle: str


class UploadOut(BaseModel):
    """An upload that was accepted: ask for its progress."""

    upload_id: uuid.UUID
    status: str


class ProgressOut(BaseModel):
    """One event of an upload's progress."""

    status: str
    track_id: int | None = None
    error: str | None = None


class LikeOut(BaseModel):
    """Whether the track is liked now."""

    liked: bool


class DeletedOut(BaseModel):
    """A track is gone."""

    deleted: Literal[True] = True


class QueueOut(BaseModel):
    """A queue: the state as it was given, its revision, and the tracks it names."""

    state: dict[str, Any]
    revision: int
    tracks: list[TrackOut]


def track_out(view: TrackView, request: Request, viewer: str | None) -> TrackOut:
    """A track as this viewer sees it."""
    track = view.track
    publishing = Publishing.model_validate(track.publishing)
    return TrackOut(
        id=track.id,
        title=track.title,
        description=track.description,
        file_id=track.file_id,
        file_type=track.file_type,
        duration=track.duration,
        artist=track.artist.display_name,
        artist_handle=track.artist.handle,
        artist_did=track.did,
        play_count=track.play_count,
        like_count=view.like_count,
        album=_album_out(track),
        r2_url=f"{request.base_url}audio/{track.file_id}?track={track.id}",
        tags=track.tags,
        created_at=track.created_at,
        visibility=track.visibility,
        unlisted=track.visibility == "unlisted",
        publishing=publishing,
        gated=not may_listen(publishing.access, track.did, viewer),
        atproto_record_uri=track.atproto_record_uri,
        atproto_record_cid=track.atproto_record_cid,
    )


def _album_out(track: Track) -> AlbumOut | None:
    album = track.album
    return None if album is None else AlbumOut(id=album.id, title=album.title, slug=album.slug)


def track_list(views: list[TrackView], request: Request, viewer: str | None) -> TrackList:
    """Several tracks as this viewer sees them."""
    return TrackList(tracks=[track_out(view, request, viewer) for view in views])
