"""A connection that turns out to be dead at its first use is exchanged for another, once, and nobody notices.

Only for drivers whose first flight is the proof: it carries nothing that could take effect without a COMMIT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steadypool import errors
from steadypool._sqlstate import Disposition
from steadypool.sqlalchemy.errors import raise_as_sqlalchemy

if TYPE_CHECKING:
    from steadypool.sqlalchemy.pool import SteadyPool
    from steadypool.sqlalchemy.record import Record


async def renew(pool: SteadyPool, record: Record, adapter: Any, silent_since: float | None) -> bool:
    """Put a live connection under the adapter; False where that cannot be done.

    Args:
        pool: where the connections come from.
        record: the record of the dead one.
        adapter: its adapter, which the caller goes on using.
        silent_since: the moment since which it has not answered; None where it has ended.

    The dead one leaves its place in the pool first, with a record of its own: when all connections have died, those
    who hold them must not wait for each other.
    """
    lease = record.lease
    if lease is None or record.dbapi_connection is not adapter:
        return False  # detached, or closed meanwhile
    corpse = type(record)(pool, connect=False)
    corpse.dbapi_connection = adapter.twin()
    lease.slot.connection = corpse
    record.lease = None
    pool.suspect(silent_since)
    lease.release(Disposition.EVICT)
    try:
        fresh = await pool.acquire_again(lease)
    except errors.SteadypoolError as error:
        raise_as_sqlalchemy(error)
    other = fresh.connection
    adapter.adopt(other.dbapi_connection)
    record.starttime = other.starttime
    record.reported, record.changes = other.reported, other.changes
    record.client_state = other.client_state
    record.info.clear()
    record.info.update(other.info)
    other.dbapi_connection = None
    fresh.slot.connection = record
    record.lease = fresh
    return True
