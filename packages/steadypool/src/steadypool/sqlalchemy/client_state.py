"""What a driver keeps of a session on the client's side, made again what it was when the connection was opened.

A holder who uses the driver's own connection may register types on it, choose another row factory or isolation level,
or have its statements told to a logger. The next holder's values would be other values, and its transactions others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_ATTRIBUTES = (
    "row_factory", "cursor_factory", "server_cursor_factory", "prepare_threshold",
    "_autocommit", "_isolation_level", "_read_only", "_deferrable",
)  # fmt: skip
"""Of psycopg's connections. The setters of the last four ask the server for nothing, but are coroutines."""


class PsycopgState:
    """Of a psycopg connection.

    Args:
        connection: as it was opened, with everything that is registered on it; its adapters are counted from now on.
    """

    __slots__ = ("_adapters", "_attributes", "_changes", "_handlers")

    def __init__(self, connection: Any) -> None:
        from psycopg.adapt import AdaptersMap

        from steadypool.pipeline.values import CountedAdapters

        if not isinstance(connection.adapters, CountedAdapters):
            connection._adapters = CountedAdapters(connection.adapters)
        self._adapters = AdaptersMap(connection.adapters)
        self._changes = connection.adapters.changes
        self._attributes = [getattr(connection, name) for name in _ATTRIBUTES]
        self._handlers = list(connection._notice_handlers), list(connection._notify_handlers)

    def restore(self, connection: Any) -> None:
        """Make the connection what it was; nothing is sent, and no transaction may be open."""
        adapters = connection.adapters
        if adapters.changes != self._changes:
            adapters.restore(self._adapters)
            self._changes = adapters.changes
        if [getattr(connection, name) for name in _ATTRIBUTES] != self._attributes:
            for name, value in zip(_ATTRIBUTES, self._attributes, strict=True):
                setattr(connection, name, value)
            connection._begin_statement = b""  # psycopg remembers what it begins transactions with
        for handlers, before in zip(
            (connection._notice_handlers, connection._notify_handlers), self._handlers, strict=True
        ):
            if handlers != before:
                handlers[:] = before


class PipelinedState:
    """Of a `pipeline.PipelinedConnection`: of the psycopg connection underneath."""

    __slots__ = ("_state",)

    def __init__(self, connection: Any) -> None:
        self._state = PsycopgState(connection.psycopg_connection)

    def restore(self, connection: Any) -> None:
        """Make the connection what it was; its values are made anew with the next statement."""
        self._state.restore(connection.psycopg_connection)


class AsyncpgState:
    """Of an asyncpg connection: its listeners and loggers. asyncpg does not tell which type codecs were set."""

    __slots__ = ("_listeners",)

    def __init__(self, connection: Any) -> None:
        self._listeners = set(connection._log_listeners), set(connection._query_loggers)

    def restore(self, connection: Any) -> None:
        """Make the connection what it was."""
        for listeners, before in zip(
            (connection._log_listeners, connection._query_loggers), self._listeners, strict=True
        ):
            if listeners != before:
                listeners.clear()
                listeners.update(before)


ClientState = PsycopgState | PipelinedState | AsyncpgState

CLIENT_STATES: Mapping[str, Callable[[Any], ClientState]] = {
    "asyncpg": AsyncpgState,
    "psycopg": PsycopgState,
    "steadypool": PipelinedState,
}
"""By the names of drivers."""
