"""Queues: what an artist hears next, changed only by those who know its latest revision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from backend.models import QueueState
from steadypool import Database

EMPTY: Mapping[str, Any] = {
    "track_ids": [],
    "current_index": 0,
    "current_track_id": None,
    "shuffle": False,
    "original_order_ids": [],
    "auto_advance": True,
}
"""The queue of an artist who never had one; its revision is 0."""


_BY_ARTIST = select(QueueState.state, QueueState.revision).where(QueueState.did == bindparam("did"))


async def get(database: Database, did: str) -> tuple[dict[str, Any], int]:
    """The state and its revision."""
    row = await database.fetchrow(_BY_ARTIST, {"did": did}, read_only=True)
    return (dict(EMPTY), 0) if row is None else (row["state"], row["revision"])


async def put(session: AsyncSession, did: str, state: dict[str, Any], expected: int) -> int | None:
    """Replace the state if its revision is still the one expected; the new revision, or None if it moved on.

    The check and the change are one statement: of any number of writers with the same revision one wins.
    """
    if expected == 0:
        first = insert(QueueState).values(did=did, state=state, revision=1).on_conflict_do_nothing()
        return await session.scalar(first.returning(QueueState.revision))
    change = (
        update(QueueState)
        .where(QueueState.did == did, QueueState.revision == expected)
        .values(state=state, revision=QueueState.revision + 1, updated_at=func.now())
        .returning(QueueState.revision)
    )
    return await session.scalar(change.execution_options(synchronize_session=False))
