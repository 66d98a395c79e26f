"""The shared way, as `Database` offers it: single statements, for which nobody has to hold a connection."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sqlalchemy import Engine, Executable, event
from sqlalchemy.ext.asyncio import AsyncEngine

from steadypool._rows import Row, row_type, size_of
from steadypool._sql.session_state import RESET
from steadypool.database.checkout import holds_a_connection
from steadypool.database.connection import Connection
from steadypool.errors import ConnectionLost, Phase, Report
from steadypool.multiplex import eligibility
from steadypool.pool import rejections
from steadypool.settings.database import DatabaseSettings
from steadypool.sqlalchemy.compiler import Compiled, Compiler
from steadypool.sqlalchemy.pool import SteadyPool

if TYPE_CHECKING:  # what a driver without pipelines does not have to be able to import
    from steadypool.multiplex.multiplexer import Multiplexer
    from steadypool.multiplex.options import MultiplexStats

Ran = TypeVar("Ran", Sequence[Row], str)
"""What a statement gives: rows or its command tag."""


class Sharing:
    """The part of `Database` that runs single statements.

    Over `postgresql+steadypool` they travel together with those of other callers, one round trip each. Over the
    other drivers each has a connection and a transaction of its own for as long as it takes, with the same limits;
    there a result is in memory before its size is known.
    """

    settings: DatabaseSettings
    engine: AsyncEngine
    _way: Multiplexer | None = None
    _compiler: Compiler | None = None
    _follows: bool = False

    @property
    def pool(self) -> SteadyPool:
        """The engine's pool."""
        raise NotImplementedError

    def connection(
        self, *, workload: str | None = None, statement_timeout: float | None = None
    ) -> AbstractAsyncContextManager[Connection]:
        """A connection of one's own until the block ends."""
        raise NotImplementedError

    def _limited(
        self, statement_timeout: float, lock_timeout: float
    ) -> AbstractAsyncContextManager[Connection]:
        """The same with these limits, in seconds; each statement is a transaction with them."""
        raise NotImplementedError

    async def fetch(
        self,
        sql: str | Executable,
        *args: Any,
        timeout: float | None = None,
        read_only: bool = False,
        idempotent: bool = False,
    ) -> Sequence[Row]:
        """All rows of one statement, which is a transaction of its own.

        Args:
            sql: one statement with `$1` placeholders; none that outlives itself in a session (BEGIN, SET, LISTEN, …).
                Or one of SQLAlchemy's; best made once, with `bindparam()` for what changes: to build one takes longer
                than to send it.
            *args: their values; for a statement of SQLAlchemy's one mapping of its `bindparam()`s' names to values.
            timeout: seconds that the statement may run; DATABASE_SHARED_STATEMENT_TIMEOUT by default.
            read_only: it changes nothing: if the connection is lost, it is sent again.
            idempotent: running it twice does no harm: if the connection is lost, it is sent again.

        Raises:
            errors.NotMultiplexable: what it does would reach others, or the text holds several statements.
            errors.StatementTimeout: it ran longer than its limit, or waited too long for a lock.
            errors.DeadlineExceeded: the caller's deadline passed; `maybe_executed` is false where it was not sent.
            errors.ConnectionLost: the connection died.
            errors.ResultTooLarge: more than DATABASE_SHARED_RESULT_LIMIT.
            errors.ConfigurationError: a statement of SQLAlchemy's that only a session can run.

        Example:
            >>> rows = await db.fetch("select id, title from tracks where artist = $1", 7, read_only=True)
            >>> [row["title"] for row in rows]
            >>> BY_ARTIST = select(Track.id, Track.title).where(Track.artist == bindparam("artist"))
            >>> await db.fetch(BY_ARTIST, {"artist": 7}, read_only=True)
        """
        return await self._fetch(sql, args, timeout, read_only or idempotent)

    async def _fetch(
        self, sql: str | Executable, args: Sequence[Any], timeout: float | None, harmless: bool
    ) -> Sequence[Row]:
        if not isinstance(sql, str):
            compiled = self._compiled(sql, args)
            return compiled.rows(await self._fetch(compiled.sql, compiled.args, timeout, harmless))
        way = self._way or self._shared()
        if way is None:
            return await self._alone(sql, lambda its: its.fetch(sql, *args), timeout, harmless)
        result = await way.run(sql, args, timeout=timeout, harmless=harmless)
        return result.rows(row_type(result.names))

    async def fetchrow(
        self,
        sql: str | Executable,
        *args: Any,
        timeout: float | None = None,
        read_only: bool = False,
        idempotent: bool = False,
    ) -> Row | None:
        """The first row, or None; otherwise as `fetch`."""
        rows = await self._fetch(sql, args, timeout, read_only or idempotent)
        return rows[0] if rows else None

    async def fetchval(
        self,
        sql: str | Executable,
        *args: Any,
        timeout: float | None = None,
        read_only: bool = False,
        idempotent: bool = False,
    ) -> Any:
        """The first column of the first row, or None; otherwise as `fetch`."""
        rows = await self._fetch(sql, args, timeout, read_only or idempotent)
        return rows[0][0] if rows else None

    async def execute(
        self, sql: str | Executable, *args: Any, timeout: float | None = None, idempotent: bool = False
    ) -> str:
        """Run one statement and return its command tag, such as `INSERT 0 1`; otherwise as `fetch`."""
        if not isinstance(sql, str):
            compiled = self._compiled(sql, args)
            return await self.execute(compiled.sql, *compiled.args, timeout=timeout, idempotent=idempotent)
        way = self._way or self._shared()
        if way is None:
            return await self._alone(sql, lambda its: its.execute(sql, *args), timeout, idempotent)
        return (await way.run(sql, args, timeout=timeout, harmless=idempotent)).tag

    async def fetch_iter(self, sql: str | Executable, *args: Any, batch: int = 500) -> AsyncGenerator[Row]:
        """The rows of a query one after the other, `batch` of them in memory; for results without a limit.

        It has a connection of its own, in a transaction, until the last row was read or the generator is closed:
        leave the loop early only inside `contextlib.aclosing`.

        Example:
            >>> async for row in db.fetch_iter("select * from plays order by at"):
            ...     ...
        """
        query = Compiled(sql, args, ()) if isinstance(sql, str) else self._compiled(sql, args)
        _check(query.sql)
        async with self.connection() as connection, connection.transaction():
            await connection.execute(f"DECLARE steadypool_rows NO SCROLL CURSOR FOR {query.sql}", *query.args)
            while rows := await connection.fetch(f"FETCH FORWARD {batch:d} FROM steadypool_rows"):
                for row in query.rows(rows):
                    yield row

    def _used(self) -> None:
        """A statement goes over a connection that is shared."""

    def _compiled(self, statement: Executable, args: Sequence[Any]) -> Compiled:
        if len(args) > 1 or not all(isinstance(given, Mapping) for given in args):
            raise TypeError("the values for a statement of SQLAlchemy's are one mapping, name to value")
        if self._compiler is None:
            self._compiler = Compiler(cast(Any, self.pool.dialect))
        return self._compiler(statement, *args)

    async def _alone(
        self, sql: str, run: Callable[[Connection], Awaitable[Ran]], timeout: float | None, harmless: bool
    ) -> Ran:
        """Run it on a connection that it has for itself, within the limits that the others have together."""
        _check(sql)
        eligibility.check_timeout(timeout)
        s = self.settings
        attempts = 0
        while True:
            attempts += 1
            try:
                async with self._limited(
                    timeout or s.shared_statement_timeout, s.shared_lock_timeout
                ) as connection:
                    result = await run(connection)
            except ConnectionLost:
                if not harmless or attempts == eligibility.ATTEMPTS:
                    raise
            else:
                break
        if not isinstance(result, str) and size_of(result) > s.shared_result_limit:
            raise rejections.too_large(
                sql, s.shared_result_limit, Report(Phase.EXECUTING, maybe_executed=True)
            )
        return result

    def _shared(self) -> Multiplexer | None:
        """The way itself; None over drivers that have none, or where it is turned off."""
        pool = self.pool
        if self._way is None and pool.dialect.driver == "steadypool" and self.settings.shared_connections:
            from steadypool.multiplex.multiplexer import Multiplexer
            from steadypool.multiplex.options import RESET_LIMITS, MultiplexOptions

            s, resets = self.settings, pool.session_reset
            posts_reset = resets is not None and resets.can_post(pool)
            self._way = Multiplexer(
                pool.core,
                pipelined=lambda record: record.driver_connection,
                options=MultiplexOptions(
                    connections=s.shared_connections,
                    window=s.shared_window,
                    statement_timeout=s.shared_statement_timeout,
                    lock_timeout=s.shared_lock_timeout,
                    result_limit=s.shared_result_limit,
                    prove_after=s.ping_after_idle,
                    reset=RESET if posts_reset else RESET_LIMITS,
                ),
                holds=holds_a_connection,
                used=self._used,
                pooled=lambda: pool.dialect.pooler_watch.behind_pooler,
                carries_two=lambda: setattr(pool.dialect.pooler_watch, "carries_two", True),
            )
            pool.sharer = self._way
            if not self._follows:
                self._follows = True
                event.listen(self.engine.sync_engine, "engine_disposed", self._follow)
        return self._way

    def _follow(self, _engine: Engine) -> None:
        """The engine was disposed of, and has another pool now."""
        way = self._way
        if way is not None and way.pool.at_home:
            way.move_to(self.pool.core)
            self.pool.sharer = way
        elif way is not None:
            self._way = None  # it stays with the other event loop; here a new one begins

    async def _close_shared(self, grace: float | None) -> None:
        if self._way is not None:
            await self._way.close(self.settings.close_grace if grace is None else grace)

    def _shared_facts(self) -> dict[str, Any] | None:
        """What the live page shows of it; None where it was not used."""
        stats = self._shared_stats()
        if stats is None:
            return None
        return asdict(stats) | {
            "window": self.settings.shared_window,
            "most_connections": self.settings.shared_connections,
        }

    def _shared_stats(self) -> MultiplexStats | None:
        return None if self._way is None else self._way.stats()


def _check(sql: str) -> None:
    """What one driver refuses, all refuse."""
    why = eligibility.refusal(sql)
    if why is not None:
        raise rejections.not_for_sharing(sql, why)
