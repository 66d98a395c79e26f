"""Uploads on their way to becoming tracks."""

from __future__ import annotations

import uuid
from enum import StrEnum
from typing import Any

from sqlalchemy import ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from backend.models.base import Base, CreatedAt


class UploadStatus(StrEnum):
    """How far an upload has come."""

    PROCESSING = "processing"
    """The bytes are safe on disk; the track is not there yet."""
    COMPLETED = "completed"
    """The track exists."""
    FAILED = "failed"
    """There will be no track; `error` says why."""


class Upload(Base):
    """One accepted file. `draft` is everything the track is made of, so that any process can finish it."""

    __tablename__ = "uploads"
    __table_args__ = (
        Index("ix_uploads_unfinished", "file_id", postgresql_where=text("status = 'processing'")),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    did: Mapped[str] = mapped_column(ForeignKey("artists.did", ondelete="CASCADE"), index=True)
    status: Mapped[str]
    file_id: Mapped[str]
    draft: Mapped[dict[str, Any]]
    track_id: Mapped[int | None] = mapped_column(ForeignKey("tracks.id", ondelete="SET NULL"), index=True)
    error: Mapped[str | None]
    created_at: Mapped[CreatedAt]
