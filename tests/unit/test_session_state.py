"""Which texts may change their session beyond the transaction."""

from __future__ import annotations

import pytest

from steadypool._sql.session_state import touches


@pytest.mark.parametrize(
    "sql",
    [
        "set role mallory",
        "SET SESSION AUTHORIZATION mallory",
        "/* a */ set search_path to evil",
        "set session characteristics as transaction read only",
        "select 1; set app.tenant = '42'",
        "select set_config('app.tenant', '42', false)",
        "select set_config('app.tenant', $1, $2)",
        "select pg_catalog.\"set_config\"('a', set_config('b', 'c', true), false)",
        "select set_config('a', 'b', not true)",
        "select U&\"set!005fconfig\" uescape '!' ('a', 'b', false)",
        "update pg_settings set setting = 'off' where name = 'row_security'",
        "reset role",
        "reset all",
        "discard temp",
        "listen changes",
        "unlisten *",
        "select pg_advisory_lock(1)",
        "select pg_try_advisory_lock_shared(1, 2)",
        "create temp table t (n int)",
        "select 1 as n into temp t",
        "create table pg_temp.t (n int)",
        "prepare p as select 1",
        "deallocate all",
        "declare c cursor with hold for select 1",
        "do $$ begin perform set_config('a', 'b', false); end $$",
        "load 'auto_explain'",
        "select setseed(0.5)",
        "set seed = 0.5",
        "create table t (begin atomic); set role mallory",
        "create function f() returns int begin atomic select 1 case; end; set role mallory",
    ],
)
def test_touches(sql: str) -> None:
    assert touches(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "select 1",
        "begin",
        "set local app.tenant = '42'",
        "set transaction isolation level serializable",
        "set constraints all deferred",
        "select set_config('app.tenant', $1, true)",
        "select set_config($1::text, $2::text, true), set_config($3::text, $4::text, true)",
        "select set_config(setting_name => 'a', new_value => 'b', is_local => true)",
        "update t set setting = 1",
        "insert into t (a) values (1) on conflict (a) do update set a = 2",
        "select 'set role mallory'",
        "select $$ set role mallory $$ -- set role mallory",
        "create function f() returns int begin atomic select case when true then 1 end; select 2; end",
        "prepare transaction 'x'",
        "select pg_advisory_xact_lock(1)",
        "declare c cursor for select 1",
        "create table temp (n int)",
        "insert into temp values (1)",
        "select * from pg_settings",
        "savepoint a",
        "notify changes",
    ],
)
def test_leaves_the_session_as_it_was(sql: str) -> None:
    assert not touches(sql)
