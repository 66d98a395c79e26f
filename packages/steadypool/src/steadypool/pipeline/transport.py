"""The socket of a pipelined connection: read when there is something, written once per turn of the loop."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections.abc import Callable
from typing import Any, Protocol

import psycopg
from psycopg.adapt import AdaptersMap
from psycopg.pq import abc

from steadypool.pipeline.unread import Flooded, check_unread

LINGER = 0.001
"""Seconds for which what nobody waits for may stay here, to travel with what comes next."""

MOST_UNASKED = 1_000
"""Reads in a row, of some 16 KiB, that bring what nothing had asked for: notices, or parameters, which libpq keeps."""

_TURNS = 16
"""Reads in a row from an encrypted connection before other tasks may run."""


class Adopted(Protocol):
    """The psycopg connection underneath: open, and in nobody's hands."""

    @property
    def pgconn(self) -> abc.PGconn: ...  # noqa: D102
    @property
    def adapters(self) -> AdaptersMap: ...  # noqa: D102
    async def cancel_safe(self, *, timeout: float = 30.0) -> None: ...  # noqa: D102


class Transport:
    """libpq's socket on the event loop.

    Args:
        connection: the psycopg connection underneath.
    """

    def __init__(self, connection: Adopted) -> None:
        self.psycopg_connection = connection
        self.pgconn: Any = connection.pgconn  # psycopg's protocol does not know the pointer in it
        self._loop = asyncio.get_running_loop()
        self._descriptor = -1
        """libpq's socket while it is in pipeline mode and the loop watches it."""
        self._unasked = 0
        """How many reads brought what nothing had asked for, since something was sent or a notification was taken."""
        self._flushing = False
        """Whether what is put down now goes out at the end of this turn."""
        self._crowded = False
        """Whether more than one thing that somebody waits for went out last time."""
        self._unsent = False
        """Whether something was put down since the last flush."""
        self._in_haste = 0
        """How many things of that somebody waits for."""
        self._lingering: asyncio.TimerHandle | None = None
        self._loiters = False
        """Whether the first thing on its way has not gone out yet, because nobody waits for it."""
        self._writing = False
        self._encrypted = bool(self.pgconn.ssl_in_use or self.pgconn.used_gssapi)

    @property
    def pending(self) -> int:
        """Segments on their way, or held back."""
        raise NotImplementedError

    @property
    def at_home(self) -> bool:
        """Whether the running event loop is the one that it belongs to."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:  # no event loop runs in this thread
            return False

    def _collect(self) -> None:
        """There may be answers."""
        raise NotImplementedError

    def _collect_and_end(self, error: Exception) -> None:
        """The connection broke; what had been answered before counts."""
        raise NotImplementedError

    def _new_head(self) -> float:
        """The clock of what is to be answered next starts."""
        raise NotImplementedError

    def _call(self, function: Callable[..., object], *args: object) -> None:
        """Call what others left here. What it raises is reported, and keeps nothing else from being settled."""
        try:
            function(*args)
        except Exception as error:  # noqa: BLE001 - theirs, and the other callers' answers must not wait for it
            self._loop.call_exception_handler(
                {"message": f"{function!r} raised, called by a connection", "exception": error}
            )

    def _flush_soon(self) -> None:
        """Send what there is to send at the end of this turn of the loop."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._turn_over)

    def _flush_later(self) -> None:
        """Send what there is to send with what comes next, or in a moment."""
        if self._lingering is None:
            self._lingering = self._loop.call_later(LINGER, self._lingered)

    def _lingered(self) -> None:
        self._lingering = None
        if self._unsent and self._descriptor != -1:
            self._flush()

    def _enter(self) -> None:
        self.pgconn.enter_pipeline_mode()
        self._descriptor = self.pgconn.socket
        self._loop.add_reader(self._descriptor, self._readable)

    def _leave_loop(self) -> None:
        """Take the descriptor from the loop while it is still ours: after the close its number may be another's."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor != -1 and not self._loop.is_closed():
            self._loop.remove_reader(descriptor)
            if self._writing:
                self._loop.remove_writer(descriptor)
        self._writing = False

    def _turn_over(self) -> None:
        self._flushing = False
        if self._unsent and self._descriptor != -1:
            self._flush()

    def _flush(self) -> None:
        self._unsent, self._unasked = False, 0
        self._crowded, self._in_haste = self._in_haste > 1, 0
        if self._loiters:
            self._loiters = False
            self._new_head()  # only from now on can the server be late with its answer
        try:
            unsent = self.pgconn.flush()
        except psycopg.Error as error:
            self._collect_and_end(error)
            return
        if bool(unsent) != self._writing:
            self._writing = not self._writing
            if self._writing:
                self._loop.add_writer(self._descriptor, self._flush)
            else:
                self._loop.remove_writer(self._descriptor)

    def _readable(self) -> None:
        # Whoever is answered may send more: all of it goes at once.
        waiting, self._flushing = self._flushing, True
        try:
            self._read()
            if self._encrypted:
                self._read_all()
            self._take_notifications()
        except (psycopg.Error, OSError) as error:
            self._collect_and_end(error)
            return
        self._collect()
        if not waiting:
            self._turn_over()

    def _read(self) -> None:
        self.pgconn.consume_input()
        if not self.pending:
            self._unasked += 1
            if self._unasked > MOST_UNASKED:
                raise Flooded("the server went on sending what nothing had asked for")

    def read_now(self) -> None:
        """Take the answers that have arrived, before a limit is judged by their absence.

        An event loop that was busy may run a timer before it looks at the socket (libuv always does).
        """
        if self._descriptor != -1:
            self._readable()

    def _take_notifications(self) -> None:
        """Pass notifications on to psycopg: libpq would keep them, however many come."""
        pgconn = self.pgconn
        while (notification := pgconn.notifies()) is not None:
            if pgconn.notify_handler is not None:
                self._call(pgconn.notify_handler, notification)
                check_unread(self.psycopg_connection)
                self._unasked = 0

    def _read_all(self) -> None:
        """What the TLS library holds already, the loop does not see: read until the socket was empty twice in a row.

        One read takes at least half of a TLS record, so the second finds nothing of it left.
        """
        empty = turns = 0
        while empty < 2:
            waiting = struct.unpack("i", fcntl.ioctl(self._descriptor, termios.FIONREAD, b"\0\0\0\0"))[0]
            empty = 0 if waiting else empty + 1
            self._read()
            turns += 1
            if turns == _TURNS:
                self._loop.call_soon(self._read_on)
                return

    def _read_on(self) -> None:
        if self._descriptor != -1:
            self._readable()


def cut_off(connection: Any) -> None:
    """Close libpq's socket. A connection that a caller's own creator made is psycopg's plain one."""
    if hasattr(connection, "abort"):
        connection.abort()
    else:
        connection._closed = True  # what psycopg's own close() sets: no warning when the object goes
        connection.pgconn.finish()


def was_interrupted(connection: Any) -> bool:
    """Whether the connection was given up in the middle of a command; psycopg's plain one does not say."""
    return getattr(connection, "interrupted", False)
