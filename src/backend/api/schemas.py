"""What goes over the wire."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel
from starlette.requests import Request

from backend.services.policy import Publishing, may_listen
from backend.services.tracks import TrackView


class AlbumOut(BaseModel):
    """An album, as far as a track tells about it."""

    id: uuid.UUID
    title: str
    slug: str


class TrackOut(BaseModel):
    """A track as clients see it. `r2_url` is where its audio is; the name is the one that clients know.

    `description` is told by the track alone, and null in lists.
    """

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
    """A queue: the state as it was given, its revision, and the tracks it names, each once."""

    state: dict[str, Any]
    revision: int
    tracks: list[TrackOut]


def track_out(view: TrackView, request: Request, viewer: str | None) -> TrackOut:
    """A track as this viewer sees it."""
    return TrackOut(
        id=view.id,
        title=view.title,
        description=view.description,
        file_id=view.file_id,
        file_type=view.file_type,
        duration=view.duration,
        artist=view.artist,
        artist_handle=view.artist_handle,
        artist_did=view.did,
        play_count=view.play_count,
        like_count=view.like_count,
        album=None if view.album is None else AlbumOut(**view.album._asdict()),
        r2_url=f"{request.base_url}audio/{view.file_id}?track={view.id}",
        tags=view.tags,
        created_at=view.created_at,
        visibility=view.visibility,
        unlisted=view.visibility == "unlisted",
        publishing=view.publishing,
        gated=not may_listen(view.publishing.access, view.did, viewer),
        atproto_record_uri=view.atproto_record_uri,
        atproto_record_cid=view.atproto_record_cid,
    )


def track_list(views: list[TrackView], request: Request, viewer: str | None) -> TrackList:
    """Several tracks as this viewer sees them."""
    return TrackList(tracks=[track_out(view, request, viewer) for view in views])
