"""What is fuzzed. A target takes any bytes; what it raises is a finding, and so is the time that it takes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fuzz.answers import answers
from steadypool._sql import fingerprint, session_state
from steadypool._sql.lexer import first_word, is_name, split, statements, tokens
from steadypool.connect.channel_binding import ScramPlus, certificate_hash
from steadypool.connect.dsn import parse_url
from steadypool.connect.failure import BindingRefused, ClientRefused
from steadypool.connect.last_words import last_words_in
from steadypool.connect.log_in import NotPostgres, examine
from steadypool.connect.options import asyncpg_arguments, psycopg_arguments
from steadypool.errors import ConfigurationError
from steadypool.monitor.locks import lock_of
from steadypool.multiplex import eligibility
from steadypool.settings.validators import redact_url

OneInput = Callable[[bytes], None]
SECRET = "hunterZWEI"


def lexer(data: bytes) -> None:
    """SQL is read without gaps, and what is made of it never fails."""
    sql = data.decode("utf-8", "replace")
    for backslashes in (False, True):
        end = 0
        for _, start, after in tokens(sql, backslashes=backslashes):
            assert start == end < after
            end = after
        assert end == len(sql)
        for words in statements(sql, backslashes=backslashes):
            assert words
            assert all(words)
            for word in words:
                is_name(word)
    for part in split(sql):
        assert part in sql
    assert first_word(sql) == first_word(f" /* a */ {sql}")
    assert fingerprint._name(sql).fingerprint.isprintable()
    assert len(fingerprint._name(sql).fingerprint) <= fingerprint.LONGEST + len("[01234567] ")
    refused = eligibility._refusal(sql)
    if refused is None and sql.isascii() and "\0" not in sql:
        assert eligibility._refusal(f"{sql}\n;begin") is not None or _swallows(sql)
    session_state._touches(sql)
    eligibility.runs_in_no_block(sql)
    lock_of(fingerprint._name(sql).fingerprint)


def _swallows(sql: str) -> bool:
    """Whether what follows a text is still part of its last token, or of a body that has not ended."""
    return any(len(statements(f"{sql}\n;begin", backslashes=each)) == len(statements(sql, backslashes=each))
               or split(f"{sql}\n;begin") == [sql] for each in (False, True))  # fmt: skip


def dsn(data: bytes) -> None:
    """A URL is taken apart or refused, and shows its password in neither case."""
    text = data.decode("utf-8", "replace")
    with_secret = f"postgresql://app:{SECRET}@{text}"
    for url in (text, f"postgresql://{text}", with_secret, f"postgresql://h/d?{text}"):
        shown = [redact_url(url)]
        try:
            target = parse_url(url)
        except ConfigurationError as error:
            shown.append(str(error))
        else:
            shown += repr(target), str(target)
            hash(target)
            for honoured in (asyncpg_arguments, psycopg_arguments):
                try:
                    honoured(target)
                except ConfigurationError as error:
                    shown.append(str(error))
        if url is with_secret and SECRET not in text:
            assert not any(SECRET in each for each in shown), shown


def log_in(data: bytes) -> None:
    """What a server says until it lets us in means the same however it is cut, and never too many rounds."""
    assert _outcome([data]) == _outcome([data[at : at + 1] for at in range(len(data))])
    last_words_in(data)
    with contextlib.suppress(BindingRefused):
        certificate_hash(data)
    exchange = ScramPlus("secret", b"binding", nonce="n")
    if not re.search(rb"i=[\d_+ ]{5}", data):  # else it takes its time, as it should
        with contextlib.suppress(BindingRefused, ClientRefused):
            exchange.final(data)
    with contextlib.suppress(BindingRefused):
        exchange.verify(data)


def _outcome(pieces: Sequence[bytes]) -> str:
    rest = b""
    for piece in pieces:
        try:
            seen = examine(rest + piece)
        except (ClientRefused, NotPostgres) as refused:
            return type(refused).__name__
        assert seen.wanted > 0 or not seen.rest
        if seen.over:
            return "over"
        rest = seen.rest
    return f"goes on with {len(rest)}"


@dataclass(frozen=True)
class Target:
    """A function, what it is begun with, and of how many inputs a short run is."""

    one_input: OneInput
    seeds: tuple[bytes, ...]
    count: int


TARGETS = {
    "lexer": Target(
        lexer,
        (
            b"select 'a''b', E'\\'--', $1::int[] /* a /* b */ */ from \"T\" where u&\"\\0061\" = U&'x' uescape '!'",
            b"create function f() begin atomic select case when 1 then 2 end; end; -- x\nset local a.b = $t$ c $t$",
            b"explain (analyze) update pg_settings set a = 0x1F_f, b = 1.5e-3; listen c; prepare p as select ':a'",
            b"insert into t values (%(a)s, N'\\\\', B'01', 'a'\n 'b') on conflict do nothing; set_config('a','b',true)",
            "declare é cursor with hold for select \u2028 1..2".encode(),
        ),
        600,
    ),
    "dsn": Target(
        dsn,
        (
            b"postgresql+asyncpg://app:pw@db.example:5432,[::1]:5433/name?sslmode=require&target_session_attrs=any",
            b"app:p%40w@/d?host=/tmp&port=1&options=-c%20a%3Db&connect_timeout=1",
            b"host=a:5432&host=b&sslcert=x&channel_binding=require&gssencmode=disable&keepalives_idle=1",
            b"user:pa@ss@h:port,h2:99999/d#f",
        ),
        600,
    ),
    "log_in": Target(
        log_in,
        (
            b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0R\0\0\0\x22\0\0\0\x0br=nab,s=c2FsdA==,i=4096R\0\0\0\x08\0\0\0\0",
            b"r=nab,s=c2FsdA==,i=4096",
            b"E\0\0\0\x21SFATAL\0VFATAL\0C57P01\0Mterminating\0\0",
            bytes.fromhex("3082010a3081b1a003020102300a06082a8648ce3d040302300d310b3009060355040303023132"),
        ),
        1_000,
    ),
    "answers": Target(
        answers,
        (
            b"\x03\x80123\x06\x0212CZ12TDDCZ12TDCZ",
            b"\x02\x0012E\x02Z12TDddCZ",
            b"\x03\x8112N\x01AATDACZ12GHccCZ12sSCZ",
        ),
        150,
    ),
}
