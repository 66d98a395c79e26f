"""What happened, as facts that nobody changes. Whoever wants to know subscribes; whoever acts never waits for them.

Every event carries `at`, seconds on the pool's clock. Observers are called in order, on the event loop's thread,
and must return at once. An observer that raises is reported to the log and does not disturb the pool.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, dataclass_transform

from steadypool._callsite import Place

_log = logging.getLogger("steadypool.events")

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def fact(kind: type[T]) -> type[T]:
    """A dataclass that nobody changes, which type checkers see to.

    It is not frozen at run time: that makes an object of fourteen fields six times as dear to build, and several are
    built in every use of a connection.
    """
    return dataclass(slots=True, unsafe_hash=True)(kind)


@fact
class Event:
    """The base of all events; `pool` is the pool's name."""

    pool: str
    at: float


@fact
class ConnectStarted(Event):
    """A connection is being opened."""

    connection: int


@fact
class ConnectSucceeded(Event):
    """A connection is open, after `seconds`."""

    connection: int
    seconds: float


@fact
class ConnectAttemptFailed(Event):
    """A connection could not be opened, after `seconds`; `final` means that trying again cannot help."""

    connection: int
    seconds: float
    error: BaseException
    final: bool


@fact
class Acquired(Event):
    """A caller has a connection, after waiting `seconds`."""

    connection: int
    seconds: float
    workload: str | None


@fact
class AcquireFailed(Event):
    """A caller went without, after waiting `seconds`."""

    seconds: float
    error: BaseException
    workload: str | None


@fact
class WaitEnded(Event):
    """A caller waited for a connection, got one or went without. Told in the caller's own context.

    `Acquired` and `AcquireFailed` say the same from inside the pool, of all callers, in whatever context that was.
    This is for whoever draws the wait into the caller's trace: made only where somebody wants it, and not for
    callers who got a connection at once. Of the `seconds`, `connecting` went into opening the very connection.
    `error_type` is the error's class, or None; a cancelled caller has `CancelledError`.
    """

    seconds: float
    connecting: float = 0.0
    workload: str | None = None
    connection: int | None = None
    error_type: str | None = None
    request: str | None = None


@fact
class ConnectionLost(Event):
    """A connection died in somebody's hands. `cause` is `sqlstate.cause_of_loss`."""

    connection: int | None
    cause: str
    workload: str | None


@fact
class Released(Event):
    """A caller gave a connection back after holding it for `seconds`; `kept` is whether it stays in the pool."""

    connection: int
    seconds: float
    kept: bool


@fact
class Closed(Event):
    """A connection is gone; `reason` is one of a few fixed words (overflow, recycled, evicted, …)."""

    connection: int
    reason: str


@fact
class LeakSuspected(Event):
    """A connection has been held for `seconds`, longer than DATABASE_LEAK_AFTER. Told once a lease.

    `places` are the frames that acquired it, for `whereabouts.as_text`. `forgotten`: whoever had it never gave it
    back, and the garbage collector did, whether or not it had been held for long.
    """

    connection: int
    seconds: float
    holder: str
    workload: str | None
    places: tuple[Place, ...]
    forgotten: bool = False


@fact
class StatementFinished(Event):
    """A statement ended, well or not. It carries no value, literal or comment: the fingerprint has none.

    `summary` is its operation and table, such as `SELECT tracks`. `way` is `session`, `dedicated` or `shared`.
    `seconds` is how long it executed; `waiting` and `connecting` are what its lease cost before (0 for all but the
    first statement of a lease). `rows` were returned or affected, if that is known. `sqlstate` and `error_type` (the
    error's class) are None if it went well. `request` is what was being worked on, such as `GET /tracks/{id}`.

    It is told in the caller's own context, and made only where somebody wants it (`Events.wanted`). COMMIT is a
    statement; BEGIN, which travels with the first one, the rollback of what is given back, pings and what SQLAlchemy
    asks a new server are not.

    Statements that were quick, went well and travelled over a shared connection may be told as `StatementsFinished`
    instead, where nobody wants each of them (`Events.subscribe`).
    """

    fingerprint: str
    way: str
    seconds: float
    rows: int | None = None
    waiting: float = 0.0
    connecting: float = 0.0
    workload: str | None = None
    connection: int | None = None
    sqlstate: str | None = None
    error_type: str | None = None
    request: str | None = None
    summary: str = ""


class StatementTiming(NamedTuple):
    """One of `StatementsFinished`; times in seconds, as in `StatementFinished`."""

    fingerprint: str
    seconds: float
    waiting: float
    connecting: float
    rows: int | None


@fact
class StatementsFinished(Event):
    """Statements over a shared connection that went well, all that were answered in one turn of the event loop.

    To tell each of them would cost more than a sixth of what it takes to run it.
    """

    connection: int
    statements: list[StatementTiming]


@fact
class BreakerChanged(Event):
    """The breaker went from one state to another (`BreakerState`'s values); `reason` is what was last heard."""

    before: str
    after: str
    reason: str | None = None


@fact
class StatementTimedOut(Event):
    """A statement reached its limit of `seconds`; `fingerprint` names it without its values."""

    fingerprint: str
    seconds: float
    workload: str | None


@fact
class SessionLimitsLost(Event):
    """Sessions start without their guards, because a pooler does not let them pass; said once, with the reason."""

    reason: str


@fact
class PoolClosedEvent(Event):
    """The pool is closed; `aborted` connections were still in use when the grace time ended."""

    aborted: int


@fact
class ListenerStateChanged(Event):
    """The listener went from one state to another (`ListenerState`)."""

    before: str
    after: str


@fact
class ListenerHeartbeat(Event):
    """A notification that the listener sent to itself came back after `seconds`: its lag."""

    seconds: float


@fact
class ListenerGap(Event):
    """Notifications of a channel may have been missed since a moment."""

    channel: str
    since: float
    reason: str


@fact
class AlertRaised(Event):
    """Something needs a person's eye: `name` is the rule's, `message` says what to do, `runbook` where more stands."""

    name: str
    message: str
    runbook: str


@fact
class AlertCleared(Event):
    """What an alert was about is over, after `seconds`."""

    name: str
    seconds: float


Observer = Callable[[Event], None]


class _Entry(NamedTuple):
    observer: Observer
    kinds: tuple[type[Event], ...]
    slower_than: float


class _Wanting(dict[type[Event], tuple[Observer, ...]]):
    """Who wants events of a class, found out when somebody first asks."""

    def __init__(self, observers: list[_Entry]) -> None:
        super().__init__()
        self._observers = observers

    def __missing__(self, kind: type[Event]) -> tuple[Observer, ...]:
        found = self[kind] = tuple(x.observer for x in self._observers if issubclass(kind, x.kinds))
        return found


def _takes(kinds: tuple[type[Event], ...], some: tuple[type[Event], ...]) -> bool:
    return any(issubclass(kind, kinds) for kind in some)


class Events:
    """The list of observers of one pool.

    Example:
        >>> seen = []
        >>> events = Events()
        >>> unsubscribe = events.subscribe(seen.append)
        >>> events.emit(Closed(pool="main", at=0.0, connection=1, reason="overflow"))
        >>> unsubscribe(); len(seen)
        1
    """

    def __init__(self) -> None:
        self._observers: list[_Entry] = []
        self._wanting = _Wanting(self._observers)
        self.quick = math.inf
        """Statements that take longer, in seconds, are to be told one by one: somebody wants each of them."""

    def subscribe(
        self, observer: Observer, *kinds: type[Event], slower_than: float = 0.0
    ) -> Callable[[], None]:
        """Call `observer` with every event from now on, until the function that this returns is called.

        Args:
            observer: called with each event.
            *kinds: the classes of events that it wants; all if none is named. Whoever names them keeps events that
                cost something (`StatementFinished`) from being made for nobody.
            slower_than: seconds; whoever needs no `StatementFinished` of a statement that went well in less, keeps
                those from being made, too. They are told together as `StatementsFinished`.
        """
        entry = _Entry(observer, kinds or (Event,), slower_than)
        self._observers.append(entry)
        self._look_anew()

        def unsubscribe() -> None:
            if entry in self._observers:
                self._observers.remove(entry)
                self._look_anew()

        return unsubscribe

    def _look_anew(self) -> None:
        self._wanting.clear()
        each = (StatementFinished, WaitEnded)
        self.quick = min((x.slower_than for x in self._observers if _takes(x.kinds, each)), default=math.inf)

    def wanted(self, kind: type[Event]) -> bool:
        """Whether anybody wants to know of such events; ask before making one that costs something."""
        return bool(self._wanting[kind])

    def emit(self, event: Event) -> None:
        """Tell every observer that wants it."""
        for observer in self._wanting[type(event)]:
            try:
                observer(event)
            except Exception:  # noqa: BLE001 - an observer's bug must not become the pool's
                _log.exception("an observer of pool events raised on %r", event)
