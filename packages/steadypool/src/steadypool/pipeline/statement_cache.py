"""What a connection knows about the statements it has seen: which are prepared, and how their results may travel.

A statement is prepared when it comes for the second time, because many come only once. It is registered when the
server has confirmed it; until then others send theirs in full.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from enum import Enum

import psycopg
from psycopg import postgres
from psycopg.adapt import AdaptersMap
from psycopg.pq import Format, abc

from steadypool._sql.lexer import first_word
from steadypool._sql.session_state import Changes, touches
from steadypool._sql.texts import encoded
from steadypool.pipeline.batch import Names

_STALE = frozenset({"26000", "0A000", "42P05"})
"""SQLSTATEs by which a prepared statement is not, or no longer, what it was; 42P05: its name is another's."""


MADE_STALE = _STALE | {"XX000"}
"""What made one statement stale has most likely made others; XX000: a type is gone."""

_RETYPED = frozenset({"42804", "42846", "42883"})
"""SQLSTATEs of a statement that no longer fits the types of its parameters, which the server took from the tables when
it was prepared: a column has another type now (datatype mismatch, cannot coerce, undefined function)."""

_READS_PARAMETER = frozenset(
    {"getTypeInputInfo", "getTypeBinaryInputInfo", "enum_in", "enum_recv", "domain_in", "domain_recv"}
)
"""Where the server fails (PostgreSQL's lsyscache.c, enum.c) to read a parameter whose type was dropped or replaced."""


_NOT_THE_SAME = frozenset({18, 700, 1186, 2249})
"""Types that psycopg reads differently in the two formats: `"char"` (an empty one), real (in binary with digits that
were never written), record (in text its fields are strings), interval (in binary an infinite
one is taken for none)."""


_NAMES_ANOTHER = frozenset({"fetch", "execute"})
"""What fetches from a cursor, or executes what was prepared by hand, has the columns of whatever has that name now;
where those change, the server gives others without a word."""

_LONGEST = 65_536
"""Characters of a statement that is remembered: a longer one is sent in full each time."""


class State(Enum):
    """What the server knows of a statement."""

    UNKNOWN = "unknown"
    PREPARING = "preparing"
    READY = "ready"


class Step(Enum):
    """What one command of libpq's queue is for."""

    PREPARE = "prepare"
    CLOSE = "close"
    RUN = "run"
    EXTRA = "extra"
    """A statement of our own before the segment's, whose result nobody asked for."""


class CachedStatement:
    """A statement with types of parameters."""

    __slots__ = (
        "binary",
        "columns",
        "key",
        "name",
        "named",
        "preparer",
        "seen",
        "sql",
        "state",
        "steps",
        "touches",
    )

    def __init__(self, key: tuple[str, tuple[int, ...] | None], encoding: str) -> None:
        self.key = key
        self.sql = encoded(key[0], encoding)
        self.touches = touches(key[0])
        """Whether running it may change the session beyond its transaction."""
        self.name = b""
        self.seen = 0
        self.state = State.UNKNOWN
        self.preparer: object = None
        """Whose Parse is on its way: what comes after it there may count on it already."""
        self.binary: bool | None = None
        """Whether its rows may travel in binary; None until a result was seen."""
        self.steps: list[tuple[Step, CachedStatement | None, int]] = [(Step.RUN, self, 0)]
        self.named: dict[int, CachedStatement] = {0: self}
        """What a flight consists of that only runs it; shared by all such flights, and never changed."""
        self.columns: Names | None = None
        """The names of its columns while it is prepared: the server refuses it (0A000) where they would change."""


def is_stale(error: psycopg.Error, known: CachedStatement) -> bool:
    """Whether the server refused the prepared statement itself, since it is gone or means something else now.

    What a statement runs can raise the same codes, when it has done half of its work and committed it: a procedure.
    Then the message has a context, or does not name the statement. A changed result has no name in its message,
    which is translated; where it comes from is not (PostgreSQL's plancache.c, and as pgjdbc tells it). The context of
    a parameter that cannot be read is one line with the parameter's number.
    """
    context = error.diag.context
    if error.diag.source_function in _READS_PARAMETER:
        return context is None or ("$" in context and "\n" not in context)
    if context is not None:
        return False
    if error.sqlstate not in _STALE:
        return error.sqlstate in _RETYPED
    if error.sqlstate == "0A000":
        return error.diag.source_function == "RevalidateCachedQuery"
    return known.name.decode() in (error.diag.message_primary or "")


class StatementCache:
    """The statements of one connection, the least recently used forgotten first.

    Args:
        adapters: the connection's: which types have which loaders.
        keeps: whether a statement stays where it was prepared; not so behind a transaction pooler.
        size: how many are remembered.
    """

    def __init__(self, adapters: AdaptersMap, *, keeps: bool = True, size: int = 128) -> None:
        self.keeps = keeps
        self.encoding = "utf-8"
        """The connection's, by Python's name."""
        self.stale_names: list[bytes] = []
        """What the server may forget; `to_close` takes it."""
        self.changes = Changes()
        """What the statements that were looked up may have left in the session; a reset clears it."""
        self._adapters = adapters
        self._size = size
        self._known: OrderedDict[tuple[str, tuple[int, ...] | None], CachedStatement] = OrderedDict()
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._known)

    def look_up(self, sql: str, types: tuple[int, ...] | None) -> CachedStatement | None:
        """What is known of a statement, seen once more; None where nothing that was known would hold."""
        key = (sql, types)
        known = self._known.get(key)
        if known is None:
            if len(sql) > _LONGEST or first_word(sql) in _NAMES_ANOTHER:
                if touches(sql):
                    self.changes.add(sql)
                return None
            known = self._known[key] = CachedStatement(key, self.encoding)
            if len(self._known) > self._size:
                self._forget_oldest()
        else:
            self._known.move_to_end(key)
        known.seen += 1
        if known.touches:
            self.changes.add(sql)
        return known

    def begin(self, known: CachedStatement, preparer: object) -> bool:
        """Whether it is to be prepared now; then it has a name."""
        if not self.keeps or known.seen < 2 or known.state is not State.UNKNOWN:
            return False
        known.state, known.name = State.PREPARING, b"steadypool_%d" % next(self._numbers)
        known.preparer = preparer
        known.binary = (
            None  # what it returned before may have been changed meanwhile; from here on it cannot be
        )
        return True

    def prepared(self, known: CachedStatement, *, done: bool) -> None:
        """The server has answered a Parse."""
        known.state = State.READY if done else State.UNKNOWN
        known.columns = None
        known.preparer = None

    def forget(self, known: CachedStatement) -> None:
        """Drop it: it is prepared anew when it is needed."""
        self._drop(known)
        if self._known.get(known.key) is known:  # others may have met it too, and made a new one
            del self._known[known.key]

    def forget_all(self) -> None:
        """What they return may have changed."""
        for known in tuple(self._known.values()):
            if known.state is State.READY:
                self.forget(known)

    def encode_anew(self, encoding: str) -> None:
        """Take another encoding; what is known was sent in the one before."""
        if encoding != self.encoding:
            self.encoding = encoding
            self.forget_all()
            self._known.clear()

    def deallocated(self, *, one: bool) -> None:
        """Forget all, since the server has: after DEALLOCATE or DISCARD ALL; `one` of them, it does not say which."""
        self.forget_all()
        if not one:
            self.stale_names.clear()

    def look_anew(self) -> None:
        """The connection was in other hands, which may have registered loaders."""
        for known in self._known.values():
            known.binary = None

    def to_close(self) -> list[bytes]:
        """Names that the server may forget; told once."""
        names, self.stale_names = self.stale_names, []
        return names

    def saw(self, known: CachedStatement, result: abc.PGresult) -> None:
        """Its first result: from the next execution on in binary, if every type has psycopg's own loaders for it."""
        columns = range(result.nfields)
        known.binary = bool(columns) and all(self._travels_in_binary(result.ftype(i)) for i in columns)

    def _travels_in_binary(self, oid: int) -> bool:
        """Whether text and binary give the same value: only where nobody put a loader of their own in the place of one.

        With a loader for one format only, a column would change its type from one execution to the next.
        """
        own, stock = self._adapters, _stock_adapters
        info = own.types.get(oid)
        if info is not None and info.array_oid == oid and info.oid != oid:
            # psycopg has binary loaders for arrays of anything; they read as well as those of the elements do.
            return self._travels_in_binary(info.oid)
        if oid in _NOT_THE_SAME:
            return False
        binary = own.get_loader(oid, Format.BINARY)
        return (
            binary is not None
            and binary is stock.get_loader(oid, Format.BINARY)
            and own.get_loader(oid, Format.TEXT) is stock.get_loader(oid, Format.TEXT)
        )

    def _forget_oldest(self) -> None:
        for known in self._known.values():
            if known.state is not State.PREPARING:
                self.forget(known)
                return

    def _drop(self, known: CachedStatement) -> None:
        if known.state is State.READY:
            self.stale_names.append(known.name)
        known.state, known.name, known.binary, known.columns = State.UNKNOWN, b"", None, None


class _Stock:
    """psycopg's own adapters, whatever the program has registered globally since."""

    def __init__(self) -> None:
        self.adapters = AdaptersMap(types=postgres.types)
        self.connection = None
        postgres.register_default_adapters(self)


_stock_adapters = _Stock().adapters
