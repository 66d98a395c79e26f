"""Every error a user of steadypool can meet. Pure: imports nothing of the library.

All of them descend from `SteadypoolError`, which is never raised itself, and all of them carry a `Report`: in
which phase it happened, how long each phase took, whether trying again can help, whether the statement may have
run, and what the pool looked like at that moment.

| error | also is a | when | HTTP |
| --- | --- | --- | --- |
| `PoolTimeout` | `TimeoutError` | no connection became free in time | 503 |
| `PoolQueueFull` | `PoolTimeout` | more callers wait than `DATABASE_MAX_WAITING` | 503 |
| `ConnectFailed` | | the database could not be reached or refused | 503 |
| `ConnectTimeout` | `ConnectFailed`, `TimeoutError` | it did not answer in time | 503 |
| `DatabaseUnavailable` | `ConnectFailed` | recent attempts failed; not even tried | 503 |
| `HookFailed` | | the application's own code failed while a connection was being opened | 500 |
| `StatementTimeout` | | a statement ran longer than its limit | 504 |
| `DeadlineExceeded` | `TimeoutError` | the caller's own end of time | 503, executing 504 |
| `ConnectionLost` | | the connection died while in use | 503 |
| `CommitUnknown` | `ConnectionLost` | it died between COMMIT and its answer | 503 |
| `TransactionRolledBack` | | COMMIT was answered by ROLLBACK | 500 |
| `NotMultiplexable` | | a statement that would change a connection which others share | 500 |
| `ResultTooLarge` | | more than a shared connection carries | 500 |
| `InvalidText` | `ValueError` | a text that cannot be sent: a NUL, or a character that the encoding lacks | 500 |
| `HeartbeatMissed` | `ConnectionLost` | the listening connection gave no answer | |
| `NotificationsBlocked` | | a pooler swallows notifications | 500 |
| `ConcurrentTransaction` | `RuntimeError` | a second transaction at the same time on one connection | 500 |
| `PoolClosed` | | the pool was closed | 503 |
| `WrongEventLoop` | `RuntimeError` | used from another event loop or a forked child | 500 |
| `ConfigurationError` | `ValueError` | a setting or a URL cannot work | 500 |

`steadypool.sqlalchemy` has subclasses of these that are SQLAlchemy's exceptions too, so that code which catches
either keeps working.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar, Self

from steadypool._printable import printable


class Phase(StrEnum):
    """What the library was doing for the caller when the error happened."""

    WAITING = "waiting"
    """All connections were in use."""
    CONNECTING = "connecting"
    """A connection was being opened."""
    EXECUTING = "executing"
    """A statement was on its way or running."""
    CLOSING = "closing"
    """The pool was closing or closed."""


@dataclass(frozen=True, slots=True)
class Elapsed:
    """Seconds spent in each phase before the error."""

    waiting: float = 0.0
    connecting: float = 0.0
    executing: float = 0.0

    @property
    def total(self) -> float:
        """Seconds in all phases together."""
        return self.waiting + self.connecting + self.executing


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has had a connection, and for how long (seconds)."""

    name: str
    seconds: float
    workload: str | None = None


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """The pool at one moment, in connections and callers.

    `expected_wait` is how many seconds one who comes now would wait, on average, going by how long connections were
    held lately; None where that is not known, or where it is the server that keeps callers waiting.
    """

    size: int
    max_overflow: int
    leased: int = 0
    idle: int = 0
    opening: int = 0
    closing: int = 0
    waiting: int = 0
    holders: tuple[Holder, ...] = ()
    last_connect_failure: str | None = None
    expected_wait: float | None = None

    @property
    def utilization(self) -> float:
        """Connections in use over `pool_size`: above 1 the overflow is in use."""
        return self.leased / self.size if self.size else 0.0

    def __str__(self) -> str:
        """One line for a log: counts first, then the three longest holders."""
        counts = (
            f"{self.leased} in use, {self.idle} idle, {self.opening} opening, {self.closing} closing, "
            f"{self.waiting} waiting, limit {self.size}+{self.max_overflow}, utilization {self.utilization:.0%}"
        )
        if self.expected_wait is not None:
            counts += f", expected wait {self.expected_wait:.2f}s"
        longest = sorted(self.holders, key=lambda holder: -holder.seconds)[:3]
        if not longest:
            return counts
        return counts + "; held longest: " + ", ".join(f"{h.name} {h.seconds:.1f}s" for h in longest)


@dataclass(frozen=True, slots=True)
class Report:
    """What an error knows beyond its message.

    `deadline` and `retry_after` are seconds; `None` means that there was no deadline, or that nothing sensible
    can be said about when to come back. `early` is true for a caller who was turned away before its time was over,
    since it could not be served in time.
    """

    phase: Phase = Phase.WAITING
    elapsed: Elapsed = field(default_factory=Elapsed)
    deadline: float | None = None
    retry_after: float | None = None
    maybe_executed: bool = False
    pool: PoolSnapshot | None = None
    early: bool = False


class SteadypoolError(Exception):
    """The base of all; never raised itself, only caught.

    Example:
        >>> try:
        ...     raise PoolClosed("the pool is closed")
        ... except SteadypoolError as error:
        ...     print(error.retryable, error.phase)
        False waiting
    """

    retryable: ClassVar[bool] = False
    """Whether the same call may succeed later. Says nothing about safety: see `maybe_executed`."""

    def __init__(self, message: str, report: Report | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.report = report or Report()

    def __str__(self) -> str:
        """The message, and the command that says what it means and what to do."""
        return f"{self.message} [steadypool why {self.topic}]"

    @property
    def topic(self) -> str:
        """What `steadypool why` is asked: the name of the nearest class of this module."""
        return next(kind.__name__ for kind in type(self).__mro__ if kind.__module__ == __name__)

    @property
    def phase(self) -> Phase:
        """What was being done for the caller."""
        return self.report.phase

    @property
    def elapsed(self) -> Elapsed:
        """Seconds spent waiting, connecting and executing."""
        return self.report.elapsed

    @property
    def deadline(self) -> float | None:
        """The deadline the caller had set, in seconds from its start, or None."""
        return self.report.deadline

    @property
    def retry_after(self) -> float | None:
        """Seconds after which trying again makes sense, or None."""
        return self.report.retry_after

    @property
    def maybe_executed(self) -> bool:
        """Whether the database may have carried out what was asked."""
        return self.report.maybe_executed

    @property
    def pool(self) -> PoolSnapshot | None:
        """The pool at the moment of the error, or None where no pool was involved."""
        return self.report.pool

    def with_report(self, **changes: object) -> Self:
        """Replace fields of the report, in place, and return the error."""
        self.report = replace(self.report, **changes)  # pyright: ignore[reportArgumentType]
        return self


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was made from, and so on; twenty at most, since causes may go round in a circle."""
    for _ in range(20):
        if error is None:
            return
        yield error
        error = error.__cause__


def words_of(failure: BaseException) -> str:
    """What an error says, for a message that quotes it: without the hint; the name of its kind if it says nothing.

    Example:
        >>> words_of(PoolClosed("the pool is closed")), words_of(OSError())
        ('the pool is closed', 'OSError')
    """
    said = failure.message if isinstance(failure, SteadypoolError) else str(failure)
    return printable(said.strip(), keep="\n") or type(failure).__name__


class PoolTimeout(SteadypoolError, TimeoutError):
    """No connection became free in time."""

    retryable = True


class PoolQueueFull(PoolTimeout):
    """So many callers wait already that one more would not be served in time."""


class ConnectFailed(SteadypoolError):
    """A connection could not be opened; the message lists each address with what it said.

    `final` is true where trying again cannot help until somebody changes something: a wrong password, a database
    that does not exist, a certificate that is not trusted.
    """

    retryable = True

    def __init__(self, message: str, report: Report | None = None, *, final: bool = False) -> None:
        super().__init__(message, report)
        self.final = final


class ConnectTimeout(ConnectFailed, TimeoutError):
    """A connection was not open in time: names, network, TLS and log-in together."""


class DatabaseUnavailable(ConnectFailed):
    """Recent attempts to connect failed, so this one was not made."""


class HookFailed(SteadypoolError):
    """Code that runs while a connection is opened has a bug: `on_connect`, an event handler, a creator.

    Neither the network nor the server had a part in it, so it is no outage and the breaker is not told. What was
    raised is the cause of this error; who asked for the connection gets it at once.
    """


class StatementTimeout(SteadypoolError):
    """A statement ran longer than its limit and was ended on the server."""


class DeadlineExceeded(SteadypoolError, TimeoutError):
    """The caller's own deadline passed."""

    retryable = True


class ConnectionLost(SteadypoolError):
    """The connection died while it was in use."""

    retryable = True


class CommitUnknown(ConnectionLost):
    """The connection was lost after COMMIT was sent. It may have taken effect; only its effect can tell."""

    retryable = False


class HeartbeatMissed(ConnectionLost):
    """The listening connection did not answer in time; it is replaced."""


class NotificationsBlocked(SteadypoolError):
    """Notifications do not arrive, because a transaction pooler stands in between."""


class TransactionRolledBack(SteadypoolError):
    """COMMIT was answered by ROLLBACK: a statement had failed before, and nobody noticed."""

    @classmethod
    def at_commit(cls) -> Self:
        """The error for whoever sent the COMMIT."""
        return cls(
            "COMMIT was answered by ROLLBACK: a statement in the transaction had failed, and its error "
            "was not let through",
            Report(Phase.EXECUTING),
        )


class NotMultiplexable(SteadypoolError):
    """A statement that does not belong on a shared connection: what it leaves behind would reach other callers.

    It was not sent, unless `maybe_executed` says so: then it was found out by what it did, and was undone with the
    connection, as far as it was not committed.
    """


class ResultTooLarge(SteadypoolError):
    """A result larger than a shared connection carries; it was thrown away as it came. What it changed is done."""


class InvalidText(SteadypoolError, ValueError):
    """A text that was not sent: it has a NUL, or a character that the connection's encoding lacks."""


class ConcurrentTransaction(SteadypoolError, RuntimeError):
    """A transaction was begun on a connection while another task was in one there; nothing was sent."""


class PoolClosed(SteadypoolError):
    """The pool is closed, or was closed while the caller waited."""


class WrongEventLoop(SteadypoolError, RuntimeError):
    """A pool belongs to the event loop, and the process, that first used it."""


class ConfigurationError(SteadypoolError, ValueError):
    """A setting or a URL that cannot work; says which one, its value, and what is allowed."""
