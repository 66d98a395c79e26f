"""Tracks, their albums, and who likes them."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import BigInteger, Float, ForeignKey, Identity, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from backend.models.artist import Artist
from backend.models.base import Base, CreatedAt


class Album(Base):
    """A name under which an artist groups tracks."""

    __tablename__ = "albums"
    __table_args__ = (UniqueConstraint("did", "slug"),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    did: Mapped[str] = mapped_column(ForeignKey("artists.did", ondelete="CASCADE"))
    title: Mapped[str]
    slug: Mapped[str]
    created_at: Mapped[CreatedAt]


class Track(Base):
    """One published recording. `file_id` is the SHA-256 of its audio; several tracks may share one file."""

    __tablename__ = "tracks"
    __table_args__ = (
        Index("ix_tracks_visibility_id", "visibility", text("id DESC")),
        Index("ix_tracks_did_id", "did", text("id DESC")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    did: Mapped[str] = mapped_column(ForeignKey("artists.did", ondelete="CASCADE"))
    album_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("albums.id", ondelete="SET NULL"), index=True
    )
    title: Mapped[str]
    description: Mapped[str | None]
    tags: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))
    file_id: Mapped[str] = mapped_column(index=True)
    file_type: Mapped[str]
    duration: Mapped[float | None] = mapped_column(Float)
    visibility: Mapped[str] = mapped_column(server_default="public")
    publishing: Mapped[dict[str, Any]]
    play_count: Mapped[int] = mapped_column(BigInteger, server_default="0")
    atproto_record_uri: Mapped[str] = mapped_column(unique=True)
    atproto_record_cid: Mapped[str]
    created_at: Mapped[CreatedAt]

    artist: Mapped[Artist] = relationship(lazy="raise")
    album: Mapped[Album | None] = relationship(lazy="raise")


class Like(Base):
    """One artist likes one track, once."""

    __tablename__ = "likes"
    __table_args__ = (Index("ix_likes_did_created_at", "did", text("created_at DESC")),)

    track_id: Mapped[int] = mapped_column(ForeignKey("tracks.id", ondelete="CASCADE"), primary_key=True)
    did: Mapped[str] = mapped_column(ForeignKey("artists.did", ondelete="CASCADE"), primary_key=True)
    created_at: Mapped[CreatedAt]
