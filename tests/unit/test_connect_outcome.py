"""What a failed connect means, told from codes and types alone."""

from __future__ import annotations

import socket
import ssl

import asyncpg
import psycopg
import pytest

from steadypool.connect.failure import (
    BindingRefused,
    CertificateNotProven,
    ServerRefused,
    classify_connect_error,
)
from steadypool.errors import ConfigurationError


def asyncpg_error(code: str, message: str, detail: str = "") -> Exception:
    return asyncpg.PostgresError.new({"C": code, "M": message, "D": detail, "S": "FATAL"})


@pytest.mark.parametrize("make", [asyncpg_error, lambda code, message: ServerRefused(message, code)])
@pytest.mark.parametrize(
    ("code", "final"),
    [
        ("28P01", True), ("28000", True), ("3D000", True), ("42501", True), ("42704", True), ("22023", True),
        ("57P03", False), ("53300", False), ("57P01", False), ("08P01", False), ("XX000", False),
    ],
)  # fmt: skip
def test_the_servers_code_decides_in_every_language(make: object, code: str, final: bool) -> None:
    outcome = make(code, "парольная проверка не пройдена")  # type: ignore[operator]
    told = classify_connect_error(outcome)
    assert (told.sqlstate, told.final) == (code, final)
    assert told.summary == "парольная проверка не пройдена"


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (ConnectionRefusedError(111, "refused"), False),
        (ConnectionResetError(104, "reset"), False),
        (TimeoutError(), False),
        (TimeoutError(110, "timed out"), False),
        (OSError(113, "no route"), False),
        (FileNotFoundError(2, "no such file"), False),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), False),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), False),
        (psycopg.OperationalError("whatever"), False),
        (ssl.SSLError(1, "handshake failure"), False),
        (PermissionError(13, "denied"), True),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), True),
        (CertificateNotProven("no"), True),
        (BindingRefused("no"), True),
        (ConfigurationError("no"), True),
        (psycopg.ProgrammingError("bad option"), True),
        (asyncpg.exceptions.ClientConfigurationError("bad option"), True),
        (asyncpg.InterfaceError("unsupported authentication"), True),
    ],
)
def test_without_a_code_the_type_decides(error: Exception, final: bool) -> None:
    told = classify_connect_error(error)
    assert told.sqlstate is None
    assert told.final is final
    assert told.summary
    assert "\n" not in told.summary


def test_the_code_is_found_in_the_cause() -> None:
    error = RuntimeError("wrapped")
    error.__cause__ = ServerRefused("no", "28P01")
    assert classify_connect_error(error).sqlstate == "28P01"


def test_an_empty_message_becomes_the_name_of_the_error() -> None:
    assert classify_connect_error(RuntimeError()).summary == "RuntimeError"
    assert classify_connect_error(TimeoutError()).summary == "no answer in time"


def test_the_servers_detail_stays_out() -> None:
    assert "row" not in classify_connect_error(asyncpg_error("23505", "no", "a row")).summary


@pytest.mark.parametrize(
    ("code", "same"), [("28P01", True), ("3D000", True), ("57P03", False), ("53300", False)]
)
def test_whether_the_next_host_would_say_the_same(code: str, same: bool) -> None:
    assert classify_connect_error(ServerRefused("no", code)).concerns_all_hosts is same
