from __future__ import annotations

import pytest

from steadypool._sql.reads import only_reads

READS = [
    "select 1",
    "  -- a comment\n/* another /* nested */ */ SELECT title FROM tracks WHERE id = $1",
    "SELECT tracks.id FROM tracks WHERE tracks.id IN ($1::INTEGER, $2::INTEGER) ORDER BY tracks.title LIMIT $3",
    "select count(*), max(plays) from tracks group by artist having count(*) > 1",
    "(select 1) union all (select 2)",
    "with loved as (select id from likes) select * from tracks join loved using (id)",
    "values (1, 'update'), (2, 'for share')",
    "table tracks",
    "show server_version",
    "select cast(price as numeric(10, 2)) from tracks",
    'select "order"."key" from "order" where note = \'pg_advisory_lock(1)\'',
    "select lower(title) from tracks where exists (select from likes)",
    "select $tag$ for update $tag$",
    r"select title from tracks where title ~ '\d' ;",
    "select 1; select 2",
    "select coalesce(a, b) from (select 1 as a, 2 as b) as both_of_them",
]

IN_DOUBT = [
    "",
    "-- nothing",
    "begin",
    "insert into t values (1)",
    "update t set a = 1",
    "delete from t",
    "merge into t using u on (true) when matched then do nothing",
    "select 1 into t",
    "select id from jobs for update",
    "SELECT id FROM jobs FOR NO KEY UPDATE SKIP LOCKED",
    "select id from jobs for key/**/share",
    "with gone as (delete from t returning 1) select * from gone",
    "select pg_advisory_xact_lock(1)",
    "select PG_ADVISORY_XACT_LOCK (1)",
    'select "pg_advisory_xact_lock"(1)',
    r'select U&"pg_\0061dvisory_xact_lock"(1)',
    "select app.lower(title) from tracks",
    "select app . lower (title) from tracks",
    "select my_function()",
    "select nextval('s')",
    "select set_config('a.b', 'c', true)",
    "select 1; lock table t",
    "lock table t",
    "explain analyze update t set a = 1",
    "call p()",
    "declare c cursor for select 1",
    "select é(1)",
    r"select '\'' , pg_advisory_xact_lock(1), '\''",
]


@pytest.mark.parametrize("sql", READS)
def test_what_only_reads(sql: str) -> None:
    assert only_reads(sql)


@pytest.mark.parametrize("sql", IN_DOUBT, ids=lambda sql: sql[:40])
def test_what_may_lock(sql: str) -> None:
    assert not only_reads(sql)
