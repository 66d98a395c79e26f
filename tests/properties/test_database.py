"""Whatever several users do with a `Database`, only what was committed stays, and nobody meets another's session."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import asyncpg
import psycopg
import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from sqlalchemy import exc, text

from steadypool import Database, DatabaseSettings, errors

from .amount import amount
from .conftest import Place
from .stage import CANCELLED, PATIENCE, Actor, Outcome, leave_no_backend
from .steps import LOCAL, LOOK, SCHEMA, SETTINGS, USERS, Step

TABLES = """
    create table rows_of_ann (id int primary key, body text);
    create table rows_of_ben (id int primary key, body text);
    create table rows_of_cem (id int primary key, body text);
    create table guarded (id int primary key);
    insert into guarded values (1);
    grant select on all tables in schema public to properties_guest;
"""
GUARDED = "select id from public.guarded for update"
MISTAKES = ("select 1 / 0", "selekt 1", "insert into public.guarded values (1)")
Rows = dict[int, str]


@st.composite
def _left_behind(draw: st.DrawFn) -> list[Step]:
    """One changes the session and gives it back in some way; another looks."""
    one, other = draw(st.permutations(USERS))[:2]
    end = draw(
        st.sampled_from(
            [("close",), ("commit",), ("mistake", "select 1 / 0"), ("cancel",), ("kill",), ("begin",)]
        )
    )
    return [
        Step(one, "close"),
        Step(one, "open", draw(st.sampled_from(["session", "connection", "local"]))),
        *draw(st.sampled_from([[], [Step(one, "begin")], [Step(one, "read", one)]])),
        Step(one, "set", draw(st.sampled_from(list(SETTINGS)))),
        Step(one, *end),
        Step(one, "close"),
        Step(other, "open", draw(st.sampled_from(["session", "connection"]))),
        Step(other, "look"),
    ]


ONE = st.one_of(
    st.builds(Step, st.sampled_from(USERS), st.just(action), st.sampled_from(details)).map(
        lambda step: [step]
    )
    for action, details in (
        ("open", ["session", "connection", "local"]),
        ("insert", [""]),
        ("update", [""]),
        ("delete", [""]),
        ("read", list(USERS)),
        ("shared_read", list(USERS)),
        ("shared_insert", [""]),
        ("shared_cursor", [""]),
        ("refused", list(SETTINGS)),
        ("set", list(SETTINGS)),
        ("local", list(LOCAL)),
        ("look", [""]),
        ("mistake", list(MISTAKES)),
        ("begin", [""]),
        ("end", [""]),
        ("fail", [""]),
        ("commit", [""]),
        ("rollback", [""]),
        ("close", [""]),
        ("cancel", ["", "shared"]),
        ("kill", ["", "all"]),
    )
)
STEPS = st.lists(st.one_of(ONE, _left_behind()), min_size=1, max_size=12).map(
    lambda parts: [step for part in parts for step in part]
)


def fresh(role: str, tenant: str = "") -> tuple[Any, ...]:
    """What LOOK shows of a session that nobody has changed."""
    settings = (
        "UTC",
        '"$user", public',
        role,
        tenant,
        "10s",
        "postgres",
        "ISO, MDY",
        "UTF8",
        "read committed",
    )
    return (*settings, 0, 0, 0, 0, 0)


class Failed(Exception):
    """What a block is left with that is to be undone."""


class InSession:
    """Uses `db.session()`."""

    keeps_session = False

    def __init__(self, db: Database, local: dict[str, str] | None = None) -> None:
        self._uses = db.session(local=local)
        self._savepoints: list[Any] = []

    async def open(self) -> None:
        self._session = await self._uses.__aenter__()

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        result = await self._session.execute(text(sql))
        return [tuple(row) for row in result] if result.returns_rows else []

    async def begin(self) -> None:
        self._savepoints.append(await self._session.begin_nested())

    async def end(self) -> None:
        await self._savepoints.pop().commit()

    async def fail(self, _: Exception) -> None:
        await self._savepoints.pop().rollback()

    async def end_all(self, *, commit: bool) -> None:
        self._savepoints.clear()
        await (self._session.commit() if commit else self._session.rollback())

    async def close(self, error: BaseException | None) -> None:
        self._savepoints.clear()
        await self._uses.__aexit__(error and type(error), error, None)


class InConnection:
    """Uses `db.connection()`."""

    keeps_session = True

    def __init__(self, db: Database) -> None:
        self._uses = db.connection()
        self._blocks: list[Any] = []

    async def open(self) -> None:
        self._connection = await self._uses.__aenter__()

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self._connection.fetch(sql)]

    async def begin(self) -> None:
        block = self._connection.transaction()
        await block.__aenter__()
        self._blocks.append(block)

    async def end(self) -> None:
        await self._blocks.pop().__aexit__(None, None, None)

    async def fail(self, error: BaseException) -> None:
        await self._blocks.pop().__aexit__(type(error), error, None)

    async def end_all(self, *, commit: bool) -> None:
        while self._blocks:
            await (self.end() if commit else self.fail(Failed()))

    async def close(self, error: BaseException | None) -> None:
        while self._blocks:
            await self.fail(error or Failed())
        await self._uses.__aexit__(error and type(error), error, None)


class Person:
    """A user of the database, and what should be true of her rows.

    `_levels` has them as her transaction sees them, and before each savepoint that is open in it.
    """

    def __init__(self, name: str, play: Play) -> None:
        self.name = name
        self.committed: Rows = {}
        self.holder: InSession | InConnection | None = None
        self.actor = Actor(self._take)
        self._play = play
        self._levels: list[Rows] = []
        self._tenant = ""
        self._dirty = self._estranged = False
        self._number = 0

    @property
    def rows(self) -> Rows:
        """Her rows as she sees them."""
        return self._levels[-1] if self._levels else self.committed

    @property
    def in_transaction(self) -> bool:
        return bool(self._levels)

    async def _take(self, step: Step) -> Outcome:
        alone = step.action in ("open", "close", "refused") or step.action.startswith("shared")
        if self.holder is None and not alone and step.detail != "shared":
            await self._open("session")
        await getattr(self, f"_{step.action}")(step.detail)
        return ()

    async def _run(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a statement that has to succeed."""
        assert self.holder is not None
        if not self.holder.keeps_session and not self._levels:
            self._levels.append(dict(self.committed))
        return await self.holder.rows(sql)

    async def _try(self, sql: str) -> bool:
        """Run a statement that may fail, which undoes the innermost block; returns whether it succeeded."""
        assert self.holder is not None
        try:
            await self._run(sql)
        except (exc.DBAPIError, asyncpg.PostgresError, psycopg.Error) as error:
            if isinstance(error, errors.SteadypoolError):
                raise
            if len(self._levels) > (not self.holder.keeps_session):
                self._levels.pop()
                await self.holder.fail(error)
            elif not self.holder.keeps_session:
                await self._rollback("")
            return False
        return True

    # -- connections and transactions --------------------------------------------------------------------------

    async def _open(self, kind: str) -> None:
        if self.holder is not None:
            return
        db, local = self._play.db, {"app.tenant": "local"} if kind == "local" else None
        self.holder = InConnection(db) if kind == "connection" else InSession(db, local)
        self._tenant = "local" if local else ""
        await self.holder.open()

    async def _close(self, _: str, error: BaseException | None = None) -> None:
        holder, self.holder = self.holder, None
        self._levels.clear()
        self._dirty = self._estranged = False
        if holder is not None:
            with contextlib.suppress(type(error) if error is not None else ()):
                await holder.close(error)

    async def _begin(self, _: str) -> None:
        assert self.holder is not None
        if not self.holder.keeps_session and not self._levels:
            self._levels.append(dict(self.committed))
        await self.holder.begin()
        self._levels.append(dict(self.rows))

    async def _end(self, _: str) -> None:
        assert self.holder is not None
        if len(self._levels) > (not self.holder.keeps_session):
            await self.holder.end()
            self._keep(self._levels.pop())

    async def _fail(self, _: str) -> None:
        assert self.holder is not None
        if len(self._levels) > (not self.holder.keeps_session):
            await self.holder.fail(Failed())
            self._levels.pop()

    def _keep(self, rows: Rows) -> None:
        if self._levels:
            self._levels[-1] = rows
        else:
            self.committed = rows

    async def _commit(self, _: str) -> None:
        await self._end_all(commit=True)

    async def _rollback(self, _: str) -> None:
        await self._end_all(commit=False)

    async def _end_all(self, *, commit: bool) -> None:
        assert self.holder is not None
        await self.holder.end_all(commit=commit)
        if commit:
            self.committed = self.rows
        self._levels.clear()
        if not self.holder.keeps_session:
            self._dirty = self._estranged = False

    # -- statements --------------------------------------------------------------------------------------------

    def _next(self) -> tuple[int, str]:
        self._number += 1
        return self._number, f"{self.name} {self._number}"

    async def _insert(self, _: str) -> None:
        if not self._estranged:
            number, body = self._next()
            await self._run(f"insert into public.rows_of_{self.name} values ({number}, '{body}')")
            self.rows[number] = body

    async def _update(self, _: str) -> None:
        if not self._estranged:
            await self._run(f"update public.rows_of_{self.name} set body = body || '!'")
            self._replace({number: body + "!" for number, body in self.rows.items()})

    async def _delete(self, _: str) -> None:
        if not self._estranged:
            await self._run(
                f"delete from public.rows_of_{self.name} where id = (select min(id) from public.rows_of_{self.name})"
            )
            self._replace({number: body for number, body in self.rows.items() if number > min(self.rows)})

    def _replace(self, rows: Rows) -> None:
        if self._levels:
            self._levels[-1] = rows
        else:
            self.committed = rows

    async def _read(self, whose: str) -> None:
        seen = await self._run(_all_of(whose))
        person = self._play.people[whose]
        expected = self.rows if person is self else person.committed
        assert seen == sorted(expected.items())

    async def _set(self, detail: str) -> None:
        assert self.holder is not None
        self._dirty = self._estranged = True
        await self._try(SETTINGS[detail].format(user=self.name))
        self._dirty = self._estranged = self.holder.keeps_session or self.in_transaction

    async def _local(self, detail: str) -> None:
        assert self.holder is not None
        self._dirty = self._estranged = True
        await self._try(LOCAL[detail])
        self._dirty = self._estranged = self.holder.keeps_session or self.in_transaction

    async def _look(self, _: str) -> None:
        if not self._dirty:
            assert await self._run(LOOK) == [fresh(self._play.role, self._tenant)]

    async def _mistake(self, detail: str) -> None:
        assert not await self._try(detail)

    # -- statements over connections that are shared -----------------------------------------------------------

    async def _shared_read(self, whose: str) -> None:
        seen = await self._play.db.fetch(_all_of(whose), read_only=True)
        assert [tuple(row) for row in seen] == sorted(self._play.people[whose].committed.items())

    async def _shared_insert(self, _: str) -> None:
        number, body = self._next()
        sql = f"insert into public.rows_of_{self.name} values ($1, $2)"
        assert await self._play.db.execute(sql, number, body) == "INSERT 0 1"
        for rows in (self.committed, *self._levels):
            rows[number] = body

    async def _shared_cursor(self, _: str) -> None:
        rows = self._play.db.fetch_iter("select i from generate_series(1, 100) i", batch=10)
        async with contextlib.aclosing(rows):
            assert [row[0] async for row in rows if row[0] < 3][:1] == [1]
            return

    async def _refused(self, detail: str) -> None:
        with pytest.raises(errors.NotMultiplexable):
            await self._play.db.execute(SETTINGS[detail].format(user=self.name))

    # -- what happens to her -----------------------------------------------------------------------------------

    async def _cancel(self, detail: str) -> None:
        """Wait for a lock that is not given up; the play cancels this."""
        if detail == "shared":
            await self._play.db.fetch(GUARDED, timeout=60)
            return
        if self._estranged:
            await self._run("reset role")
        try:
            await self._run(GUARDED)
        except asyncio.CancelledError as error:
            await self._close("", error)
            raise

    async def _pid(self, _: str) -> None:
        ((self.pid,),) = await self._run("select pg_backend_pid()")

    async def _lost(self, _: str) -> None:
        """Find the connection lost, if there was one."""
        assert self.holder is not None
        if not self.holder.keeps_session and not self._levels:
            await self._run("select 1")
            return
        with pytest.raises(errors.ConnectionLost) as lost:
            await self.holder.rows("select 1")
        await self._close("", lost.value)


def _all_of(whose: str) -> str:
    return f"select id, body from public.rows_of_{whose} order by id"


class Play:
    """A database and the people who use it."""

    def __init__(self, place: Place, driver: str) -> None:
        url = place.url.replace("postgresql://", f"postgresql+{driver}://")
        settings = DatabaseSettings(
            url=url,
            pool_size=2,
            max_overflow=6,
            ping_after_idle=0,
            shared_lock_timeout=60,
            shared_statement_timeout=60,
        )
        self.db = Database(settings)
        self.role = str(self.db.engine.url.username)
        self.people = {name: Person(name, self) for name in USERS}
        self._watcher, self._locker = place.watcher, place.locker

    async def play(self, steps: Sequence[Step]) -> None:
        """Take all steps, and look after each at what was committed."""
        await self._watcher.rows(SCHEMA + TABLES)
        before = asyncio.all_tasks()
        try:
            async with self.db:
                for step in steps:
                    await self._take(step)
                    await self._check_committed()
                await self._end()
        finally:
            for person in self.people.values():
                await person.actor.leave()
        left = asyncio.all_tasks() - before
        assert not left or not (await asyncio.wait(left, timeout=5))[1], f"tasks are left: {left}"
        await leave_no_backend(self._watcher)

    async def _take(self, step: Step) -> None:
        person = self.people[step.user]
        if step.action == "cancel":
            await self._cancel(step, person)
        elif step.action == "kill":
            await self._kill(step, person)
        else:
            await self._order(person, step.action, step.detail)
        if all(other.holder is None for other in self.people.values()):
            await self._watcher.until(self._is_clean, "sessions that were given back are clean")

    async def _order(self, person: Person, action: str, detail: str = "") -> Outcome:
        async with asyncio.timeout(PATIENCE):
            return await person.actor.order(Step(person.name, action, detail))

    async def _cancel(self, step: Step, person: Person) -> None:
        await self._locker.rows("begin")
        await self._locker.rows(GUARDED)
        waits = person.actor.order(step)
        await self._watcher.until(self._watcher.someone_waits, "the statement waits")
        person.actor.cancel()
        async with asyncio.timeout(PATIENCE):
            assert await waits == CANCELLED
        if not step.detail:  # a shared connection is not cut off: others are on it
            await self._watcher.until(self._nobody_waits, "a cancelled statement ends")
        await self._locker.rows("rollback")
        await self._watcher.until(self._nobody_waits, "the statement ends")

    async def _nobody_waits(self) -> bool:
        return not await self._watcher.someone_waits()

    async def _kill(self, step: Step, person: Person) -> None:
        holders = [person] if not step.detail else list(self.people.values())
        holders = [person for person in holders if person.holder is not None]
        if not step.detail:
            for person in holders:
                await self._order(person, "pid")
        await self._watcher.end(None if step.detail else [person.pid for person in holders])
        for person in holders:
            await self._order(person, "lost")

    async def _check_committed(self) -> None:
        for name, person in self.people.items():
            assert await self._watcher.rows(_all_of(name)) == sorted(person.committed.items())

    async def _is_clean(self) -> bool:
        return not await self._watcher.locks() and not await self._watcher.transactions()

    async def _end(self) -> None:
        """Everybody gives back what she has, and each looks at what she gets next."""
        for action, detail in (("close", ""), ("open", "connection"), ("look", ""), ("close", "")):
            for person in self.people.values():
                await self._order(person, action, detail)
        await self._watcher.until(self._is_clean, "nothing is held at the end")


async def play(place: Place, driver: str, steps: Sequence[Step]) -> None:
    """Take all steps with a database of its own."""
    await Play(place, driver).play(steps)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "steadypool"])
def test_only_what_was_committed_stays(
    driver: str, places: tuple[Place, Place], runner: asyncio.Runner
) -> None:
    @amount(8)
    @given(steps=STEPS)
    def holds(steps: list[Step]) -> None:
        note(" | ".join(map(str, steps)))
        runner.run(play(places[0], driver, steps))

    holds()
