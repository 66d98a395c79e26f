"""One statement of one caller, on its way over a connection that others use too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from steadypool.connect.session_settings import milliseconds
from steadypool.deadline import CLIENT_GRACE, Deadline
from steadypool.multiplex.options import MultiplexOptions
from steadypool.pipeline import Batch, Statement

if TYPE_CHECKING:
    from steadypool.multiplex.connection import SharedConnection
    from steadypool.multiplex.statement_stats import StatementStats

_LIMITS = "select set_config('statement_timeout', $1, true)"
_LOCAL_LIMITS = "select set_config('statement_timeout', $1, true), set_config('lock_timeout', $2, true)"


class Request(Batch):
    """What a caller wants, and where it stands: itself the segment that is sent, anew for each attempt.

    Args:
        sql: with `$1` placeholders.
        args: their values.
        options: the shared way's.
        timeout: seconds that the statement may run; the shared way's own by default.
        pace: what is known of the statement.
        harmless: whether running it twice does no harm.
        since: when the caller came.
        deadline: the caller's own.
    """

    attempts = 0
    told = False
    """Whether those were told of it who take statements together."""
    connection: int | None = None
    """The number of the connection that it was sent on."""
    connecting = 0.0
    """Seconds in which the connection that it was sent on was being opened, since the caller came."""
    seat: SharedConnection | None = None
    """The shared connection that it was sent on."""

    def __init__(
        self,
        sql: str,
        args: Sequence[Any],
        options: MultiplexOptions,
        pace: StatementStats,
        *,
        timeout: float | None,
        harmless: bool,
        since: float,
        deadline: Deadline | None,
    ) -> None:
        self.sql = sql
        self.args = args
        self.pace = pace
        self.timeout = timeout
        self.allowed = options.statement_timeout if timeout is None else timeout
        """Seconds that the statement may run on the server; `limit`, which is for the client, is a little more."""
        self.harmless = harmless
        self.since = since
        self.deadline = deadline
        self.prepare(options)

    @property
    def given_up(self) -> bool:
        """Whether its caller has not waited until it was settled well, and told of it by itself."""
        future = self.future
        return future is None or future.cancelled() or future.exception() is not None

    def prepare(self, options: MultiplexOptions, *, alone: bool = False) -> Request:
        """Make it ready for its next attempt; `alone` is whether its connection has no limits of shared statements."""
        statements = [Statement(self.sql, self.args)]
        if self.pace.in_no_block:
            pass  # the session has its limits, or only the client has any
        elif options.local or alone:
            limits = (milliseconds(self.allowed), milliseconds(options.lock_timeout))
            statements.insert(0, Statement(_LOCAL_LIMITS, limits))
        elif self.timeout is not None:
            statements.insert(0, Statement(_LIMITS, (milliseconds(self.allowed),)))
        self.statements = statements
        self.prelude = len(statements) - 1
        self.limit = self.allowed + CLIENT_GRACE
        self.byte_limit = options.result_limit
        self.results = []
        return self

    def again(self, options: MultiplexOptions) -> None:
        """Make it ready for another attempt: nothing of the last one is left."""
        self.prepare(options)
        self.sent = self.answered = self.repeated = False
        self.error = self.failed_at = self.future = self.on_settled = self.on_repeated = None
        self.took = 0.0
