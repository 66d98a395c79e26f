"""What is refused on a connection that callers share, and what only looks like it."""

from __future__ import annotations

import pytest

from steadypool.multiplex.eligibility import refusal


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
        # Names that are not what they look like.
        r"""select U&"set\005fconfig"('role', 'mallory', false)""",
        """select u&"set!005fconfig" uescape '!' ('role', 'mallory', false)""",
        "select 1 as a😀$$, set_config('role', 'mallory', false) as \"$$\"",
        "select 1 as a\u00a0$$, set_config('role', 'mallory', false) as \"$$\"",
        "select $😀$ /* $😀$, set_config('role', 'mallory', false)",
        "select $😀$ ' $😀$, set_config('role', 'mallory', false) as \"'\"",
        "select 1 as a$b$, set_config('role', 'mallory', false) as \"$b$\"",
        "select E'a'\n-- b\n'\\'', set_config('role', 'mallory', false) --'",
        "select 'a\\', set_config('role', 'mallory', false) --'",
        r"select '\'' || set_config('role', 'mallory', false) || ''",
        "select 1/**/--*/\n, set_config('role', 'mallory', false)",
        "select 1 +/* /* */ */ 1, set_config('role', 'mallory', false)",
        "select 1from pg_advisory_lock(1)",
        "select 0 into temp x",
        # Ways to the session that no command has.
        "update pg_settings set setting = 'evil' where name = 'search_path'",
        'update only pg_catalog."pg_settings" set setting = 1',
        "with x as (update pg_settings s set setting = 'off' where name = 'row_security' returning 1) select * from x",
        "create table pg_temp.victims (secret text)",
        "create view pg_temp.victims as select 'FAKE' as secret",
        "create sequence pg_temp.s",
        "select 'FAKE' as secret into pg_temp.victims",
        "select 1 as n into temporary table t",
        "select 1 as n into local temp t",
        "create or replace temporary recursive view v (n) as select 1",
        "create or replace local temporary view v as select 1",
        "create temporary sequence s",
        "explain analyze create temp table t as select 1",
        "explain (analyze, costs off) execute p",
        "select * from ts_stat('select pg_advisory_lock(99)::text::tsvector')",
        "select query_to_xml('select set_config(''role'', ''mallory'', false)', true, false, '')",
        "select set_limit(0.1)",
        "; set role mallory",
        "select 1; set role mallory",
        "create function f() returns int begin atomic select case when true then 1 end; end; set role mallory",
        # Bodies of functions that are none, or end sooner than they seem to.
        "create table t (begin atomic); set role mallory",
        "create function f(begin atomic) returns int as 'select 1' language sql; set role mallory",
        "create function f() returns int begin atomic select 1 as case; end; set role mallory",
        "create function f() returns int begin atomic select 1 case; end; set role mallory",
        "create function f() returns int begin atomic select 'a\\'; select 1 case; end; set role mallory --'; end",
        # Several statements, each of which would be let through.
        "select 1; select 2",
        "insert into t values (1); select 2;",
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
        "create table temp (n int)",
        "insert into temp select 1",
        "create function f() returns int begin atomic select case when true then 1 end; select 2; end",
        "select 1;",
        ";; select ';' -- ;",
        "select * from pg_settings where name = 'work_mem'",
        "update my_settings set a = 1",
        "explain select 1",
        "explain (costs off) select 'set_config('",
        "select $é$ set_config( $é$",
        "select 1 as é$$, 2 as b$$",
        "",
    ],
)
def test_let_through(sql: str) -> None:
    assert refusal(sql) is None
