"""steadypool's errors as SQLAlchemy's exceptions, so that `except` clauses written for either catch them.

Two rules keep secrets in: the statement appears as its fingerprint only, and neither parameters nor the server's
DETAIL (which quotes row data) become part of a message.
"""

from __future__ import annotations

from typing import Any, NoReturn

from sqlalchemy import exc

from steadypool import errors
from steadypool.errors import Report, causes
from steadypool.pool.rejections import said_by_server


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


class TransactionRolledBack(errors.TransactionRolledBack, exc.InvalidRequestError):
    """COMMIT was answered by ROLLBACK: a statement had failed before, and its error was not let through."""


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


def raise_as_sqlalchemy(error: errors.SteadypoolError) -> NoReturn:
    """Raise the same error as an exception of SQLAlchemy's, where there is one; the cause is kept.

    An argument of the engine that makes no sense, and what the server said to SQL of a connect handler, `on_connect`
    or a creator, is raised as itself.
    """
    if (itself := _mistake_in(error) or said_by_server(error)) is not None:
        raise itself from itself.__cause__
    kind = _BY_CORE.get(type(error))
    if kind is None:
        raise error from error.__cause__
    if not issubclass(kind, ConnectFailed) or not isinstance(error, errors.ConnectFailed):
        raise kind(error.message, error.report) from error.__cause__
    raise kind(
        error.message, error.report, orig=_said_by_driver(error), final=error.final
    ) from error.__cause__


def _said_by_driver(error: BaseException) -> BaseException | None:
    """What the driver or the system said that made a connect fail."""
    found = [cause for cause in causes(error) if not isinstance(cause, errors.SteadypoolError)]
    return next((cause for cause in found if sqlstate_of(cause)), found[0] if found else None)


def _mistake_in(error: BaseException) -> BaseException | None:
    for cause in causes(error):
        if isinstance(cause, exc.ArgumentError):
            return cause
    return None


def sqlstate_of(error: BaseException) -> str | None:
    """The SQLSTATE of an exception of SQLAlchemy's or of a driver, if the server gave one."""
    original = error.orig if isinstance(error, exc.DBAPIError) else error
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    return state if isinstance(state, str) else None
