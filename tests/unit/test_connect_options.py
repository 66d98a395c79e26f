"""Each option of libpq with each driver: passed, carried out, or refused by name; and the guards of a session."""

from __future__ import annotations

import inspect
import re
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from psycopg import pq

from steadypool.connect.dsn import Host, parse_url
from steadypool.connect.options import (
    ASYNCPG,
    HONOURED,
    PSYCOPG,
    Honour,
    asyncpg_arguments,
    merged_options,
    psycopg_arguments,
    sqlalchemy_options,
)
from steadypool.connect.session_settings import session_guards, socket_guards
from steadypool.errors import ConfigurationError
from steadypool.settings import DatabaseSettings

NEON = "postgresql://u:pw@ep-x.neon.tech/db?sslmode=require&channel_binding=require"
ARGUMENTS = {ASYNCPG: asyncpg_arguments, PSYCOPG: psycopg_arguments}
SAMPLES = {
    "sslmode": "require", "sslnegotiation": "postgres", "target_session_attrs": "any", "channel_binding": "prefer",
    "load_balance_hosts": "disable", "connect_timeout": "3", "keepalives": "1", "keepalives_idle": "3",
    "keepalives_interval": "3", "keepalives_count": "3", "tcp_user_timeout": "3", "port": "5432", "host": "h",
    "hostaddr": "10.0.0.1", "command_timeout": "3.5", "statement_cache_size": "3",
    "max_cached_statement_lifetime": "3", "max_cacheable_statement_size": "3", "ssl": "require",
}  # fmt: skip


@pytest.mark.parametrize("driver", [ASYNCPG, PSYCOPG])
def test_every_option_of_libpq_is_in_the_table(driver: str) -> None:
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    internal = {"authtype", "tty", "oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope",
                "scram_client_key", "scram_server_key"}  # fmt: skip
    assert known - internal <= HONOURED[driver].keys()


@pytest.mark.parametrize(("driver", "name"), [(d, n) for d, rules in HONOURED.items() for n in rules])
def test_the_table_is_true(driver: str, name: str) -> None:
    rule = HONOURED[driver][name]
    url = f"postgresql://h/d?{name}={SAMPLES.get(name, 'x')}"
    if rule.honour is not Honour.REFUSED:
        ARGUMENTS[driver](parse_url(url))
        return
    with pytest.raises(
        ConfigurationError, match=re.escape(f"{name}=x cannot be honoured by {driver}: {rule.note}")
    ):
        ARGUMENTS[driver](parse_url(url))
    for harmless in rule.harmless:
        asked = f"postgresql://h/d?{name}={harmless}"
        assert ARGUMENTS[driver](parse_url(asked)) == ARGUMENTS[driver](parse_url("postgresql://h/d"))


@pytest.mark.parametrize(
    "name", [name for name, rule in HONOURED[PSYCOPG].items() if rule.honour is Honour.NATIVE]
)
def test_what_psycopg_does_itself_reaches_it(name: str) -> None:
    value = SAMPLES.get(name, "x")
    assert psycopg_arguments(parse_url(f"postgresql://h/d?{name}={value}"))[name] == value


def test_asyncpg_gets_only_arguments_that_it_has() -> None:
    names = [name for name, rule in HONOURED[ASYNCPG].items() if rule.honour is not Honour.REFUSED]
    known = inspect.signature(asyncpg.connect).parameters
    for name in names:
        given = asyncpg_arguments(parse_url(f"postgresql://h/d?{name}={SAMPLES.get(name, 'x')}"))
        assert given.keys() <= known.keys()


def test_neons_url_for_psycopg() -> None:
    assert psycopg_arguments(parse_url(NEON)) == {
        "host": "ep-x.neon.tech",
        "port": "5432",
        "user": "u",
        "password": "pw",
        "dbname": "db",
        "sslmode": "require",
        "channel_binding": "require",
    }


def test_neons_url_for_asyncpg() -> None:
    assert asyncpg_arguments(parse_url(NEON)) == {
        "host": ["ep-x.neon.tech"],
        "port": [5432],
        "user": "u",
        "password": "pw",
        "database": "db",
        "dsn": "postgresql://?sslmode=require",
    }


def test_binding_raises_a_weaker_sslmode_for_asyncpg() -> None:
    for weaker in ("", "sslmode=prefer&", "sslmode=allow&"):
        given = asyncpg_arguments(parse_url(f"postgresql://h/d?{weaker}channel_binding=require"))
        assert given["dsn"] == "postgresql://?sslmode=require"
    given = asyncpg_arguments(parse_url("postgresql://h/d?sslmode=verify-full&channel_binding=require"))
    assert given["dsn"] == "postgresql://?sslmode=verify-full"


@pytest.mark.parametrize("driver", [ASYNCPG, PSYCOPG])
@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("sslmod=require", "did you mean sslmode?"),
        ("statement_timeout=5", "options=-c%20statement_timeout%3D"),
        ("sslmode=on", "allowed: disable, allow, prefer, require, verify-ca, verify-full"),
        ("channel_binding=on", "allowed: disable, prefer, require"),
        ("connect_timeout=10s", "a whole number"),
        ("keepalives_idle=-1", "a whole number"),
        ("sslmode=require&sslrootcert=system", "verify-full"),
        ("sslrootcert=system", "verify-full"),
        ("sslmode=prefer&sslnegotiation=direct", "require, verify-ca, verify-full"),
        ("sslmode=disable&channel_binding=require", "without TLS"),
        ("service=x", "into the URL"),
    ],
)
def test_what_means_nothing_is_refused_with_what_to_do(driver: str, query: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ARGUMENTS[driver](parse_url(f"postgresql://u:hunter2@h/d?{query}"))
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_an_option_of_the_other_driver_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="it is an option of asyncpg"):
        psycopg_arguments(parse_url("postgresql://h/d?command_timeout=3"))
    with pytest.raises(ConfigurationError, match="it is an option of asyncpg"):
        psycopg_arguments(parse_url("postgresql://h/d?prepared_statement_cache_size=3"))


@pytest.mark.parametrize(
    "query", ["command_timeout=x", "statement_cache_size=1.5", "statement_cache_size=-1"]
)
def test_asyncpgs_own_numbers_are_checked(query: str) -> None:
    with pytest.raises(ConfigurationError, match="a number"):
        asyncpg_arguments(parse_url(f"postgresql://h/d?{query}"))


def test_asyncpg_cannot_reach_an_abstract_socket() -> None:
    with pytest.raises(ConfigurationError, match="abstract socket"):
        asyncpg_arguments(parse_url("postgresql:///d?host=@x"))


def test_what_is_for_sqlalchemys_adapter_is_kept_apart() -> None:
    target = parse_url("postgresql+asyncpg://h/d?prepared_statement_cache_size=0&sslmode=require")
    assert sqlalchemy_options(target, ASYNCPG) == {"prepared_statement_cache_size": "0"}
    assert "prepared_statement_cache_size" not in asyncpg_arguments(target)


def test_several_hosts() -> None:
    target = parse_url("postgresql://a:1,b/d?hostaddr=10.0.0.1,&options=-c+jit%3Doff")
    assert psycopg_arguments(target)["host"] == "a,b"
    assert psycopg_arguments(target)["port"] == "1,5432"
    assert psycopg_arguments(target)["hostaddr"] == "10.0.0.1,"
    assert asyncpg_arguments(target)["host"] == ["a", "b"]
    assert target.hosts == (Host("a", 1, "10.0.0.1"), Host("b"))


def test_another_password_takes_the_place_of_the_urls() -> None:
    for driver, function in ARGUMENTS.items():
        assert function(parse_url(NEON), password="token")["password"] == "token", driver


def test_tls_options_reach_asyncpg_and_nothing_else_does_with_them() -> None:
    given = asyncpg_arguments(
        parse_url("postgresql://u:p@h/d?sslmode=verify-full&sslrootcert=/a b&sslcert=/c&application_name=x")
    )
    assert parse_qs(urlsplit(given["dsn"]).query) == {
        "sslmode": ["verify-full"],
        "sslrootcert": ["/a b"],
        "sslcert": ["/c"],
    }
    assert given["server_settings"] == {"application_name": "x"}


# -- guards ----------------------------------------------------------------------------------------------------


def test_the_default_guards() -> None:
    assert session_guards(DatabaseSettings()) == {
        "statement_timeout": "10000",
        "idle_in_transaction_session_timeout": "60000",
        "client_connection_check_interval": "1000",
        "tcp_keepalives_idle": "30",
        "tcp_keepalives_interval": "10",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": "30000",
    }
    assert socket_guards(DatabaseSettings()) == {
        "keepalives": "1",
        "keepalives_idle": "30",
        "keepalives_interval": "10",
        "keepalives_count": "3",
        "tcp_user_timeout": "30000",
    }


def test_guards_that_are_off_are_not_sent() -> None:
    chosen = DatabaseSettings(
        statement_timeout=0.0015,
        idle_in_transaction_timeout="off",
        client_check_interval="off",
        keepalive_idle="off",
        tcp_user_timeout="off",
    )
    assert session_guards(chosen) == {"statement_timeout": "2"}
    assert socket_guards(chosen) == {}


def test_no_guard_is_ever_rounded_to_no_limit() -> None:
    chosen = DatabaseSettings(statement_timeout=0.001, idle_in_transaction_timeout=0.001, keepalive_idle=1)
    assert all(int(value) >= 1 for value in session_guards(chosen).values())


def test_guards_for_psycopg_come_before_the_urls_own_options() -> None:
    target = parse_url("postgresql://h/d?options=-c+statement_timeout%3D5")
    guards = {"statement_timeout": "2000", "application_name": r"a b\c"}
    assert psycopg_arguments(target, guards=guards)["options"] == (
        r"-c statement_timeout=2000 -c application_name=a\ b\\c -c statement_timeout=5"
    )
    assert merged_options(None, {}) == ""


def test_guards_for_asyncpg_are_start_up_settings_unless_the_url_has_options() -> None:
    guards = {"statement_timeout": "2000"}
    assert asyncpg_arguments(parse_url("postgresql://h/d"), guards=guards)["server_settings"] == guards
    target = parse_url("postgresql://h/d?options=-c+statement_timeout%3D5&application_name=x")
    assert asyncpg_arguments(target, guards=guards)["server_settings"] == {
        "application_name": "x",
        "options": "-c statement_timeout=2000 -c statement_timeout=5",
    }
