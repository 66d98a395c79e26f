"""What is refused on a connection that strangers share, and what only looks like it."""

from __future__ import annotations

import pytest

from steadypool.sharable import refusal


@pytest.mark.parametrize(
    "sql",
    [
        "begin",
        " BEGIN ISOLATION LEVEL SERIALIZABLE",
        "/* a /* nested */ comment */ begin",
        "-- a line\nStart transaction",
        "-- to the server this ends a line, too\rbegin",
        "select 1 -- \r, set_config('search_path', 'evil', false)",
        "commit",
        "rollback to savepoint a",
        "set statement_timeout = 0",
        "SET LOCAL x.y = 'z'",
        "reset all",
        "discard all",
        "select set_config('search_path', 'evil', false)",
        "select pg_catalog . set_config /* here */ ('a', 'b', true)",
        """select "set_config"('a', 'b', true)""",
        "with x as (select pg_advisory_lock(1)) select * from x",
        "select pg_try_advisory_xact_lock(1)",
        "listen channel",
        "lock table t",
        "copy t from stdin",
        "(copy t to stdout)",
        "do $$ begin perform set_config('a', 'b', false); end $$",
        "prepare p as select 1",
        "execute p",
        "declare c cursor with hold for select 1",
        "create temp table t (n int)",
        "create local temporary table t (n int)",
        "select 1 as n into temp t",
        "select currval('s')",
        r"select E'\'', set_config('a', 'b', false)",
    ],
)
def test_refused(sql: str) -> None:
    assert refusal(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "select 'begin; set_config(1)'",
        "select $$ set_config('a') $$, $tag$ pg_advisory_lock(1) $tag$",
        "select set_config from settings",
        "update t set begin_at = now()",
        "insert into t (lock, copy) values (1, 2)",
        "select 1 -- set_config(",
        "with begin as (select 1) select * from begin",
        "select * from temp",
        "notify channel",
        "select 'it''s' , 'lock table t'",
        "create table t (n int)",
        "",
    ],
)
def test_let_through(sql: str) -> None:
    assert refusal(sql) is None
