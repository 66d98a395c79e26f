"""steadypool's errors as SQLAlchemy's exceptions, so that `except` clauses written for either catch them.

Two rules keep secrets in: the statement appears as its fingerprint only, and neither parameters nor the server's
DETAIL (which quotes row data) become part of a message.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import exc

from steadypool import errors
from steadypool.errors import Report


class PoolTimeout(errors.PoolTimeout, exc.TimeoutError):
    """No connection became free in time."""

    code = "3o7r"


class PoolQueueFull(errors.PoolQueueFull, PoolTimeout):
    """So many callers wait already that one more would not be served in time."""


class _Operational(errors.SteadypoolError, exc.OperationalError):
    """What all errors have in common that are SQLAlchemy's OperationalError too."""

    def __init__(
        self,
        message: str,
        report: Report | None = None,
        *,
        statement: str | None = None,
        orig: BaseException | None = None,
        connection_invalidated: bool = False,
        **more: Any,
    ) -> None:
        exc.OperationalError.__init__(
            self,
            statement,
            None,
            orig or Exception(message),
            hide_parameters=True,
            connection_invalidated=connection_invalidated,
        )
        self.message = message
        self.report = report or Report()
        self.args = (message,)
        for name, value in more.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        return errors.SteadypoolError.__str__(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.message, self.report))


class ConnectFailed(_Operational, errors.ConnectFailed):
    """A connection could not be opened."""


class ConnectTimeout(ConnectFailed, errors.ConnectTimeout):
    """A connection was not open in time."""


class DatabaseUnavailable(ConnectFailed, errors.DatabaseUnavailable):
    """Recent attempts to connect failed, so this one was not made."""


class StatementTimeout(_Operational, errors.StatementTimeout):
    """A statement ran longer than its limit and was ended on the server."""


class ConnectionLost(_Operational, errors.ConnectionLost):
    """The connection died while it was in use."""


_BY_CORE: dict[type[errors.SteadypoolError], type[errors.SteadypoolError]] = {
    errors.PoolTimeout: PoolTimeout,
    errors.PoolQueueFull: PoolQueueFull,
    errors.ConnectFailed: ConnectFailed,
    errors.ConnectTimeout: ConnectTimeout,
    errors.DatabaseUnavailable: DatabaseUnavailable,
}


def as_sqlalchemy(error: errors.SteadypoolError) -> errors.SteadypoolError:
    """The same error as an exception of SQLAlchemy's, where the table has one; its cause is kept."""
    kind = _BY_CORE.get(type(error))
    if kind is None:
        return error
    translated = kind(error.message, error.report)
    if isinstance(translated, errors.ConnectFailed) and isinstance(error, errors.ConnectFailed):
        translated.final = error.final
    translated.__cause__ = error.__cause__
    return translated


def sqlstate_of(error: BaseException) -> str | None:
    """The SQLSTATE of an exception of SQLAlchemy's or of a driver, if the server gave one."""
    original = error.orig if isinstance(error, exc.DBAPIError) else error
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    return state if isinstance(state, str) else None
