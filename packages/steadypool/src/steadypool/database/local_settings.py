"""Server settings that last as long as a transaction, for every transaction of one session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession


def set_local(session: AsyncSession, settings: Mapping[str, str]) -> None:
    """One statement at the beginning of each transaction of this session, or in the flight of its first one."""
    calls = ", ".join(f"set_config(:name{i}, :value{i}, true)" for i in range(len(settings)))
    values = {f"name{i}": name for i, name in enumerate(settings)}
    values |= {f"value{i}": value for i, value in enumerate(settings.values())}

    def after_begin(_session: Any, transaction: Any, connection: Any) -> None:
        if transaction.nested:
            return
        adapter = connection.connection.dbapi_connection
        if hasattr(adapter, "set_local"):
            adapter.set_local(settings)
        else:
            connection.execute(text(f"SELECT {calls}"), values)

    event.listen(session.sync_session, "after_begin", after_begin)
