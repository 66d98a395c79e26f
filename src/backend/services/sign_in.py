"""Codes of sign-in links: each is used once, soon, and exchanged for a token, so that no link holds a token."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from backend.services import artists
from backend.utilities.database import db_session

CODE_SECONDS = 600.0
"""How long a link can be used."""
TOKEN_LIFE = timedelta(days=30)
"""How long the token is valid that a link was exchanged for."""


class SignInCodes:
    """The codes that this process has issued; kept in memory by their hash, and gone with it.

    Args:
        clock: seconds of a clock that never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._codes: dict[bytes, tuple[str, float]] = {}

    def issue(self, did: str) -> str:
        """Create a code that signs in as the artist."""
        code = secrets.token_urlsafe(24)
        self._codes[artists.hash_token(code)] = did, self._clock() + CODE_SECONDS
        return code

    def take(self, code: str) -> str | None:
        """The artist whom the code signs in, once; None if it is unknown, used or too old."""
        did, until = self._codes.pop(artists.hash_token(code), ("", 0.0))
        return did if self._clock() < until else None


async def create_token(did: str) -> str:
    """Create a token of the artist that expires after `TOKEN_LIFE`."""
    token = artists.new_token()
    async with db_session() as session:
        artists.add_token(
            session, did=did, token=token, name="sign-in link", expires_at=datetime.now(UTC) + TOKEN_LIFE
        )
        await session.commit()
    return token
