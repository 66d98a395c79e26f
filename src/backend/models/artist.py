"""Artists and the tokens they sign in with."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from backend.models.base import Base, CreatedAt


class Artist(Base):
    """Somebody with a decentralised identifier (DID)."""

    __tablename__ = "artists"

    did: Mapped[str] = mapped_column(primary_key=True)
    handle: Mapped[str] = mapped_column(unique=True)
    display_name: Mapped[str]
    created_at: Mapped[CreatedAt]


class DeveloperToken(Base):
    """A token by its SHA-256: the token itself is random and long, so a plain hash cannot be guessed back."""

    __tablename__ = "developer_tokens"

    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    did: Mapped[str] = mapped_column(ForeignKey("artists.did", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    created_at: Mapped[CreatedAt]
    expires_at: Mapped[datetime | None]
