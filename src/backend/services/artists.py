"""Artists, and the tokens by which they are known."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import bindparam, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.models import Artist, DeveloperToken
from steadypool import Database

TOKEN_BYTES = 32


def new_token() -> str:
    """A token nobody can guess: 256 random bits."""
    return "plyr_" + secrets.token_urlsafe(TOKEN_BYTES)


def hash_token(token: str) -> bytes:
    """What is kept of a token.

    It is looked up by this hash, so what a comparison's time could reveal is about the hash, not the token.
    """
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True)
class Identity:
    """Who somebody is, as far as a request has to know."""

    did: str
    handle: str


_BY_TOKEN = (
    select(Artist.did, Artist.handle)
    .join(DeveloperToken, DeveloperToken.did == Artist.did)
    .where(DeveloperToken.token_hash == bindparam("token_hash"))
    .where(or_(DeveloperToken.expires_at.is_(None), DeveloperToken.expires_at > func.now()))
)


async def authenticate(database: Database, token: str) -> Identity | None:
    """The artist whose unexpired token this is."""
    row = await database.fetchrow(_BY_TOKEN, {"token_hash": hash_token(token)}, read_only=True)
    return None if row is None else Identity(*row)


def add_artist(session: AsyncSession, *, did: str, handle: str, display_name: str) -> Artist:
    """A new artist."""
    artist = Artist(did=did, handle=handle, display_name=display_name)
    session.add(artist)
    return artist


def add_token(
    session: AsyncSession, *, did: str, token: str, name: str, expires_at: datetime | None = None
) -> None:
    """Let `token` sign in as the artist."""
    session.add(DeveloperToken(token_hash=hash_token(token), did=did, name=name, expires_at=expires_at))
