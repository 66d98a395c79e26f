"""One connection while it is shared: what may be sent on it, and what it leaves behind when it goes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from psycopg.pq import ConnStatus

from steadypool._sql.session_state import REPORTED
from steadypool._sqlstate import Disposition
from steadypool.connect.session_settings import milliseconds
from steadypool.multiplex.eligibility import REFUSED_TAGS
from steadypool.multiplex.options import RESET_LIMITS, MultiplexOptions
from steadypool.multiplex.request import Request
from steadypool.pipeline import Batch, PipelinedConnection, Statement
from steadypool.pool.lease import Lease

_WATCHED = tuple(name.encode() for name in REPORTED)
_SET = "select set_config('statement_timeout', $1, false), set_config('lock_timeout', $2, false)"


def limits_of_session(statement_timeout: float, lock_timeout: float) -> Statement:
    """What sets these limits, in seconds, for all that follows in a session."""
    limits = [milliseconds(statement_timeout), milliseconds(lock_timeout)]
    return Statement(_SET, limits, prepare=False)


def reset_limits(connection: PipelinedConnection, limit: float | None) -> None:
    """Take `limits_of_session` back, before whatever is sent next; `limit` is in seconds."""
    connection.post(Batch([Statement(sql, prepare=False) for sql in RESET_LIMITS], limit=limit))


class SharedConnection:
    """A lease of the pool's that many use.

    Args:
        lease: it; given back by `leave`.
        connection: its connection.
        options: the shared way's.
    """

    def __init__(self, lease: Lease[Any], connection: PipelinedConnection, options: MultiplexOptions) -> None:
        self.lease = lease
        self.connection = connection
        self.options = options
        self.leaving = False
        """Takes no new statement, and goes back when it has answered what it has."""
        self.proving = False
        """A sign of life was asked for; what must not run twice waits for it."""
        self.proven = False
        """It came in this very moment."""
        self.left = False
        self.fate = Disposition.KEEP
        self.offence: str | None = None
        """Why it was ended, where that was one statement's fault."""
        self.last_words: str | None = None
        """The SQLSTATE with which the server ended it, if it said one."""
        self.fresh: list[Request] = []
        """Answered in this turn of the loop, well and quickly; to be told together."""
        self._timer: asyncio.TimerHandle | None = None
        self._told: list[bytes | None] = []

    async def begin(self, limit: float) -> None:
        """Set the limits of shared statements; also the proof that the connection lives.

        Raises:
            psycopg.Error: it does not, or cannot.
        """
        connection, options = self.connection, self.options
        statements: list[Statement] = []
        if not options.local:
            statements.append(limits_of_session(options.statement_timeout, options.lock_timeout))
        await connection.run(Batch(statements, limit=limit))
        connection.refused_tags = REFUSED_TAGS
        # Only now: the answer to the ROLLBACK of an earlier session may have restored a setting.
        self._told = [connection.pgconn.parameter_status(name) for name in _WATCHED]

    def until(self, seconds: float, then: Callable[[], None]) -> None:
        """Call `then` after so many seconds, unless it has gone before."""
        self._timer = asyncio.get_running_loop().call_later(seconds, then)

    @property
    def load(self) -> int:
        """Segments on their way."""
        return self.connection.pending

    @property
    def takes_new(self) -> bool:
        """Whether another statement may be sent, as far as those go that are on their way."""
        connection, pending = self.connection, self.connection.pending
        if self.leaving or connection.closed or pending >= self.options.window:
            return False
        return not pending or connection.head_age < self.options.slow_after

    @property
    def goes_on(self) -> bool:
        """Whether another statement may be sent behind others, just after it has answered one."""
        connection = self.connection
        return 0 < connection.pending < self.options.window and not (
            self.leaving or self.proving or connection.closed
        )

    def prove(self, limit: float, then: Callable[[], None]) -> None:
        """Ask for a sign of life; `then` is called when it came, or when the connection has ended."""
        self.proving = True

        def settled(_: Batch) -> None:
            self.proving, self.proven = False, True
            then()
            self.proven = False

        segment = Batch([], limit=limit)
        segment.on_settled = settled
        self.connection.post(segment)

    def is_clean(self) -> bool:
        """Whether the last statements left the session as it was, as far as the server tells."""
        connection = self.connection
        if connection.closed or connection.pgconn.status != ConnStatus.OK:
            return True  # it is ending, which is nobody's fault here
        if not connection.pending and connection.in_transaction:
            return False
        told = connection.pgconn.parameter_status
        return [told(name) for name in _WATCHED] == self._told

    def leave(self, now: float) -> None:
        """Give the connection back, as it was; nothing may be on its way.

        Where it carries one statement at a time, the pool gets it back when its reset was answered. On another event
        loop than its own nothing can be sent that makes it what it was: it is cut off there.
        """
        if self.left:
            return
        self.left = True
        if self._timer is not None:
            self._timer.cancel()
        connection = self.connection
        connection.refused_tags, connection.after_answers = frozenset(), None
        if not connection.at_home:
            connection.abort()
        if connection.closed:
            self.lease.release(Disposition.EVICT)
            return
        self.lease.touch(max(connection.last_answer, self.lease.acquired_at))
        if self.options.local:
            self.lease.release(self.fate)
            return
        reset = Batch(
            [Statement(sql, prepare=False) for sql in self.options.reset],
            limit=self.options.statement_timeout,
        )
        if self.options.window == 1:
            # A pooler may stop for ever where what follows does not wait for the answer.
            reset.on_settled = lambda _: self.lease.release(
                Disposition.EVICT if connection.closed else self.fate
            )
            connection.post(reset)
        else:
            # Nobody waits for it: what is next comes behind it, and where it fails there is no connection.
            connection.post(reset)
            self.lease.release(self.fate)
