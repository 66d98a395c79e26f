"""Tracks: listing, reading, liking, deleting."""

from __future__ import annotations

import logging

from fastapi import APIRouter, HTTPException, Request
from sqlalchemy.exc import SQLAlchemyError

from backend.api.answers import answers
from backend.api.deps import MAX_PAGE, CurrentArtist, DatabaseDep, Limit, StorageDep, TrackId, Viewer
from backend.api.schemas import DeletedOut, LikeOut, TrackList, TrackOut, track_list, track_out
from backend.services import files, likes, tracks
from backend.storage.base import Storage
from backend.utilities.database import db_session
from steadypool.errors import SteadypoolError

log = logging.getLogger(__name__)
router = APIRouter(prefix="/tracks", tags=["tracks"])

NOT_FOUND = "track not found"


@router.get("/")
async def list_tracks(
    request: Request, database: DatabaseDep, viewer: Viewer, limit: Limit = 50
) -> TrackList:
    return track_list(await tracks.list_public(database, limit), request, viewer)


@router.get("/me", responses=answers(401))
async def list_my_tracks(
    request: Request, database: DatabaseDep, artist: CurrentArtist, limit: Limit = 50
) -> TrackList:
    return track_list(await tracks.list_by_artist(database, artist.did, limit), request, artist.did)


@router.get("/liked", responses=answers(401))
async def list_liked_tracks(
    request: Request, database: DatabaseDep, artist: CurrentArtist, limit: Limit = MAX_PAGE
) -> TrackList:
    # The SDK sends no limit here and cuts the answer itself, so the default is all there can be.
    return track_list(await tracks.list_liked(database, artist.did, limit), request, artist.did)


@router.get("/by-uri", responses=answers(404))
async def get_track_by_uri(request: Request, database: DatabaseDep, viewer: Viewer, uri: str) -> TrackOut:
    if "\0" in uri or (view := await tracks.get_by_uri(database, uri, viewer)) is None:
        raise HTTPException(404, NOT_FOUND)
    return track_out(view, request, viewer)


@router.get("/{track_id}", responses=answers(404))
async def get_track(request: Request, database: DatabaseDep, viewer: Viewer, track_id: TrackId) -> TrackOut:
    view = await tracks.get(database, track_id, viewer)
    if view is None:
        raise HTTPException(404, NOT_FOUND)
    return track_out(view, request, viewer)


@router.post("/{track_id}/like", responses=answers(401, 404))
async def like_track(database: DatabaseDep, artist: CurrentArtist, track_id: TrackId) -> LikeOut:
    if await tracks.get(database, track_id, artist.did) is None:
        raise HTTPException(404, NOT_FOUND)
    async with db_session() as session:
        if not await likes.like(session, track_id, artist.did):
            raise HTTPException(404, NOT_FOUND)
        await session.commit()
    return LikeOut(liked=True)


@router.delete("/{track_id}/like", responses=answers(401, 404))
async def unlike_track(database: DatabaseDep, artist: CurrentArtist, track_id: TrackId) -> LikeOut:
    if await tracks.get(database, track_id, artist.did) is None:
        raise HTTPException(404, NOT_FOUND)
    async with db_session() as session:
        await likes.unlike(session, track_id, artist.did)
        await session.commit()
    return LikeOut(liked=False)


@router.delete("/{track_id}", responses=answers(401, 403, 404))
async def delete_track(
    database: DatabaseDep, artist: CurrentArtist, storage: StorageDep, track_id: TrackId
) -> DeletedOut:
    async with db_session() as session:
        file_id = await tracks.remove(session, track_id, artist.did)
        await session.commit()
    if file_id is None:
        if await tracks.get(database, track_id, artist.did) is None:
            raise HTTPException(404, NOT_FOUND)
        raise HTTPException(403, "only the artist who published a track may delete it")
    await _remove_file(storage, file_id)
    return DeletedOut()


async def _remove_file(storage: Storage, file_id: str) -> None:
    """The track is gone already; a file that stays behind harms nobody and is no reason to answer an error."""
    try:
        async with db_session() as session:
            await files.remove_if_unused(session, storage, file_id)
            await session.commit()
    except (SteadypoolError, SQLAlchemyError, OSError) as error:
        log.warning("the file %s of a deleted track was not removed: %s", file_id, error)
