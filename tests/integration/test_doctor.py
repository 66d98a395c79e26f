"""`steadypool doctor`: what it finds, that it changes nothing, and that it ends whatever the database does."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from steadypool import DatabaseSettings
from steadypool.cli import main
from steadypool.cli.doctor.checks.tls import valid_until
from steadypool.cli.doctor.console import ConsoleClosed, read_console
from steadypool.cli.doctor.examination import CheckContext
from steadypool.cli.doctor.finding import Level
from steadypool.cli.doctor.run import GROUPS, Result, all_checks, chosen_checks, examine
from steadypool_lab import EmbeddedPostgres, FaultProxy, Mode, TlsFront, self_signed
from steadypool_lab.testing import Observer

from .poolers import pgbouncer

pytestmark = pytest.mark.anyio

SECRET = "hunter2-and-more"


async def look(
    url: str, *names: str, processes: int = 1, migrations: Path | None = None, **more: Any
) -> list[Result]:
    deadline = more.pop("deadline", 30.0)
    examination = CheckContext(DatabaseSettings(url=url, **more), processes, migrations, deadline=deadline)
    return await examine(examination, chosen_checks(names))


def levels(results: list[Result]) -> dict[str, Level]:
    return {result.check.name: result.finding.level for result in results}


def only(results: list[Result], name: str) -> Any:
    (found,) = [result.finding for result in results if result.check.name == name]
    return found


@pytest.fixture
def plain_url(server: EmbeddedPostgres, database_url: str) -> Iterator[str]:
    """The test's database, as a role that may do nothing but connect."""
    role = f"plain_{urlsplit(database_url).path.lstrip('/')}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{SECRET}'")
        connection.execute("CREATE TABLE things (id int PRIMARY KEY, name text)")
        connection.execute("INSERT INTO things SELECT n, 'secret name' FROM generate_series(1, 100) n")
    parts = urlsplit(database_url)
    yield urlunsplit(parts._replace(netloc=f"{role}:{SECRET}@{parts.hostname}:{parts.port}"))
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"DROP OWNED BY {role}")
        connection.execute(f"DROP ROLE {role}")


SNAPSHOT = """
    SELECT (SELECT json_agg(row(c.oid, c.relname, c.relfilenode, c.reltuples) ORDER BY c.oid) FROM pg_class c)::text,
        (SELECT json_agg(r ORDER BY r.oid) FROM pg_roles r)::text, (SELECT json_agg(s) FROM pg_db_role_setting s)::text,
        (SELECT json_agg(row(t.relname, t.n_tup_ins, t.n_tup_upd, t.n_tup_del) ORDER BY t.relname)
            FROM pg_stat_user_tables t)::text,
        (SELECT json_agg(row(d.datname, d.tup_inserted, d.tup_updated, d.tup_deleted) ORDER BY 1)::text
            FROM pg_stat_database d WHERE d.datname = current_database())
"""


async def test_a_plain_role_sees_everything_and_changes_nothing(
    plain_url: str, database_url: str, pg: Observer, capsys: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        before = connection.execute(SNAPSHOT).fetchone()
    results = await look(plain_url)
    await pg.wait_until(pg.is_quiet)
    with psycopg.connect(database_url, autocommit=True) as connection:
        assert connection.execute(SNAPSHOT).fetchone() == before
    found = levels(results)
    assert set(found) == {check.name for check in all_checks() if not check.asked_for}
    assert not [result for result in results if result.finding.level in (Level.UNKNOWN, Level.PROBLEM)]
    assert SECRET not in repr(results)
    assert "secret name" not in repr(results)


async def test_its_statements_run_where_nothing_can_be_written(plain_url: str) -> None:
    examination = CheckContext(DatabaseSettings(url=plain_url))
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        await examination.rows("CREATE TABLE mine (id int)")
    assert (await examination.row("SELECT 1 AS one")).one == 1
    await examination.close()


@pytest.mark.parametrize(
    ("case", "symptom", "said"),
    [
        ("refused", "connect-timeouts", "Connection refused"),
        ("silent", "connect-timeouts", "not connected within"),
        ("wrong password", "log-in-refused", "28P01"),
        ("no database", "log-in-refused", "3D000"),
    ],
)
async def test_a_database_that_lets_nobody_in(
    plain_url: str, database_url: str, proxy: FaultProxy, case: str, symptom: str, said: str
) -> None:
    parts = urlsplit(plain_url)
    account = f"{parts.username}:{SECRET}"
    if case == "refused":
        with socket.create_server(("127.0.0.1", 0)) as free:
            parts = parts._replace(netloc=f"{account}@127.0.0.1:{free.getsockname()[1]}")
    elif case == "silent":
        proxy.mode = Mode.SILENT
        parts = parts._replace(netloc=f"{account}@127.0.0.1:{proxy.port}")
    elif case == "wrong password":
        parts = parts._replace(netloc=f"{parts.username}:{SECRET}-not@127.0.0.1:{parts.port}")
    else:
        parts = parts._replace(path="/nowhere")
    began = time.monotonic()
    results = await look(urlunsplit(parts), connection_timeout=0.5, deadline=5.0)
    assert time.monotonic() - began < 5.0 + 1.0
    login = only(results, "log-in")
    assert login.level is Level.PROBLEM
    assert login.symptom == symptom
    assert said in login.evidence
    assert login.change
    assert levels(results)["addresses"] is (Level.PROBLEM if case == "refused" else Level.OK)
    assert SECRET not in repr(results)
    (unasked,) = [result.finding for result in results if result.finding.level is Level.UNKNOWN]
    assert "capacity" in unasked.evidence


async def test_a_single_check_without_a_connection_still_says_why(plain_url: str) -> None:
    url = plain_url.replace(SECRET, "wrong")
    results = await look(url, "blocked")
    assert only(results, "log-in").symptom == "log-in-refused"


async def test_a_database_that_falls_silent_on_the_way_ends_by_the_deadline(
    plain_url: str, proxy: FaultProxy
) -> None:
    parts = urlsplit(plain_url)
    url = urlunsplit(parts._replace(netloc=f"{parts.username}:{SECRET}@127.0.0.1:{proxy.port}"))
    examination = CheckContext(DatabaseSettings(url=url), deadline=4.0)

    def tell(check: Any, done: bool) -> None:
        if check.name == "log-in" and done:
            proxy.mode = Mode.SILENT

    began = time.monotonic()
    results = await examine(examination, chosen_checks([]), tell)
    assert time.monotonic() - began < 4.0 + 4.0
    assert [result for result in results if "no answer within" in result.finding.evidence]


# -- single checks -------------------------------------------------------------------------------------------------


async def test_more_processes_than_the_server_has_room_for(plain_url: str) -> None:
    assert only(await look(plain_url, "capacity", processes=2), "capacity").level is Level.OK
    assert only(await look(plain_url, "capacity", processes=10), "capacity").level is Level.WARNING
    found = only(await look(plain_url, "capacity", processes=50), "capacity")
    assert (found.level, found.symptom) == (Level.PROBLEM, "too-many-connections")
    assert "50 x (10 + 5 + listener) = 800" in found.evidence


async def test_the_limit_of_a_role_counts(plain_url: str, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"ALTER ROLE {urlsplit(plain_url).username} CONNECTION LIMIT 5")
    found = only(await look(plain_url, "capacity"), "capacity")
    assert found.level is Level.PROBLEM
    assert "the limit of role" in found.evidence


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({"request_deadline": 8}, "DATABASE_REQUEST_DEADLINE=15"),
        ({"request_deadline": None}, "DATABASE_REQUEST_DEADLINE=15"),
        ({"pool_timeout": 2}, "DATABASE_POOL_TIMEOUT=10"),
    ],
)
async def test_limits_in_the_wrong_order(plain_url: str, settings: dict[str, Any], change: str) -> None:
    found = only(await look(plain_url, "timeout-order", **settings), "timeout-order")
    assert (found.level, found.change) == (Level.WARNING, change)


async def test_a_server_that_ends_idle_sessions_first(plain_url: str, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"ALTER ROLE {urlsplit(plain_url).username} SET idle_session_timeout = '60s'")
    found = only(await look(plain_url, "lifetimes"), "lifetimes")
    assert (found.level, found.change) == (Level.WARNING, "DATABASE_POOL_IDLE_TIMEOUT=48")


async def test_transactions_that_are_read_only_by_default(plain_url: str, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            f"ALTER ROLE {urlsplit(plain_url).username} SET default_transaction_read_only = on"
        )
    assert only(await look(plain_url, "role"), "role").symptom == "standby"


@pytest.mark.parametrize(("driver", "trips"), [("asyncpg", 5), ("psycopg", 3)])
async def test_round_trips_are_counted(plain_url: str, driver: str, trips: int) -> None:
    url = plain_url.replace("postgresql://", f"postgresql+{driver}://")
    assert f"{trips} a request" in only(await look(url, "round-trips"), "round-trips").evidence


async def test_behind_a_transaction_pooler(database_url: str) -> None:
    async with pgbouncer(database_url, "transaction") as url:
        results = await look(url, "pooler", "server-timeouts", "prepared-statements", "listen", pooler="none")
        assert only(results, "pooler").level is Level.PROBLEM
        results = await look(url, "pooler", "server-timeouts", "prepared-statements", "listen", "lifetimes")
    assert "a pooler, and DATABASE_POOLER=auto" in only(results, "pooler").evidence
    assert only(results, "server-timeouts").symptom == "poolers"
    assert "no statement is kept" in only(results, "prepared-statements").evidence
    assert only(results, "listen").symptom == "deaf-listener"
    assert "DATABASE_DIRECT_URL" in only(results, "listen").change


async def test_tls_its_mode_and_the_days_left(plain_url: str, tmp_path: Path) -> None:
    parts = urlsplit(plain_url)
    certificate = self_signed(tmp_path)
    async with TlsFront("127.0.0.1", parts.port or 0, certificate) as front:
        base = urlunsplit(parts._replace(netloc=f"{parts.username}:{SECRET}@127.0.0.1:{front.port}"))
        results = await look(f"{base}?sslmode=require", "tls")
        assert [result.finding.level for result in results] == [Level.NOTE, Level.OK]
        assert "29 more days" in results[1].finding.evidence
        verified = await look(f"{base}?sslmode=verify-full&sslrootcert={certificate.path}", "tls")
        assert verified[0].finding.level is Level.OK
        examination = CheckContext(DatabaseSettings(url=f"{base}?sslmode=require"))
        for days, level in ((20, Level.WARNING), (40, Level.PROBLEM)):
            examination.today = datetime.now(UTC) + timedelta(days=days)
            assert [result.finding.level for result in await examine(examination, chosen_checks(["tls"]))][
                1
            ] is level


def test_a_certificate_of_the_last_century_and_one_beyond_2050(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    import ssl

    der = ssl.PEM_cert_to_DER_cert(certificate.path.read_text())
    end = valid_until(der)
    assert timedelta(days=28) < end - datetime.now(UTC) < timedelta(days=31)
    utc_time = end.strftime("%y%m%d%H%M%SZ").encode()
    assert der.count(utc_time) == 1
    assert valid_until(der.replace(utc_time, b"991231235959Z")).year == 1999


async def test_a_wake_up_is_told_from_an_overload(plain_url: str) -> None:
    examination = CheckContext(DatabaseSettings(url=plain_url))
    await examination.connection()
    up = (
        await examination.row("SELECT extract(epoch FROM now() - pg_postmaster_start_time())::float8 AS up")
    ).up
    examination.handshakes = {"a": 0.001}
    (check,) = chosen_checks(["wake-up"])
    (awake,) = await check.look(examination)
    examination.logged_in_after = up + 3.0
    (slept,) = await check.look(examination)
    await examination.close()
    assert awake.level is Level.OK
    assert slept.symptom == "cold-start"
    assert "it slept" in slept.evidence


async def test_the_schema_against_the_head_of_the_migrations(
    plyr_url: str, database_url: str, plain_url: str
) -> None:
    import backend.migrations

    folder = Path(backend.migrations.__file__).parent
    assert only(await look(plyr_url, "migrations", migrations=folder), "migrations").level is Level.OK
    found = only(await look(plain_url, "migrations", migrations=folder), "migrations")
    assert (found.level, found.change) == (Level.WARNING, "alembic upgrade head")


async def test_a_role_without_rights_is_told_what_it_cannot_see(plain_url: str, database_url: str) -> None:
    role = urlsplit(plain_url).username
    with (
        psycopg.connect(database_url) as holder,
        psycopg.connect(database_url, autocommit=True) as connection,
    ):
        connection.execute(f"GRANT SELECT ON things TO {role}")
        holder.execute("LOCK TABLE things")
        pid = holder.info.backend_pid
        async with await psycopg.AsyncConnection.connect(plain_url) as waiter:
            waiting = asyncio.create_task(waiter.execute("SELECT name FROM things"))
            sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = %s"
            while connection.execute(sql, (role,)).fetchone() != (1,):
                await asyncio.sleep(0.01)
            results = await look(plain_url, "blocked", "load")
            holder.rollback()
            await waiting
    found = only(results, "blocked")
    assert found.level is Level.PROBLEM
    assert f"{pid} postgres: a statement that this role may not see has the lock" in found.evidence
    hidden = [result.finding for result in results if result.finding.level is Level.NOTE]
    assert "GRANT pg_read_all_stats" in hidden[0].change


@pytest.mark.parametrize("form", ["asyncpg", "psycopg", "steadypool"])
async def test_instrumentation_is_tried_out_with_each_driver(plain_url: str, form: str) -> None:
    results = await look(plain_url.replace("://", f"+{form}://"), "instrumentation")
    (said,) = [result.finding.evidence for result in results if "tried out" in result.finding.evidence]
    # A wait for the connection is a span of its own where it took long.
    assert re.search(r"gave [23] spans and 4 metrics", said), said


async def test_a_check_that_needs_to_know_of_the_pooler_finds_out_itself(database_url: str) -> None:
    async with pgbouncer(database_url, "transaction") as url:
        (result,) = await look(url, "prepared-statements")
        assert "behind a pooler" in result.finding.evidence


async def test_a_console_that_lets_us_look_says_what_pgbouncer_ends_first(database_url: str) -> None:
    user = urlsplit(database_url).username
    more = f"stats_users = {user}\nclient_idle_timeout = 100\nserver_lifetime = 1234\nquery_wait_timeout = 12"
    async with pgbouncer(database_url, "transaction", more=more, checked=True) as url:
        found = only(await look(url, "lifetimes"), "lifetimes")
        assert (found.level, found.symptom) == (Level.WARNING, "connection-lost")
        assert found.change == "DATABASE_POOL_IDLE_TIMEOUT=80"
        assert found.evidence.startswith("client_idle_timeout 100 s; ")
        assert "free after 1234 s" in found.evidence
        found = only(await look(url, "lifetimes", pool_idle_timeout=80), "lifetimes")
        assert found.level is Level.OK
        results = await look(url, "pooler", "prepared-statements", pooler="session")
        assert [result.finding.level for result in results] == [Level.PROBLEM, Level.PROBLEM]
        assert "pool_mode is transaction" in only(results, "prepared-statements").evidence
        for settings, level, seconds in (
            ({}, Level.OK, None),
            ({"request_deadline": 11}, Level.NOTE, 10.5),
            ({"pool_timeout": 13}, Level.NOTE, 14),
        ):
            found = only(await look(url, "pooler-queue", **settings), "pooler-queue")
            assert found.level is level
            assert found.change == (f"query_wait_timeout = {seconds} in pgbouncer.ini" if seconds else "")


async def test_a_console_knows_the_mode_of_our_own_database(database_url: str) -> None:
    parts = urlsplit(database_url)
    own = (
        f"stats_users = {parts.username}\n[databases]\n{parts.path[1:]} = host={parts.hostname} port={parts.port} "
        f"user={parts.username} password={parts.password} pool_mode=session"
    )
    async with pgbouncer(database_url, "transaction", more=own, checked=True) as url:
        results = await look(
            url, "pooler", "prepared-statements", "lifetimes", pooler="session", pool_recycle=None
        )
    assert "pool_mode = session" in results[0].finding.evidence
    assert only(results, "prepared-statements").level is Level.OK
    # Nothing ends an idle client here, so nothing has to be replaced by age.
    assert only(results, "lifetimes").level is Level.OK


async def test_a_console_that_refuses_us_is_told_how_to_open_and_nothing_fails(database_url: str) -> None:
    user = urlsplit(database_url).username
    async with pgbouncer(database_url, "transaction", checked=True) as url:
        results = await look(url, "pooler", "pooler-queue", "prepared-statements", "lifetimes")
        assert [result.finding.level for result in results] == [Level.OK, Level.UNKNOWN, Level.OK, Level.OK]
        assert "not allowed" in only(results, "lifetimes").evidence
        assert f"stats_users = {user} in pgbouncer.ini" in only(results, "lifetimes").evidence
        assert str(urlsplit(url).password) not in repr(results)
        (result,) = await look(url, "lifetimes", pool_recycle=None)
    assert (result.finding.level, result.finding.symptom) == (Level.WARNING, "connection-lost")


async def test_what_is_no_console_or_falls_silent_costs_little_time_and_nothing_else(
    plain_url: str, proxy: FaultProxy
) -> None:
    parts = urlsplit(plain_url)
    url = urlunsplit(parts._replace(netloc=f"{parts.username}:{SECRET}@127.0.0.1:{proxy.port}"))
    examination = CheckContext(DatabaseSettings(url=url))
    connection = await examination.connection()
    closed = await read_console(connection, examination.target, within=5.0)
    assert isinstance(closed, ConsoleClosed)
    assert "3D000" in closed.why
    proxy.mode = Mode.SILENT
    began = time.monotonic()
    closed = await read_console(connection, examination.target, within=0.3)
    assert time.monotonic() - began < 5.0
    assert "within 0.3 s" in str(closed)
    await examination.close()


# -- statistics ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watched_server() -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres.temporary(settings={"shared_preload_libraries": "pg_stat_statements"})
    server.blocking.start()
    yield server
    server.blocking.close()


async def test_slow_statements_scans_unused_indexes_and_plans(watched_server: EmbeddedPostgres) -> None:
    url = watched_server.blocking.create_database("watched")
    assert "not in this database" in only(await look(url, "statements"), "statements").evidence
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION pg_stat_statements")
        connection.execute(
            "CREATE TABLE plays (id int PRIMARY KEY, artist text, at timestamptz DEFAULT now())"
        )
        connection.execute("INSERT INTO plays SELECT n, 'artist ' || n FROM generate_series(1, 100000) n")
        connection.execute("CREATE INDEX nobody_asks ON plays (id, artist)")
        connection.execute("ANALYZE plays")
        for _ in range(15):
            connection.execute("SELECT id FROM plays WHERE artist = 'somebody@example.org'")
        connection.execute("SELECT pg_sleep(0.3)")
    results = await look(url, "statements", "plans", slow_query_after=0.1, statement_timeout=20)
    slow = [result.finding for result in results if result.finding.level is Level.WARNING]
    assert {finding.symptom for finding in slow} == {"statement-timeouts"}
    assert [finding for finding in slow if "pg_sleep(?)" in finding.evidence]
    assert "doctor" not in repr([result.finding for result in results if result.check.name == "plans"])
    assert [finding for finding in slow if "sequential scan on plays (100,000 rows)" in finding.evidence]
    assert "somebody" not in repr(results)
    scans = only(results, "sequential-scans")
    assert (scans.level, scans.symptom) == (Level.WARNING, "statement-timeouts")
    assert "public.plays" in scans.evidence
    assert "nobody_asks" in only(results, "unused-indexes").change
    recorded = [result.finding.evidence for result in results if result.check.name in ("statements", "plans")]
    assert not [said for said in recorded if "pg_stat" in said or "EXPLAIN" in said], "its own statements"


async def test_plans_are_estimated_and_never_run(watched_server: EmbeddedPostgres) -> None:
    url = watched_server.blocking.create_database("planned")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION pg_stat_statements")
        connection.execute("CREATE TABLE counted (n int)")
        connection.execute("INSERT INTO counted VALUES (%s)", (1,))
    results = await look(url, "plans")
    assert [result for result in results if "counted" in result.finding.evidence]
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM counted").fetchone() == (1,)


# -- the command ---------------------------------------------------------------------------------------------------


def test_the_list_of_checks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--list-checks", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [each["check"] for each in listed] == [check.name for check in all_checks()]
    assert {each["group"] for each in listed} == set(GROUPS)
    assert all(each["looks_at"].endswith((".", ")", ").")) for each in listed)


def test_exit_codes_json_and_no_password(
    plain_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", plain_url)
    assert main(["doctor", "--only", "log-in,sessions", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["verdict"] == "ok"
    assert "***" in answer["url"]
    monkeypatch.setenv("WEB_CONCURRENCY", "50")
    assert main(["doctor", "--only", "capacity"]) == 1
    said = capsys.readouterr().out
    assert "why it matters" in said
    assert "steadypool why too-many-connections" in said
    assert main(["doctor", plain_url.replace(SECRET, f"not-{SECRET}"), "--only", "log-in", "-v"]) == 1
    assert SECRET not in "".join(capsys.readouterr())
    monkeypatch.delenv("DATABASE_URL")
    assert main(["doctor", "--only", "log-in"]) == 1
    assert "DATABASE_URL" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["--only", "no-such-check"], ["--processes", "0"], ["--deadline", "0"], ["mysql://host/name"]],
)
def test_wrong_use(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 2
    assert capsys.readouterr().err
