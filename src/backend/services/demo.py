"""A first artist and a few tracks for an empty database, so that there is something to see, hear and like."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from sqlalchemy import exists, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.models import Artist, DeveloperToken
from backend.services import artists, files, tracks
from backend.services.tracks import TrackDraft
from backend.storage.base import Incoming, Storage
from backend.utilities.database import UPLOADS
from steadypool import Database

DID = "did:plc:plyrdemoartist2345abcdef"
HANDLE = "demo.plyr.local"
DISPLAY_NAME = "The Steady Pool"

Composed = tuple[Incoming, TrackDraft]

# Any number that nothing else locks; two first starts at once must not make two demos.
_LOCK_KEY = 0x64656D6F


async def ensure_demo(
    database: Database, storage: Storage, token_file: Path, say: Callable[[str], None]
) -> str | None:
    """Fill an empty database; returns the demo artist's token, or None where the database is somebody's own.

    Args:
        database: where the artist, the token and the tracks go.
        storage: where the audio goes.
        token_file: where the token lives between starts, readable by its owner only.
        say: told when something takes a moment.
    """
    async with database.session(workload=UPLOADS, read_only=True) as session:
        token = await asyncio.to_thread(_read_token, token_file)
        if token is not None and await _knows(session, token):
            return token
        is_demo = await session.get(Artist, DID) is not None
        is_empty = not await session.scalar(select(exists().where(Artist.did.is_not(None))))
    if not is_demo and not is_empty:
        return None
    async with AsyncExitStack() as waves:
        if is_empty:
            say("composing a few demo tracks")
        drafts = await _compose(waves, storage) if is_empty else []
        async with database.session(workload=UPLOADS) as session:
            return await _fill(session, storage, drafts, token_file)


async def _fill(session: AsyncSession, storage: Storage, composed: list[Composed], token_file: Path) -> str:
    """Everything that is not there yet, in one transaction, for one process at a time."""
    await session.execute(select(func.pg_advisory_xact_lock(_LOCK_KEY)))
    if await session.get(Artist, DID) is None:
        artist = artists.add_artist(session, did=DID, handle=HANDLE, display_name=DISPLAY_NAME)
        await session.flush()
        for incoming, draft in composed:
            await files.lock(session, draft.file_id)
            await storage.keep(incoming, draft.file_id)
            await tracks.add(session, artist, draft)
    token = await asyncio.to_thread(_read_or_write_token, token_file)
    if not await _knows(session, token):
        artists.add_token(session, did=DID, token=token, name="demo")
    await session.commit()
    return token


async def _knows(session: AsyncSession, token: str) -> bool:
    query = exists().where(DeveloperToken.token_hash == artists.hash_token(token))
    return bool(await session.scalar(select(query)))


async def _compose(waves: AsyncExitStack, storage: Storage) -> list[Composed]:
    """The demo tracks and their audio, before any connection is taken: it needs seconds, not milliseconds."""
    from backend.services.melody import PIECES, duration, render  # no later start needs the composer

    composed: list[Composed] = []
    for piece in PIECES:
        wave = await asyncio.to_thread(render, piece)
        incoming = await waves.enter_async_context(storage.receive())
        await incoming.write(wave)
        draft = TrackDraft(
            title=piece.title,
            description=piece.description,
            album="Still Water",
            tags=("demo", piece.mood),
            file_id=await incoming.finish(),
            file_type="wav",
            duration=duration(wave),
        )
        composed.append((incoming, draft))
    return composed


def _read_token(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except FileNotFoundError:
        return None


def _read_or_write_token(path: Path) -> str:
    token = _read_token(path)
    if token is None:
        token = artists.new_token()
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(token + "\n")
    return token
