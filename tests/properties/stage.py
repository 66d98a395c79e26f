"""Users of an engine who take their steps one after the other, and what is to be seen at each."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psycopg
from sqlalchemy import exc, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from steadypool import errors

from .steps import CHANGES, LOCAL, LOOK, MISTAKES, READS, SCHEMA, SETTINGS, USERS, VALUES, WRITES, Step

PATIENCE = 20.0
"""Seconds after which something that should have happened never will."""

STATEMENTS = {
    "read": READS,
    "value": VALUES,
    "write": WRITES,
    "mistake": MISTAKES,
    "set": SETTINGS,
    "local": LOCAL,
}
DISTURBING = frozenset({"cancel", "cancel and close", "stop", "kill"})
NEVER_WAITS = frozenset({"value", "look", "set", "local", "commit", "rollback", "close"})
"""What may be done while another waits for a lock: nothing else that could wait, so nothing ends in a deadlock."""
STALE = frozenset({"0A000", "26000"})
"""A prepared statement relies on what was changed: `cached plan must not change result type`, or it is gone."""
ISOLATION = {"autocommit": "AUTOCOMMIT", "repeatable": "REPEATABLE READ", "serializable": "SERIALIZABLE"}
CLEAN = (
    "reset role",
    "reset all",
    "select pg_advisory_unlock_all()",
    "discard temp",
    "unlisten *",
    "close all",
)

Outcome = tuple[Any, ...]
WAITS: Outcome = ("waits",)
CANCELLED: Outcome = ("cancelled",)
LOST: Outcome = ("lost",)
ROLLED_BACK: Outcome = ("committed", "TransactionRolledBack")


class Seen(NamedTuple):
    """A step, how it went, and which locks were held then. Steps that waited are seen again when they end."""

    step: str
    outcome: Outcome
    locks: tuple[str, ...]


def outcome_of(error: BaseException) -> Outcome:
    """What an error is on every engine."""
    if isinstance(error, exc.DBAPIError):
        if error.connection_invalidated or isinstance(error, errors.ConnectionLost):
            return LOST
        return type(error).__name__, sqlstate_of(error)
    return (type(error).__name__,)


def sqlstate_of(error: BaseException) -> str | None:
    original = getattr(error, "orig", None)
    return getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)


class Watcher:
    """Looks into a database from outside."""

    def __init__(self, connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
        self._connection = connection

    @classmethod
    async def connect(cls, url: str) -> Watcher:
        connection = await psycopg.AsyncConnection.connect(url, autocommit=True, application_name="watcher")
        return cls(connection)

    async def close(self) -> None:
        await self._connection.close()

    async def rows(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        cursor = await self._connection.execute(sql.encode(), arguments or None)
        return await cursor.fetchall() if cursor.description else []

    async def value(self, sql: str, *arguments: object) -> Any:
        return (await self.rows(sql, *arguments))[0][0]

    async def someone_waits(self) -> bool:
        """Whether a backend waits for a lock that another one holds."""
        return await self.value(f"select exists (select {_LOCKS} and not granted)")

    async def locks(self) -> tuple[str, ...]:
        """The locks that others could meet; a plain read's keep out nobody but who alters the table."""
        return tuple(
            row[0]
            for row in await self.rows(
                "select concat_ws(' ', coalesce(regexp_replace(relname, '[0-9]+', 'N'), locktype), mode, objid)"
                f" {_LOCKS.replace('where', _NAMES)} and granted and mode <> 'AccessShareLock'"
                " and locktype in ('relation', 'advisory', 'transactionid')"
                " and (relation is null or relation >= 16384) order by 1"
            )
        )

    async def backends(self) -> int:
        return await self.value(f"select count(*) from pg_stat_activity a where {_OTHERS}")

    async def transactions(self) -> int:
        """How many of the others are in a transaction."""
        return await self.value(
            f"select count(*) from pg_stat_activity a where {_OTHERS} and state <> 'idle'"
        )

    async def end(self, pids: Sequence[int] | None) -> None:
        """End these backends, or all the others, and wait until they are gone."""
        if pids is None:
            pids = [pid for (pid,) in await self.rows(f"select pid from pg_stat_activity a where {_OTHERS}")]
        await self.rows("select pg_terminate_backend(pid) from unnest(%s::int[]) pid", list(pids))
        for pid in pids:
            await self.until(lambda pid=pid: self.is_gone(pid), "a backend ends")

    async def is_gone(self, pid: int) -> bool:
        return not await self.rows("select 1 from pg_stat_activity where pid = %s", pid)

    async def until(self, condition: Any, what: str) -> None:
        """Ask until it holds."""
        end = asyncio.get_running_loop().time() + PATIENCE
        while not await condition():
            assert asyncio.get_running_loop().time() < end, f"never: {what}"
            await asyncio.sleep(0.002)

    async def contents(self) -> dict[str, list[tuple[Any, ...]]]:
        """What was committed, as text, and the types of the columns."""
        tables = ("shared", "other.shared", "children", "parents", *(f"notes_{user}" for user in USERS))
        found = {table: await self.rows(f"select t::text from {table} t order by 1") for table in tables}
        found["columns"] = await self.rows(
            "select attrelid::regclass::text, attname::text, atttypid::regtype::text from pg_attribute"
            " where attnum > 0 and not attisdropped and attrelid in (select oid from pg_class"
            " where relnamespace in ('public'::regnamespace, 'other'::regnamespace) and relkind = 'r') order by 1, 2"
        )
        return found


_OTHERS = (
    "a.datname = current_database() and a.backend_type = 'client backend' and a.application_name <> 'watcher'"
)
_LOCKS = f"from pg_locks l join pg_stat_activity a using (pid) where {_OTHERS}"
_NAMES = "left join pg_class c on c.oid = l.relation where"


class Actor:
    """A task that takes one step after the other, as it is told.

    Args:
        take: takes a step, and returns how that went.
    """

    def __init__(self, take: Callable[[Step], Awaitable[Outcome]]) -> None:
        self._take = take
        self._orders: asyncio.Queue[tuple[Step, asyncio.Future[Outcome]]] = asyncio.Queue()
        self.task = asyncio.create_task(self._work())

    def order(self, step: Step) -> asyncio.Future[Outcome]:
        """Let it take a step; returns how that goes."""
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._orders.put_nowait((step, done))
        return done

    def cancel(self) -> None:
        """Cancel the task, in the middle of its step; it goes on with the next."""
        self.task.cancel()

    async def leave(self) -> None:
        """End the task, between steps."""
        self.task.cancel()
        await asyncio.wait({self.task})

    async def _work(self) -> None:
        while True:
            step, done = await self._orders.get()
            try:
                outcome = await self._take(step)
            except asyncio.CancelledError:
                outcome = CANCELLED
            except BaseException as error:
                done.set_exception(error)
                raise
            done.set_result(outcome)


class User:
    """Somebody with a connection or a session of her own."""

    def __init__(self, name: str, stage: Stage) -> None:
        self.name = name
        self.holder: AsyncConnection | AsyncSession | None = None
        self.kind = ""
        self.waits: asyncio.Future[Outcome] | None = None
        self.pid = 0
        self._stage = stage
        self._savepoints: list[Any] = []
        self._streams: list[Any] = []
        self._changed = False
        self.actor = Actor(self._step)

    async def _step(self, step: Step) -> Outcome:
        try:
            return await self._take(step)
        except (exc.SQLAlchemyError, errors.SteadypoolError) as error:
            self._stage.errors.append(error)
            return outcome_of(error)
        finally:
            await self._note_pid()

    async def _take(self, step: Step) -> Outcome:
        _, action, detail = step
        if action == "open":
            return await self._open(detail)
        if action == "close":
            return await self._close()
        if self.holder is None:
            await self._open("connection")
        assert self.holder is not None
        if action in STATEMENTS:
            return await self._statement(action, STATEMENTS[action].get(detail, VALUES["times"]))
        return await getattr(self, f"_{action}")(self.holder, detail)

    async def _open(self, kind: str) -> Outcome:
        if self.holder is not None:
            return ("has one",)
        self.kind = kind
        engine = self._stage.engine
        if kind == "session":
            self.holder = AsyncSession(engine)
            return ("session",)
        connection = engine.connect()
        await connection.start()
        self.holder = connection
        if kind in ISOLATION:
            await connection.execution_options(isolation_level=ISOLATION[kind])
        return ("connection",)

    async def _close(self) -> Outcome:
        holder, self.holder = self.holder, None
        if holder is None:
            return ("has none",)
        self._savepoints.clear()
        try:
            if self._changed and isinstance(holder, AsyncConnection) and not holder.invalidated:
                await holder.rollback()
                for sql in CLEAN:
                    await holder.execute(text(sql))
                await holder.commit()
        finally:
            self._changed = False
            streams, self._streams = self._streams, []
            await holder.close()
            streams.clear()
        return ("closed",)

    async def _note_pid(self) -> None:
        """Which backend it has now, without asking it."""
        self.pid, holder = 0, self.holder
        if holder is None:
            return
        if isinstance(holder, AsyncSession):
            if not holder.in_transaction() or not holder.is_active:
                return
            holder = await holder.connection()
        if holder.closed or holder.invalidated:
            return
        driver_connection: Any = (await holder.get_raw_connection()).driver_connection
        self.pid = pid_of(driver_connection)

    async def _statement(self, action: str, sql: str) -> Outcome:
        if action == "set" and not self._stage.calm:
            if not isinstance(self.holder, AsyncConnection):
                return ("left out",)
            self._changed = True
        sql = sql.format(user=self.name)
        if self._stage.may_be_stale and action in ("read", "write"):
            return await self._twice(sql)
        return await self._run(sql)

    async def _run(self, sql: str, values: Any = None) -> Outcome:
        assert self.holder is not None
        result = await self.holder.execute(text(sql.replace(":", "\\:") if values is None else sql), values)
        if not result.returns_rows:
            return ("rows", result.rowcount)
        return tuple(repr(tuple(row)) for row in result)

    async def _twice(self, sql: str) -> Outcome:
        """Run it in a savepoint, and again where a prepared statement was stale: once is allowed."""
        assert self.holder is not None
        if self.kind == "autocommit":
            try:
                return await self._run(sql)
            except exc.DBAPIError as error:
                if sqlstate_of(error) not in STALE:
                    raise
                return await self._run(sql)
        savepoint = await self.holder.begin_nested()
        try:
            outcome = await self._run(sql)
        except exc.DBAPIError as error:
            if error.connection_invalidated:
                raise
            await savepoint.rollback()
            if sqlstate_of(error) not in STALE:
                raise
            self._stage.stale += 1
            return await self._run(sql)
        await savepoint.commit()
        return outcome

    async def _many(self, holder: AsyncConnection | AsyncSession, _: str) -> Outcome:
        await holder.execute(
            text(f"insert into notes_{self.name} (body) values (:body)"), [{"body": "a"}, {"body": "b"}]
        )
        return ("inserted",)

    async def _change(self, _holder: object, detail: str) -> Outcome:
        for sql in CHANGES[detail]:
            await self._run(sql.format(user=self.name))
        return ("changed",)

    async def _look(self, _holder: object, _: str) -> Outcome:
        return await self._run(LOOK)

    async def _savepoint(self, holder: AsyncConnection | AsyncSession, detail: str) -> Outcome:
        if detail == "begin":
            self._savepoints.append(await holder.begin_nested())
        elif not self._savepoints:
            return ("none",)
        elif detail == "release":
            await self._savepoints.pop().commit()
        else:
            await self._savepoints.pop().rollback()
        return ("savepoint",)

    async def _stream(self, holder: AsyncConnection | AsyncSession, detail: str) -> Outcome:
        result = await holder.stream(text(VALUES["many"]))
        row = await result.fetchone()
        if detail == "closed":
            await result.close()
        else:
            self._streams.append(result)
        return (repr(row),)

    async def _commit(self, holder: AsyncConnection | AsyncSession, _: str) -> Outcome:
        self._savepoints.clear()
        try:
            await holder.commit()
        except errors.TransactionRolledBack:
            await holder.rollback()
            return ROLLED_BACK
        return ("committed",)

    async def _rollback(self, holder: AsyncConnection | AsyncSession, _: str) -> Outcome:
        self._savepoints.clear()
        await holder.rollback()
        return ("rolled back",)

    async def _invalidate(self, holder: AsyncConnection | AsyncSession, _: str) -> Outcome:
        await holder.invalidate()
        return ("invalidated",)

    async def _dispose(self, _holder: object, _: str) -> Outcome:
        await self._stage.engine.dispose()
        return ("disposed",)


def pid_of(driver_connection: Any) -> int:
    if hasattr(driver_connection, "get_server_pid"):
        return driver_connection.get_server_pid()
    return 0 if driver_connection.closed else driver_connection.pgconn.backend_pid


@dataclass
class Stage:
    """An engine with its users.

    Args:
        calm: no connection is lost or replaced, so who gets which one is the same on every engine.
        guards_stale: a prepared statement may be found stale once, and is run again then.
    """

    engine: AsyncEngine
    watcher: Watcher
    calm: bool
    guards_stale: bool
    seen: list[Seen] = field(default_factory=list[Seen])
    errors: list[Exception] = field(default_factory=list[Exception])
    """What users met, for who looks at a failure."""
    may_be_stale: bool = False
    stale: int = 0

    async def play(self, steps: Sequence[Step]) -> None:
        """Take all steps; at the end everybody leaves."""
        await self.watcher.rows(SCHEMA)
        before = asyncio.all_tasks()
        self._users = {name: User(name, self) for name in USERS}
        try:
            for step in steps:
                await self._take(step)
            await self._end()
        finally:
            await self.engine.dispose()
            for user in self._users.values():
                await user.actor.leave()
        left = asyncio.all_tasks() - before
        if left:
            _, left = await asyncio.wait(left, timeout=5)
        assert not left, f"tasks are left: {left}"

    async def _take(self, step: Step) -> None:
        user = self._users[step.user]
        waiting = next((other for other in self._users.values() if other.waits is not None), None)
        if waiting is not None and not _may_be_taken(step, user, waiting):
            return
        if step.action in DISTURBING:
            await self._disturb(step, user)
        else:
            self.may_be_stale = self.may_be_stale or (self.guards_stale and step.action == "change")
            await self._see(step, user)

    async def _see(self, step: Step, user: User) -> None:
        """Let a user take a step, and see what comes of it, for who waits as well."""
        may_wait = not any(other.waits for other in self._users.values())
        taken = user.actor.order(step)
        outcome = await self._outcome(taken, may_wait=may_wait)
        if outcome is WAITS:
            user.waits = taken
        await self._note(step, outcome)

    async def _note(self, step: Step, outcome: Outcome) -> None:
        """Note how a step went, and the locks once nobody goes on any more."""
        ended: list[tuple[str, Outcome]] = []
        for user in self._users.values():
            if user.waits is not None and (its := await self._outcome(user.waits)) is not WAITS:
                user.waits = None
                ended.append((user.name, its))
        locks = await self.watcher.locks()
        self.seen.append(Seen(str(step), outcome, locks))
        self.seen.extend(Seen(f"{name} waited", its, locks) for name, its in ended)

    async def _outcome(self, taken: asyncio.Future[Outcome], *, may_wait: bool = True) -> Outcome:
        """How a step went, or that it waits for a lock."""
        end = asyncio.get_running_loop().time() + PATIENCE
        while not taken.done():
            await asyncio.wait({taken}, timeout=0.01)
            if may_wait and not taken.done() and await self.watcher.someone_waits():
                return WAITS
            assert asyncio.get_running_loop().time() < end, "it never ends"
        return taken.result()

    async def _disturb(self, step: Step, user: User) -> None:
        """End a statement that waits, or connections."""
        if step.action == "kill":
            await self._kill(step, user)
            return
        if user.waits is None:
            return
        pid = user.pid or await self._waiting_pid()
        if step.action == "stop":
            await self.watcher.rows("select pg_cancel_backend(%s)", pid)
        else:
            user.actor.cancel()
        outcome = await self._outcome_of_wait(user)
        if step.action != "stop":
            await self.watcher.until(
                lambda: self.watcher.is_gone(pid), "a cancelled statement's backend ends"
            )
        await self._note(step, outcome)
        if step.action == "cancel and close":
            await self._see(step._replace(action="close"), user)

    async def _waiting_pid(self) -> int:
        return await self.watcher.value("select pid " + _LOCKS + " and not granted")

    async def _outcome_of_wait(self, user: User) -> Outcome:
        assert user.waits is not None
        waits, user.waits = user.waits, None
        async with asyncio.timeout(PATIENCE):
            return await waits

    async def _kill(self, step: Step, user: User) -> None:
        held = [other.pid for other in self._users.values() if other.holder is not None]
        pids = [
            pid
            for (pid,) in await self.watcher.rows(f"select pid from pg_stat_activity a where {_OTHERS}")
            if step.detail == "all" or (pid not in held if step.detail == "idle" else pid == user.pid)
        ]
        await self.watcher.end(pids)
        await self._note(step, ())

    async def _end(self) -> None:
        """Everybody gives back what she has; then each looks at what she gets next, and leaves."""
        users = sorted(self._users.values(), key=lambda user: user.waits is not None)
        for user in users:
            if user.waits is not None:
                outcome = await self._outcome_of_wait(user)
                self.seen.append(Seen(f"{user.name} waited", outcome, await self.watcher.locks()))
            await self._see(Step(user.name, "close"), user)
        for action in ("open", "look", "close"):
            for user in users:
                await self._see(Step(user.name, action, "connection" if action == "open" else ""), user)
        contents = await self.watcher.contents()
        self.seen.append(Seen("committed", tuple(contents.items()), await self.watcher.locks()))


def _may_be_taken(step: Step, user: User, waiting: User) -> bool:
    """While one waits, only she is disturbed, and the others do what cannot wait as well."""
    if user is waiting:
        return step.action in DISTURBING and step.detail == ""
    return step.action in NEVER_WAITS


async def leave_no_backend(watcher: Watcher) -> None:
    """After `dispose()` and a collection nobody is connected."""
    gc.collect()

    async def alone() -> bool:
        return await watcher.backends() == 0

    await watcher.until(alone, "the last connection is closed")


async def cut_off(watcher: Watcher) -> None:
    """End what stock leaves open."""
    gc.collect()
    await watcher.end(None)
