"""What is different on a standby: how one shows, and how not to ask it for what it refuses."""

from __future__ import annotations

from typing import Any

from sqlalchemy.dialects.postgresql.base import PGReadOnlyConnectionCharacteristic

_PARAMETER = "in_hot_standby"
"""Reported at the start and whenever it changes, since PostgreSQL 14 (manual: Asynchronous Operations)."""


def on_standby(driver_connection: Any) -> bool:
    """Whether the server of this connection, asyncpg's or psycopg's, said last that it is a standby."""
    if hasattr(driver_connection, "get_settings"):
        return getattr(driver_connection.get_settings(), _PARAMETER, None) == "on"
    return driver_connection.info.parameter_status(_PARAMETER) == "on"


class ReadOnly(PGReadOnlyConnectionCharacteristic):
    """After a READ ONLY transaction SQLAlchemy makes psycopg say BEGIN READ WRITE for ever, which a standby refuses."""

    def reset_characteristic(self, dialect: Any, dbapi_conn: Any) -> None:
        """Begin transactions as the server has it."""
        dialect.set_readonly(dbapi_conn, None)
