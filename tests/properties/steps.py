"""What users do, one step at a time, and how lists of steps are drawn."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st

USERS = ("ann", "ben", "cem")
"""Each has a table of her own, `notes_ann` and so on, and at most one connection or session at a time."""

SCHEMA = """
    drop schema if exists public cascade; create schema public;
    drop schema if exists other cascade; create schema other;
    create type mood as enum ('calm', 'wild');
    create table shared (id int primary key, n int not null);
    insert into shared values (1, 10), (2, 20), (3, 30);
    create table other.shared (id int primary key, n int not null);
    insert into other.shared values (1, -1);
    create table parents (id int primary key);
    create table children (parent int references parents deferrable initially deferred);
    do $$ declare name text; begin
        if not exists (select from pg_roles where rolname = 'properties_guest') then
            create role properties_guest;
        end if;
        foreach name in array array['ann', 'ben', 'cem'] loop
            execute format(
                'create table notes_%s (id serial, body text, mood mood, at timestamptz'
                ' default ''2026-03-04 05:06:07+00'')', name);
        end loop;
    end $$;
    grant usage on schema public, other to properties_guest;
    grant select on all tables in schema public, other to properties_guest;
"""
"""The tables before a list of steps; `{user}` stands for the name of who runs a statement below."""

READS = {
    "shared": "select id, n from shared order by id",
    "own": "select * from notes_{user} order by id",
    "all": "select body, mood from notes_ann union all select body, mood from notes_ben order by 1, 2",
    "unlocked": "select id from shared order by id for update skip locked",
    "locking": "select n from shared where id = 2 for update",
    "nowait": "select n from shared where id = 1 for update nowait",
}
"""Reads of tables; one that is altered makes them wait."""

VALUES = {
    "times": "select timestamptz '2026-01-02 03:04:05+00', date '2026-01-02', interval '1 day 2 s', time '01:02'",
    "kinds": "select 1::int8, 1.50::numeric, true, null::text, 'é', array[1, 2], '{{\"a\": [1]}}'::jsonb, 'x'::bytea",
    "many": "select i, repeat('x', 50) from generate_series(1, 300) i",
    "nothing": "select 1 where false",
}

WRITES = {
    "shared": "update shared set n = n + 1 where id = 1 returning n",
    "shared too": "update shared set n = n * 2 where id = 2",
    "own": "insert into notes_{user} (body, mood) values ('one', 'calm') returning id, mood",
    "gone": "delete from notes_{user} where id = (select min(id) from notes_{user})",
    "child": "insert into children values (99)",
    "parent": "insert into parents values (99)",
}
"""Writes, some of them into the tables of all; `child` without `parent` fails at the commit."""

MISTAKES = {
    "division": "select 1 / 0",
    "syntax": "selekt 1",
    "unknown": "select * from nowhere",
    "duplicate": "insert into shared values (3, 0)",
    "mood": "insert into notes_{user} (mood) values ('none of these')",
}

SETTINGS = {
    "zone": "set timezone to 'Asia/Tokyo'",
    "path": "set search_path to other, public",
    "role": "set role properties_guest",
    "tenant": "set app.tenant = '{user}'",
    "config": "select set_config('app.tenant', 'config', false)",
    "limit": "set statement_timeout = '17s'",
    "style": "set intervalstyle to 'postgres_verbose'",
    "dates": "set datestyle to 'German'",
    "all": "reset all",
    "no role": "reset role",
    "discard": "discard temp",
    "lock": "select pg_try_advisory_lock(4711)",
    "unlock": "select pg_advisory_unlock(4711)",
    "temp": "create temp table if not exists scratch as select '{user}'::text as whose",
    "temp shadows": "create temp table shared (id int, n int)",
    "prepare": "prepare left_behind as select 1",
    "listen": "listen changes",
    "hold": "declare held cursor with hold for select 1",
}
"""Statements whose effect may outlive their transaction."""

LOCAL = {
    "local zone": "set local timezone to 'America/Lima'",
    "local path": "set local search_path to other",
    "local role": "set local role properties_guest",
    "local tenant": "select set_config('app.tenant', 'local', true)",
    "local lock": "select pg_try_advisory_xact_lock(4711)",
    "local temp": "create temp table brief on commit drop as select 1 as n",
    "scratch": "select whose from scratch",
}
"""Statements whose effect ends with their transaction, or shows what another left."""

CHANGES = {
    "wider": ("alter table shared alter column n type bigint",),
    "numeric": ("alter table shared alter column n type numeric(12, 2)",),
    "narrow": ("alter table shared alter column n type int",),
    "column": ("alter table notes_{user} add column if not exists more int default 7",),
    "recreated": (
        "drop table notes_{user}",
        "create table notes_{user} (mood mood default 'wild', body varchar(9), id serial)",
        "grant select on notes_{user} to properties_guest",
    ),
    "mood": (
        "alter type mood rename to mood_before",
        "create type mood as enum ('new', 'wild', 'calm')",
        *(
            statement
            for user in USERS
            for statement in (
                f"alter table notes_{user} alter column mood drop default",
                f"alter table notes_{user} alter column mood type mood using mood::text::mood",
            )
        ),
        "drop type mood_before",
    ),
}
"""Changes of what statements that were prepared before rely on."""

LOOK = """
    select current_setting('TimeZone'), current_setting('search_path'), current_user::text,
        coalesce(current_setting('app.tenant', true), ''), current_setting('statement_timeout'),
        current_setting('intervalstyle'), current_setting('datestyle'), current_setting('client_encoding'),
        current_setting('transaction_isolation'),
        (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
        (select count(*) from pg_class where relnamespace = pg_my_temp_schema() and relkind = 'r'),
        (select count(*) from pg_prepared_statements where from_sql),
        (select count(*) from pg_listening_channels()),
        (select count(*) from pg_cursors where name = 'held')
"""
"""What a session shows of its state."""


class Step(NamedTuple):
    """Something that a user does."""

    user: str
    action: str
    detail: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, self))


HOLDERS = ("connection", "session", "autocommit", "repeatable", "serializable")


def _steps(*actions: tuple[str, list[str]]) -> st.SearchStrategy[list[Step]]:
    return st.one_of(
        st.builds(Step, st.sampled_from(USERS), st.just(action), st.sampled_from(details)).map(
            lambda step: [step]
        )
        for action, details in actions
    )


CALM = (
    ("open", list(HOLDERS)),
    ("read", list(READS)),
    ("value", list(VALUES)),
    ("write", list(WRITES)),
    ("many", [""]),
    ("mistake", list(MISTAKES)),
    ("set", list(SETTINGS)),
    ("local", list(LOCAL)),
    ("change", list(CHANGES)),
    ("savepoint", ["begin", "release", "undo"]),
    ("stream", ["closed", "left"]),
    ("look", [""]),
    ("commit", [""]),
    ("rollback", [""]),
    ("close", [""]),
)
DISTURBANCES = (
    ("kill", ["", "idle", "all"]),
    ("invalidate", [""]),
    ("dispose", [""]),
)
"""After these, and after a cancellation, connections are replaced, each engine in its own order."""
END_WAITS = ("cancel", "cancel and close", "stop", "kill")
"""What happens to one who waits for a lock; `stop` is pg_cancel_backend()."""


@st.composite
def _waits(draw: st.DrawFn, ends: tuple[str, ...]) -> list[Step]:
    """One waits for a lock of another's, until that one ends its transaction, or something happens."""
    one, other = draw(st.permutations(USERS))[:2]
    statement = draw(st.sampled_from([("write", "shared"), ("read", "locking")]))
    end = draw(
        st.sampled_from([(one, "commit"), (one, "rollback"), (one, "close"), *((other, end) for end in ends)])
    )
    return [
        Step(one, "open", draw(st.sampled_from(["connection", "session"]))),
        Step(one, *statement) if statement[0] == "write" else Step(one, "write", "shared too"),
        Step(other, "open", draw(st.sampled_from(HOLDERS))),
        Step(other, *statement),
        *draw(st.sampled_from([[], [Step(one, "value", "kinds")]])),
        Step(*end),
    ]


@st.composite
def _left_behind(draw: st.DrawFn) -> list[Step]:
    """One changes the session and gives it back; another looks."""
    one, other = draw(st.permutations(USERS))[:2]
    return [
        Step(one, "open", draw(st.sampled_from(HOLDERS))),
        Step(one, "set", draw(st.sampled_from(list(SETTINGS)))),
        Step(one, draw(st.sampled_from(["commit", "rollback", "value"])), ""),
        Step(one, "close"),
        Step(other, "open", draw(st.sampled_from(HOLDERS))),
        draw(
            st.sampled_from(
                [Step(other, "look"), Step(other, "value", "times"), Step(other, "read", "shared")]
            )
        ),
    ]


@st.composite
def _prepared(draw: st.DrawFn) -> list[Step]:
    """One runs a statement often enough for a plan to be kept; another changes what it relies on."""
    one, other = draw(st.permutations(USERS))[:2]
    read = draw(st.sampled_from(["shared", "own", "all"]))
    holder = draw(st.sampled_from(["connection", "session", "autocommit"]))
    return [
        Step(one, "open", holder),
        *[Step(one, "read", read)] * draw(st.sampled_from([1, 2, 6])),
        Step(one, draw(st.sampled_from(["commit", "rollback", "close"]))),
        Step(draw(st.sampled_from([one, other])), "change", draw(st.sampled_from(list(CHANGES)))),
        Step(other, "commit"),
        Step(one, "read", read),
        Step(one, "read", read),
    ]


def lists_of_steps(*, calm: bool) -> st.SearchStrategy[list[Step]]:
    """Lists of steps; in calm ones no connection is lost or replaced."""
    some = st.one_of(
        _steps(*CALM),
        _steps(*CALM) if calm else _steps(*DISTURBANCES),
        _waits(("stop",) if calm else END_WAITS),
        _left_behind(),
        _prepared(),
    )
    return st.lists(some, min_size=1, max_size=8).map(lambda parts: [step for part in parts for step in part])
