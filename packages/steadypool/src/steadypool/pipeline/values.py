"""How the values of a pipelined connection are made, and when that changes: with its settings and its adapters."""

from __future__ import annotations

from typing import Any

from psycopg.adapt import AdaptersMap, Transformer

_SETTINGS = (b"TimeZone", b"client_encoding", b"DateStyle", b"IntervalStyle")
"""What psycopg's loaders and dumpers look at when they are made; the server reports each change."""


class CountedAdapters(AdaptersMap):
    """psycopg's adapters; `changes` counts what was registered."""

    changes = 0

    def register_dumper(self, cls: Any, dumper: Any) -> None:
        """As psycopg's."""
        super().register_dumper(cls, dumper)
        self.changes += 1

    def register_loader(self, oid: Any, loader: Any) -> None:
        """As psycopg's."""
        super().register_loader(oid, loader)
        self.changes += 1

    def restore(self, adapters: AdaptersMap) -> None:
        """Have what these have, and nothing else."""
        AdaptersMap.__init__(self, adapters)
        self.changes += 1


class Values:
    """psycopg's transformer of one connection, replaced when what its loaders depend on has changed.

    psycopg makes a transformer for each query, and its loaders keep the time zone and the encoding that they find.
    This one lives as long as they stay the same.

    Args:
        connection: a psycopg connection; it gets adapters of its own.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._reported = connection.pgconn.parameter_status
        self.adapters = connection._adapters = CountedAdapters(connection.adapters)
        self.sends_as: tuple[bytes | None, ...] = ()
        """The settings on which the next statement's text and parameters depend; the same object until they change."""
        self.renew()

    def renew(self) -> None:
        """Make values by the settings and the adapters of now."""
        self._changes = self.adapters.changes
        self._settings = [self._reported(name) for name in _SETTINGS]
        sends_as = (self._settings[1], self._settings[3])
        if sends_as != self.sends_as:
            self.sends_as = sends_as
        self.transformer = Transformer(self._connection)
        self.encoding = self.transformer.encoding

    def has_new_adapters(self) -> bool:
        """Whether a type was registered since."""
        return self.adapters.changes != self._changes

    def has_new_settings(self) -> bool:
        """Whether the server has reported other settings since."""
        reported, (zone, encoding, dates, intervals) = self._reported, self._settings
        return (
            reported(b"TimeZone") != zone
            or reported(b"client_encoding") != encoding
            or reported(b"DateStyle") != dates
            or reported(b"IntervalStyle") != intervals
        )
