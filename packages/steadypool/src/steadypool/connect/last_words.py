"""What the server said before it ended a connection: `FATAL` or `PANIC`, its SQLSTATE and its message.

psycopg's connections keep that themselves. asyncpg forgets it at the end of file that follows, so its protocol gets
an ear: a relay that keeps the end of what came, and reads it only when it is asked.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

_KEPT = 1024
"""Bytes of what came last; a FATAL has some two hundred."""
_DEADLY = (b"SFATAL\0", b"VFATAL\0", b"SPANIC\0", b"VPANIC\0")
"""The severity of a last word: as it is translated, and, since PostgreSQL 9.6, as it is not."""
_READY = b"Z\0\0\0\5"
"""The head of ReadyForQuery; one byte, the state of the transaction, follows."""


class LastWords(NamedTuple):
    """A code, and a message without data: the server ends connections for reasons of its own."""

    sqlstate: str
    text: str


class _Ear:
    """Stands between a transport and asyncpg's protocol."""

    __slots__ = (
        "_hear",
        "_tail",
        "connection_lost",
        "connection_made",
        "eof_received",
        "pause_writing",
        "resume_writing",
    )

    def __init__(self, protocol: Any) -> None:
        self._hear = protocol.data_received
        self._tail = b""
        for name in ("connection_lost", "connection_made", "eof_received", "pause_writing", "resume_writing"):
            setattr(self, name, getattr(protocol, name))

    def data_received(self, data: bytes) -> None:
        """As the protocol's."""
        self._tail = data[-_KEPT:] if len(data) >= _KEPT else (self._tail + data)[-_KEPT:]
        self._hear(data)

    @property
    def last_words(self) -> LastWords | None:
        return last_words_in(self._tail)

    @property
    def is_ready(self) -> bool:
        return not self._tail or self._tail[-6:-1] == _READY


_ears: weakref.WeakKeyDictionary[Any, _Ear] = weakref.WeakKeyDictionary()


def listen_for_last_words(connection: Any) -> None:
    """Keep what the server says last on an open `asyncpg.Connection`; once for each."""
    if connection in _ears:
        return
    transport = connection._transport
    ear = _ears[connection] = _Ear(transport.get_protocol())
    transport.set_protocol(ear)


def last_words_of(connection: Any) -> LastWords | None:
    """What the server said before it ended an `asyncpg.Connection`; None if it said nothing, or has not ended it."""
    ear = _ears.get(connection)
    return None if ear is None else ear.last_words


def is_ready(connection: Any) -> bool:
    """Whether the last that the server said on an idle `asyncpg.Connection` is that it waits for a command.

    asyncpg sends no Sync after it has prepared a statement. If the statement is not executed then, since a value
    cannot be encoded for example, the server holds locks on its tables as long as nothing else is sent, though it
    reports no transaction. After a notification this is False as well.
    """
    ear = _ears.get(connection)
    return ear is None or ear.is_ready


def last_words_in(data: bytes) -> LastWords | None:
    """The last word of the server in what it sent, if the end of it is one.

    Example:
        >>> last_words_in(b"E\\0\\0\\0\\x21SFATAL\\0C57P01\\0Mterminating\\0\\0")
        LastWords(sqlstate='57P01', text='terminating')
    """
    start = max(map(data.rfind, _DEADLY))
    if start < 0:
        return None
    fields = {field[:1]: field[1:] for field in data[start:].split(b"\0\0", 1)[0].split(b"\0")}
    code, text = fields.get(b"C", b""), fields.get(b"M", b"")
    if len(code) != 5 or not text:
        return None
    return LastWords(code.decode("ascii", "replace"), " ".join(text.decode("utf-8", "replace").split()))
