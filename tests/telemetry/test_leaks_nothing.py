"""Values never leave: neither in spans nor in metrics or logs, whatever they look like and however they fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import exc, text

from steadypool import errors
from steadypool.events import Event
from steadypool.fastapi.dashboard.facts import now_facts, past_facts
from steadypool.telemetry.lines import log_lines
from steadypool_lab.testing import Observer

from .conftest import MakeDatabase, Seen

pytestmark = pytest.mark.anyio

SECRET = "anna@example.org"
PASSWORD = "hunter2-not-for-logs"

HOSTILE = (
    "select '{0}'",
    "select E'\\'{0}'",
    "select $x${0}$x$",
    "select $é${0}$é$",
    "select 1 -- {0}",
    "select /* /* */ {0} */ 1",
    'select "{0}" from pg_class',
    "select 'never closed {0}",
    "select * from pg_class where relname = '{0}' and oid in (1, 2)",
    "select '{0}'::int",
    "do $$ begin raise exception 'no {0}' using detail = 'row of {0}', hint = '{0}'; end $$",
    "set local application_name = '{0}'",
    "notify changes, '{0}'",
)


async def hostile_work(db: Any) -> None:
    """Each hostile statement both ways, and each way to fail."""
    for statement in HOSTILE:
        sql = statement.format(SECRET)
        try:
            async with db.session() as session:
                await session.execute(text(sql.replace(":", "\\:").replace("\\:\\:", "::")))
        except exc.DBAPIError:
            pass
        with contextlib.suppress(Exception):  # the driver's own, of either driver
            async with db.connection() as connection:
                await connection.execute(sql)
    async with db.connection() as connection:
        await connection.execute(
            "create table if not exists people (email text primary key, age int check (age > 0))"
        )
    for values in ((SECRET, 1), (SECRET, 1), (SECRET + "2", -5)):
        try:
            async with db.session() as session:
                statement = text("insert into people values (:email, :age)")
                await session.execute(statement, dict(zip(("email", "age"), values, strict=True)))
                await session.commit()
        except exc.DBAPIError:
            pass
        with contextlib.suppress(Exception):  # the driver's own, of either driver
            async with db.connection() as connection:
                await connection.execute("insert into people values ($1, $2)", *values)
    try:
        async with db.session(workload="strict") as session:
            await session.execute(text(f"select pg_sleep(3), '{SECRET}'"))
    except errors.StatementTimeout:
        pass


async def test_no_value_leaves(
    make_db: MakeDatabase,
    database_url: str,
    seen: Seen,
    pg: Observer,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    path = tmp_path / "recorder.jsonl"
    db = await make_db(
        database_url, slow_query_after=0, recorder_file=path, alert_after=2, alert_rate=1
    ).open()
    db.workload("strict", statement_timeout=0.1)
    told: list[Event] = []
    db.events.subscribe(told.append)
    log_lines(db.events)
    stop = seen.watch(db.source)
    with caplog.at_level(logging.DEBUG, "steadypool"):
        await hostile_work(db)
        async with db.session() as session:
            await session.execute(text("select 1"))
            await pg.terminate()
            with pytest.raises(errors.ConnectionLost):
                await session.execute(text(f"select '{SECRET}'"))
        while not db.watch.alerts.raised:
            assert await db.watch.next_look(10.0)
        assert await db.watch.next_look(10.0)
        page = json.dumps([now_facts(db.watch), past_facts(db.recorder, 0.0, db.recorder.now + 9.0)])
        await db.close(grace=0.0)
    logs = "\n".join(
        f"{record.getMessage()} {record.__dict__}" for record in caplog.records if record.name != "asyncio"
    )
    assert "AlertRaised" in repr(told), "what a webhook is sent"
    places = {"telemetry": seen.everything(), "events": repr(told), "logs": logs}
    for place, written in (places | {"page": page, "recorder's file": path.read_text()}).items():
        assert written
        assert "anna" not in written, (place, written[max(0, written.index("anna") - 300) :][:600])
    assert "people" in seen.everything()
    stop()


async def test_no_password_leaves(
    make_db: MakeDatabase, database_url: str, seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    user, _, place = database_url.partition("@")
    db = make_db(f"{user.rpartition(':')[0]}:{PASSWORD}@{place}", slow_query_after=0)
    told: list[Event] = []
    db.events.subscribe(told.append)
    log_lines(db.events)
    stop = seen.watch(db.source)
    with caplog.at_level(logging.DEBUG):
        for _ in range(2):
            with pytest.raises(errors.ConnectFailed):
                async with db.connection():
                    pass
    logs = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    for written in (seen.everything(), repr(told), logs, str(db.stats())):
        assert PASSWORD not in written
    stop()


async def test_a_request_says_nothing_of_its_client(db: Any, seen: Seen) -> None:
    """What the client typed is in no name: a path that no route knows is `elsewhere`, a strange method `other`."""
    from steadypool.fastapi.requests import endpoint_of

    assert endpoint_of({"method": SECRET, "path": f"/{SECRET}"}) == "other elsewhere"
    await asyncio.sleep(0)
