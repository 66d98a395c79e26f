"""How applications use an engine: sessions, streams, savepoints, reflection, transactions in two phases."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import ForeignKey, exc, func, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

from steadypool.sqlalchemy import create_async_engine
from steadypool_lab import EmbeddedPostgres

pytestmark = pytest.mark.anyio


class Base(DeclarativeBase):
    pass


class Artist(Base):
    __tablename__ = "artists"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    tracks: Mapped[list[Track]] = relationship(back_populates="artist")


class Track(Base):
    __tablename__ = "tracks"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    artist_id: Mapped[int] = mapped_column(ForeignKey("artists.id"))
    artist: Mapped[Artist] = relationship(back_populates="tracks")


@pytest.fixture
async def engine(make: Any, database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = make(database_url.replace("postgresql://", f"postgresql+{make.driver}://"), pool_size=2)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield engine
    assert engine.pool.checkedout() == 0
    await engine.dispose()


async def test_sessions(engine: AsyncEngine) -> None:
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    async with sessions.begin() as session:
        session.add(Artist(name="a", tracks=[Track(title="one"), Track(title="two")]))
    async with sessions() as session:
        artist = (await session.scalars(select(Artist).options(selectinload(Artist.tracks)))).one()
        assert [track.title for track in artist.tracks] == ["one", "two"]
        artist.name = "b"
        await session.flush()
        await session.rollback()
        await session.refresh(artist)
        assert artist.name == "a"
        await session.delete(artist.tracks[0])
        await session.commit()
        assert await session.scalar(select(func.count()).select_from(Track)) == 1
        streamed = await session.stream_scalars(select(Track.title))
        assert [title async for title in streamed] == ["two"]


async def test_a_violated_constraint(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        session.add(Artist(name="once"))
        await session.commit()
        session.add(Artist(name="once"))
        with pytest.raises(exc.IntegrityError):
            await session.commit()
        await session.rollback()
        assert await session.scalar(select(func.count()).select_from(Artist)) == 1


async def test_savepoints(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session, session.begin():
        session.add(Artist(name="outer"))
        with pytest.raises(ZeroDivisionError):
            async with session.begin_nested():
                session.add(Artist(name="inner"))
                await session.flush()
                raise ZeroDivisionError
        async with session.begin_nested():
            session.add(Artist(name="kept"))
    async with engine.connect() as connection:
        names = (await connection.execute(select(Artist.name).order_by(Artist.name))).scalars().all()
    assert names == ["kept", "outer"]


async def test_streams(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        async with connection.stream(text("select generate_series(1, 2500)")) as result:
            assert sum([row[0] async for row in result]) == 2500 * 2501 // 2
        partial = await connection.stream(text("select generate_series(1, 2500)"))
        assert (await partial.first()) == (1,)
        result = await connection.stream(text("select generate_series(1, 250)"))
        assert [len(part) async for part in result.partitions(100)] == [100, 100, 50]


async def test_reflection(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        names = await connection.run_sync(lambda c: inspect(c).get_table_names())
        columns = await connection.run_sync(lambda c: inspect(c).get_columns("tracks"))
    assert sorted(names) == ["artists", "tracks"]
    assert [column["name"] for column in columns] == ["id", "title", "artist_id"]
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)


async def test_many_rows_at_once(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(Artist.__table__.insert(), [{"name": f"artist {n}"} for n in range(1500)])
        returned = await connection.execute(
            Artist.__table__.insert().returning(Artist.id, sort_by_parameter_order=True),
            [{"name": f"more {n}"} for n in range(10)],
        )
        assert len(returned.all()) == 10
        assert await connection.scalar(select(func.count()).select_from(Artist)) == 1510


async def test_a_scoped_session(engine: AsyncEngine) -> None:
    scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
    scoped.add(Artist(name="scoped"))
    await scoped.commit()
    assert await scoped.scalar(select(func.count()).select_from(Artist)) == 1
    await scoped.remove()


async def test_sessions_side_by_side(engine: AsyncEngine) -> None:
    sessions = async_sessionmaker(engine)

    async def add(number: int) -> None:
        async with sessions.begin() as session:
            session.add(Artist(name=f"artist {number}"))

    await asyncio.gather(*(add(number) for number in range(12)))
    async with sessions() as session:
        assert await session.scalar(select(func.count()).select_from(Artist)) == 12


@pytest.fixture(scope="module")
def two_phase_database() -> Any:
    server = EmbeddedPostgres.temporary(settings={"max_prepared_transactions": "4"})
    server.blocking.start()
    yield server.blocking.create_database("two_phases")
    server.blocking.close()


@pytest.mark.parametrize("driver", ["psycopg"], indirect=False)
async def test_transactions_in_two_phases(make: Any, driver: str, two_phase_database: str) -> None:
    engine = make(two_phase_database.replace("postgresql://", "postgresql+psycopg://"), pool_size=1)
    async with engine.begin() as connection:
        await connection.execute(text("create table if not exists t (a int)"))
        await connection.execute(text("delete from t"))
    async with engine.connect() as connection:
        for name, end in (("first", "commit"), ("second", "rollback")):
            transaction = await connection.run_sync(lambda c, name=name: c.begin_twophase(f"xid {name}"))
            await connection.execute(text("insert into t values (1)"))
            await connection.run_sync(lambda _c, t=transaction: t.prepare())
            await connection.run_sync(lambda _c, t=transaction, end=end: getattr(t, end)())
        assert await connection.scalar(text("select count(*) from t")) == 1
    assert engine.pool.checkedout() == 0


async def test_a_transaction_after_one_that_was_only_prepared(two_phase_database: str) -> None:
    engine = create_async_engine(two_phase_database.replace("postgresql://", "postgresql+steadypool://"))

    def use(sync: Any) -> None:
        adapter = sync.connection.dbapi_connection
        for name in ("prepared", "in one phase"):
            adapter.tpc_begin(name)
            adapter.execute("select 1")
            if name == "prepared":
                adapter.tpc_prepare()
        adapter.tpc_rollback()
        assert adapter.tpc_recover() == ["prepared"]
        adapter.tpc_rollback("prepared")

    async with engine.connect() as connection:
        await connection.run_sync(use)
        assert await connection.scalar(text("select 1")) == 1
    await engine.dispose()


def run_alone(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_stock_engines_are_what_they_were(shared_database: str) -> None:
    """A process that imported us makes sync engines for Alembic, and stock async ones, as if it had not."""
    program = """
        import asyncio, sys
        if sys.argv[2] == "with us":
            import steadypool, steadypool.sqlalchemy
        import sqlalchemy, sqlalchemy.ext.asyncio as stock
        from sqlalchemy import create_engine, event, text
        def look(engine):
            listeners = {n: len(list(getattr(engine.pool.dispatch, n))) for n in ("connect", "checkout", "reset")}
            handlers = len(list(engine.dialect.dispatch.handle_error))
            dialect = type(engine.dialect)
            print(type(engine.pool), dialect, dialect.__mro__[:3], listeners, handlers, engine.pool.status())
        def use(connection):
            print(connection.scalar(text("select 1")))
        sync = create_engine(sys.argv[1].replace("postgresql:", "postgresql+psycopg:"))
        with sync.begin() as connection:
            use(connection)
        look(sync)
        sync.dispose()
        async def main():
            for driver in "asyncpg", "psycopg":
                url = sys.argv[1].replace("postgresql:", f"postgresql+{driver}:")
                engine = stock.create_async_engine(url)
                async with engine.begin() as connection:
                    await connection.run_sync(use)
                look(engine.sync_engine)
                await engine.dispose()
        asyncio.run(main())
    """
    without = run_alone(program, shared_database, "without us")
    assert run_alone(program, shared_database, "with us") == without
    assert "steadypool" not in without


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_a_program_that_forgets_to_dispose_ends_quietly(shared_database: str, driver: str) -> None:
    program = """
        import asyncio, sys
        from sqlalchemy import text
        from steadypool.sqlalchemy import create_async_engine
        async def main(engine):
            for _ in range(2):
                async with engine.connect() as connection:
                    await connection.execute(text("select 1"))
            print(engine.pool.checkedin())
        engine = create_async_engine(sys.argv[1], pool_recycle=3600)
        asyncio.run(main(engine))
        engine.sync_engine.dispose()
        asyncio.run(main(engine))
        engine.sync_engine.dispose()
    """
    url = shared_database.replace("postgresql:", f"postgresql+{driver}:")
    assert run_alone(program, url).split() == ["1", "1"]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_a_connection_that_outlives_its_loop(shared_database: str, driver: str) -> None:
    """Leaked by a program that has ended its loop: collected without an error of ours in the finalizer."""
    program = """
        import asyncio, gc, logging, sys, warnings
        from sqlalchemy import text
        from steadypool.sqlalchemy import create_async_engine
        kept = []
        async def main():
            engine = create_async_engine(sys.argv[1])
            kept.append(await engine.raw_connection())
        asyncio.run(main())
        hook = []
        logging.basicConfig(stream=sys.stdout, format="%(message).40s", level=logging.ERROR)
        sys.unraisablehook = lambda problem: hook.append(problem.exc_value)
        warnings.simplefilter("ignore")
        kept.clear()
        gc.collect()
        print([problem for problem in hook if not isinstance(problem, Warning)])
    """
    url = shared_database.replace("postgresql:", f"postgresql+{driver}:")
    # That it was forgotten is all that there is to say.
    assert run_alone(program, url).splitlines() == ["The garbage collector is trying to clean", "[]"]
