"""A fingerprint names a statement and says nothing of its values, whatever they look like."""

from __future__ import annotations

import time

import pytest

from steadypool._sql.fingerprint import LONGEST, fingerprint, name_of

SECRET = "anna@example.org"


def shown(statement: str) -> str:
    return fingerprint(statement).partition("] ")[2]


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("select 1", "select ?"),
        ("select  *\n from t where id in (1, 2, 3)", "select * from t where id in (?)"),
        ("select * from t where id in ($1::INTEGER, $2::INTEGER)", "select * from t where id in (?)"),
        ("insert into t (a, b) values ($1, $2), ($3, $4)", "insert into t (a, b) values (?)"),
        ("select %(a)s, %(b)s, c from t where d = %s", "select ?, c from t where d = ?"),
        ("select 0xDEADBEEF, 1_000, .5, 1., 1e-9, 12abc", "select ?"),
        ("select t1.a2 from t1", "select t1.a2 from t1"),
        ('select "Track"."two words" from "Track"', 'select "Track"."two words" from "Track"'),
        ("select a$b$c from t", "select a$b$c from t"),
        ("update t set a = 1, b = 'x' where c = 2", "update t set a = ?, b = ? where c = ?"),
        ("set local app.user = anna", "set local app.user = ?"),
        ("SET search_path TO anna, public", "SET search_path TO ?"),
        ("select E'a\\'b', B'01', x'ff', N'n', U&'d!0061' UESCAPE '!'", "select ? UESCAPE ?"),
    ],
)
def test_a_statement_has_a_name(statement: str, name: str) -> None:
    assert shown(statement) == name


@pytest.mark.parametrize(
    "statement",
    [
        "select '{0}'",
        "select 'it''s {0}'",
        "select E'\\'{0}', 'x'",
        "select 'ends with a backslash\\', '{0}'",
        "select 'two \\\\', '{0}'",
        "select 'a''b\\' || '{0}'",
        "select 'never closed {0}",
        "select $${0}$$",
        "select $tag${0}$tag$",
        "select $é${0}$é$",
        "select $😀${0}$😀$",
        "select $tag${0}",
        "select 1 -- {0}",
        "select 1 -- {0}\rfrom t",
        "select /* {0} */ 1",
        "select /* a /* b */ {0} */ 1",
        "select /* {0}",
        "select e/* {0} */'{0}'",
        'select "{0}"',
        'select "never closed {0}',
        "select \" from t where a = '{0}'",
        "select U&'{0}' uescape '!'",
        "select t'{0}'",
        "alter user app password '{0}'",
        "notify changes, '{0}'",
        "select '{0}'\n'{0}'",
        "select E'a'\n'b\\' {0}'",
    ],
)
def test_no_value_survives(statement: str) -> None:
    assert SECRET not in fingerprint(statement.format(SECRET))
    assert "anna" not in fingerprint(statement.format(SECRET))
    # ... and what the value is makes no difference.
    assert fingerprint(statement.format(SECRET)) == fingerprint(statement.format("bob@example.com"))


def test_numbers_are_values() -> None:
    for number in ("4111111111111111", "0x4111", "4_111", "4111e3", "-4111.5"):
        assert "4111" not in fingerprint(f"select * from cards where number = {number}")


def test_what_is_shown_is_bounded_and_long_statements_are_still_told_apart() -> None:
    one, other = (f"select {', '.join(f'column_{i}' for i in range(200))} from {t}" for t in ("t", "u"))
    assert len(fingerprint(one)) <= LONGEST + len("[12345678] ")
    assert fingerprint(one) != fingerprint(other)


def test_a_huge_statement_costs_no_more_than_its_beginning() -> None:
    huge = "insert into t values " + ", ".join(f"({i}, '{SECRET}')" for i in range(200_000))
    started = time.process_time()
    assert fingerprint(huge).partition("] ")[2].startswith("insert into t values (?)")
    assert SECRET not in fingerprint(huge)
    assert time.process_time() - started < 1.0


def test_where_a_huge_statement_is_cut_makes_no_difference() -> None:
    names = {
        fingerprint("insert into t values " + ", ".join(f"('{'x' * width}', {i})" for i in range(20_000)))
        for width in range(20)
    }
    assert len(names) == 1


@pytest.mark.parametrize(
    ("statement", "summary"),
    [
        ("select * from tracks where id = 7", "SELECT tracks"),
        (f"select {', '.join(f'tracks.column_{i}' for i in range(99))}\nfrom tracks", "SELECT tracks"),
        ("INSERT INTO public.tracks (a) values ('x')", "INSERT public.tracks"),
        ('update only "Track" set a = 1', 'UPDATE "Track"'),
        ("delete from t", "DELETE t"),
        ("create temporary table if not exists t (a int)", "CREATE t"),
        ("with x as (select 1 from a) select * from x", "WITH x"),
        (
            "select (select count(*) from likes where (a = 1)), extract(year from b) from tracks",
            "SELECT tracks",
        ),
        ("select * from (select * from tracks) as x", "SELECT tracks"),
        ("(select 1) union (select 2)", "SELECT"),
        ("COMMIT", "COMMIT"),
        ("anna@example.org", "other"),
        ("", "other"),
    ],
)
def test_a_summary_is_an_operation_and_a_table(statement: str, summary: str) -> None:
    assert name_of(statement).summary == summary
