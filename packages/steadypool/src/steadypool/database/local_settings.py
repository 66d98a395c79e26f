"""Server settings that last as long as a transaction, for every transaction of one session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession

from steadypool.errors import ConfigurationError


def set_local(session: AsyncSession, settings: Mapping[str, str], *, required: bool) -> None:
    """Set these at the beginning of each transaction of this session, or in the flight of its first statement.

    Args:
        session: whose transactions.
        settings: names and values.
        required: whether to raise ConfigurationError in AUTOCOMMIT, where there is no transaction: nothing would be
            set, and what relies on a setting, such as a policy of row-level security, would go by another.
    """
    calls = ", ".join(f"set_config(:name{i}, :value{i}, true)" for i in range(len(settings)))
    values = {f"name{i}": name for i, name in enumerate(settings)}
    values |= {f"value{i}": value for i, value in enumerate(settings.values())}

    def after_begin(_session: Any, transaction: Any, connection: Any) -> None:
        if transaction.nested:
            return
        adapter = connection.connection.dbapi_connection
        if required and adapter.autocommit:
            raise ConfigurationError(
                "session(local=…) sets what lasts as long as a transaction, and AUTOCOMMIT has none: nothing was run. "
                "Leave out isolation_level='AUTOCOMMIT', or run such statements in a session without local="
            )
        if hasattr(adapter, "set_local"):
            adapter.set_local(settings)
        else:
            connection.execute(text(f"SELECT {calls}"), values)

    event.listen(session.sync_session, "after_begin", after_begin)
