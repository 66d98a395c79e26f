"""What an artist is listening to next."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column

from backend.models.base import Base


class QueueState(Base):
    """One queue for each artist; `revision` grows by one with every change, from 1."""

    __tablename__ = "queue_states"

    did: Mapped[str] = mapped_column(ForeignKey("artists.did", ondelete="CASCADE"), primary_key=True)
    state: Mapped[dict[str, Any]]
    revision: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
