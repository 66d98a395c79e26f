"""The one table that says what becomes of a connection after an error.

SQLSTATE codes are those of PostgreSQL's Appendix A, "PostgreSQL Error Codes". Whoever catches a driver's error
asks `fate_of` and acts on the answer; nobody else decides by code or by text.

| SQLSTATE or condition | fate | because |
| --- | --- | --- |
| 57P01 admin_shutdown, 57P02 crash_shutdown, 57P05 idle_session_timeout, 25P03 idle_in_transaction_session_timeout, 08003, 08006, end of file | evict, prove the siblings | this backend is gone, and what ended it may have ended others |
| 57P03 cannot_connect_now, 53300 too_many_connections, 08P01 with `query_wait_timeout` | back off | the server or the pooler asks for patience; the connection itself is fine |
| 57014 query_canceled, 40001 serialization_failure, 40P01 deadlock_detected, any other SQL error | keep | the statement failed, not the connection |
| 25006 read_only_sql_transaction | drain the host | the server became a standby, unless we had asked for read-only ourselves |
| 26000 invalid_sql_statement_name, 0A000 feature_not_supported (cached plan) | forget the statement | the plan is stale, the connection is not |
| 28P01 invalid_password, 28000, 3D000 invalid_catalog_name, 42501 at log-in | final | trying again cannot help |
"""

from __future__ import annotations

from enum import Enum


class Disposition(Enum):
    """What to do with a connection after what happened on it."""

    KEEP = "keep"
    """It is fine: back to the pool."""
    EVICT = "evict"
    """It is not to be used again; says nothing about the others."""
    EVICT_AND_PROVE = "evict and prove the siblings"
    """It is gone, and the others have to show that they are alive before somebody gets them."""
    BACK_OFF = "back off"
    """Keep it, but do not open more for a moment."""
    DRAIN_HOST = "drain the host"
    """The server changed its role: replace every connection to it."""
    FORGET_STATEMENT = "forget the prepared statement"
    """Keep it, prepare the statement anew."""


_FATES: dict[str, Disposition] = {
    "57P01": Disposition.EVICT_AND_PROVE,
    "57P02": Disposition.EVICT_AND_PROVE,
    "57P05": Disposition.EVICT,
    "25P03": Disposition.EVICT,
    "08003": Disposition.EVICT_AND_PROVE,
    "08006": Disposition.EVICT_AND_PROVE,
    "57P03": Disposition.BACK_OFF,
    "53300": Disposition.BACK_OFF,
    "25006": Disposition.DRAIN_HOST,
    "26000": Disposition.FORGET_STATEMENT,
    "0A000": Disposition.FORGET_STATEMENT,
}

THE_DRIVERS_OWN = frozenset({"08000", "08001", "08003", "08006"})
"""What asyncpg calls a connection that broke; the server had no part in it."""

NO_WORD = "no word"
"""The cause of a loss for which the server gave no reason: an end of file, a reset, a socket that was cut off."""

_ASKS_FOR_PATIENCE = ("08P01", "query_wait_timeout")
"""PgBouncer's words, in every language: the statement waited for a connection to the server, and was not sent."""

_FINAL_AT_CONNECT = frozenset({"28P01", "28000", "3D000", "42501"})

QUERY_CANCELED = "57014"
"""A statement ended by `statement_timeout` or by a cancel request."""

LOCK_NOT_AVAILABLE = "55P03"
"""A statement that waited for a lock as long as `lock_timeout` lets it, or that was told not to wait."""


def fate_of(sqlstate: str | None, *, read_only: bool = False, words: str = "") -> Disposition:
    """What becomes of a connection on which the server reported `sqlstate`.

    Args:
        sqlstate: five characters, or None where the connection ended without a word.
        read_only: whether we had asked for a read-only transaction ourselves.
        words: what the server said beside the code.

    Example:
        >>> fate_of("57014")
        <Fate.KEEP: 'keep'>
    """
    if sqlstate is None:
        return Disposition.EVICT_AND_PROVE
    if sqlstate == "25006" and read_only:
        return Disposition.KEEP
    code, reason = _ASKS_FOR_PATIENCE
    if sqlstate == code and reason in words:
        return Disposition.BACK_OFF
    return _FATES.get(sqlstate, Disposition.KEEP)


def sqlstate_in(error: BaseException | None) -> str | None:
    """The SQLSTATE of an error, or of the one that it was made from."""
    return getattr(error, "sqlstate", None) or getattr(getattr(error, "__cause__", None), "sqlstate", None)


def said(sqlstate: str | None, words: str | None = None) -> str:
    """What the server said before a connection ended, for a message.

    Example:
        >>> said("57P01", "terminating connection due to administrator command")
        'the server said 57P01: terminating connection due to administrator command'
    """
    if sqlstate is None or sqlstate in THE_DRIVERS_OWN:
        return words or "it ended without a word"
    return f"the server said {sqlstate}: {words}" if words else f"the server said {sqlstate}"


def cause_of_loss(sqlstate: str | None) -> str:
    """Why a connection died, for statistics: what the server said, or `NO_WORD`."""
    return NO_WORD if sqlstate is None or sqlstate in THE_DRIVERS_OWN else sqlstate


def is_final_at_connect(sqlstate: str | None) -> bool:
    """Whether connecting again cannot help until somebody changes a setting."""
    return sqlstate in _FINAL_AT_CONNECT
