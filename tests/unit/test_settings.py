"""Every DATABASE_* variable: defaults, bounds, errors that name it, and no secret in anything that is shown."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from steadypool.errors import ConfigurationError
from steadypool.settings import (
    DatabaseSettings,
    IdlePolicy,
    Pooler,
    PrePing,
    SettingsError,
    settings_table,
    variable_of,
)

SECRET = "hunter2-s3cret"
URL = f"postgresql+asyncpg://app:{SECRET}@db.example:5433/plyr?sslmode=require"

NUMERIC = [
    row.variable.removeprefix("DATABASE_").lower()
    for row in settings_table()
    if row.unit and row.variable != "DATABASE_POOL_TIMEOUT"
] + ["pool_timeout"]
WHOLE = {name for name in NUMERIC if DatabaseSettings.model_fields[name].annotation is int}
CAN_BE_OFF = {
    "pool_recycle", "leak_after", "idle_in_transaction_timeout", "pool_idle_timeout", "request_deadline",
    "slow_query_after", "client_check_interval", "keepalive_idle", "tcp_user_timeout",
}  # fmt: skip


@pytest.fixture(autouse=True)
def empty_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for row in settings_table():
            patch.delenv(row.variable, raising=False)
        yield


def from_environment(**variables: str) -> DatabaseSettings:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        return DatabaseSettings()


def test_the_defaults_are_the_seed_documents() -> None:
    chosen = DatabaseSettings()
    assert chosen.url is None
    assert (chosen.statement_timeout, chosen.connection_timeout, chosen.pool_timeout) == (10.0, 10.0, 10.0)
    assert (chosen.pool_size, chosen.max_overflow, chosen.pool_recycle) == (10, 5, 7200.0)
    assert chosen.pool_pre_ping is PrePing.TRUE


def test_the_other_defaults() -> None:
    chosen = DatabaseSettings()
    assert chosen.ping_after_idle == 0.5
    assert (chosen.max_waiting, chosen.max_connecting) == (1_000, 4)
    assert (chosen.leak_after, chosen.idle_in_transaction_timeout) == (60.0, 60.0)
    assert chosen.pool_idle_timeout is None
    assert (chosen.close_grace, chosen.request_deadline, chosen.slow_query_after) == (5.0, 15.0, 0.5)
    assert chosen.breaker is True
    assert chosen.idle_policy is IdlePolicy.KEEP_AWAKE
    assert chosen.pooler is Pooler.AUTO
    assert (chosen.shared_connections, chosen.shared_window) == (2, 8)
    assert (chosen.shared_statement_timeout, chosen.shared_lock_timeout) == (2.0, 1.0)
    assert chosen.shared_result_limit == 16 * 1024 * 1024
    assert chosen.client_check_interval == 1.0


def test_the_seeds_production_block_is_read_from_the_environment() -> None:
    chosen = from_environment(
        DATABASE_POOL_SIZE="10",
        DATABASE_MAX_OVERFLOW="10",
        DATABASE_STATEMENT_TIMEOUT="2.0",
        DATABASE_CONNECTION_TIMEOUT="10.0",
        DATABASE_POOL_RECYCLE="7200",
        DATABASE_POOL_PRE_PING="true",
    )
    assert (chosen.pool_size, chosen.max_overflow, chosen.statement_timeout) == (10, 10, 2.0)


def test_pool_timeout_follows_connection_timeout_unless_it_is_given() -> None:
    assert DatabaseSettings(connection_timeout=3).pool_timeout == 3.0
    assert DatabaseSettings(connection_timeout=3, pool_timeout=7).pool_timeout == 7.0
    assert from_environment(DATABASE_CONNECTION_TIMEOUT="4").pool_timeout == 4.0
    assert from_environment(DATABASE_CONNECTION_TIMEOUT="4", DATABASE_POOL_TIMEOUT="5").pool_timeout == 5.0
    assert DatabaseSettings(connection_timeout=3).replace(connection_timeout=4).pool_timeout == 4.0


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_POOL_SIZE", "3")
    assert DatabaseSettings().pool_size == 3
    assert DatabaseSettings(pool_size=4).pool_size == 4


def test_an_env_file_is_read_only_when_named(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("DATABASE_POOL_SIZE=3\nLOGFIRE_ENABLED=true\n")
    assert DatabaseSettings().pool_size == 10
    assert DatabaseSettings(_env_file=".env").pool_size == 3


@pytest.mark.parametrize(
    ("given_value", "meant"),
    [
        ("true", PrePing.TRUE), ("True", PrePing.TRUE), (True, PrePing.TRUE), ("1", PrePing.TRUE),
        ("select1", PrePing.SELECT1), ("false", PrePing.FALSE), (False, PrePing.FALSE), ("off", PrePing.FALSE),
    ],
)  # fmt: skip
def test_pre_ping_takes_booleans_and_words(given_value: object, meant: PrePing) -> None:
    assert DatabaseSettings(pool_pre_ping=given_value).pool_pre_ping is meant


@pytest.mark.parametrize(("text", "meant"), [("off", False), ("on", True), ("false", False), ("1", True)])
def test_the_breaker_can_be_switched(text: str, meant: bool) -> None:
    assert from_environment(DATABASE_BREAKER=text).breaker is meant


@pytest.mark.parametrize("name", sorted(CAN_BE_OFF))
def test_what_can_be_off_takes_the_word_and_none(name: str) -> None:
    assert getattr(from_environment(**{variable_of(name): "off"}), name) is None
    assert getattr(DatabaseSettings(**{name: None}), name) is None


BAD = [
    ("statement_timeout", "10s", "10s", "without a unit"),
    ("statement_timeout", 0, "0", "no limit"),
    ("statement_timeout", None, "None", "allowed: 0.001 to 86,400 s"),
    ("statement_timeout", math.nan, "nan", "allowed"),
    ("connection_timeout", math.inf, "inf", "allowed"),
    ("connection_timeout", "inf", "inf", "allowed: 0.001 to 3,600 s; there has to be a limit"),
    ("max_waiting", "-Infinity", "-Infinity", "allowed: 1 to 1,000,000"),
    ("pool_recycle", "inf", "inf", "allowed: 1 to 2,592,000 s, or off"),
    ("pool_recycle", 1e9, "1000000000.0", "allowed: 1 to 2,592,000 s, or off"),
    ("shared_result_limit", 1, "1", "allowed: 1,024 to 2,147,483,648 bytes"),
    ("connection_timeout", -1, "-1", "allowed"),
    ("pool_timeout", 365 * 86_400, "31536000", "0.001 to 3,600 s"),
    ("pool_timeout", "", "", "empty"),
    ("pool_size", 0, "0", "SQLAlchemy reads 0 as no limit"),
    ("pool_size", 1_000_000, "1000000", "1 to 1,000"),
    ("pool_size", "ten", "ten", "not a number"),
    ("pool_size", "1_0", "1_0", "not a number"),
    ("pool_size", "٣", "٣", "not a number"),
    ("pool_size", 2.5, "2.5", "whole"),
    ("pool_size", True, "True", "allowed"),
    ("max_overflow", -1, "-1", "SQLAlchemy reads -1 as no limit"),
    ("pool_recycle", -1, "-1", "for never write off"),
    ("pool_recycle", 0, "0", "allowed: 1 to"),
    ("pool_pre_ping", "perhaps", "perhaps", "true, select1, false"),
    ("breaker", "perhaps", "perhaps", "on or off"),
    ("idle_policy", "sleepy", "sleepy", "keep_awake, allow_sleep"),
    ("pooler", "pgbouncer", "pgbouncer", "auto, none, session, transaction"),
    ("shared_result_limit", "16MiB", "16MiB", "without a unit"),
]


@pytest.mark.parametrize(("name", "value", "shown", "said"), BAD)
def test_what_cannot_work_is_refused_by_name_value_and_what_is_allowed(
    name: str, value: object, shown: str, said: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        DatabaseSettings(**{name: value})
    shown = "NoneType" if shown == "None" else shown
    assert str(caught.value).startswith(f"{variable_of(name)}={shown}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ConfigurationError)
    assert isinstance(caught.value, ValueError)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        DatabaseSettings(pool_size=0, connection_timeout="soon", breaker="x", pool_sise=3)
    lines = str(caught.value).splitlines()
    assert [line.split("=")[0].split(":")[0] for line in lines] == [
        "DATABASE_CONNECTION_TIMEOUT",
        "DATABASE_POOL_SIZE",
        "DATABASE_BREAKER",
        "pool_sise",
    ]


def test_more_shared_connections_than_the_pool_has_are_refused_only_when_asked_for() -> None:
    assert DatabaseSettings(pool_size=1, max_overflow=0).shared_connections == 2
    with pytest.raises(SettingsError, match=r"DATABASE_SHARED_CONNECTIONS=3: .*which is 1"):
        DatabaseSettings(pool_size=1, max_overflow=0, shared_connections=3)


@pytest.mark.parametrize(
    "bad",
    [
        f"mysql://app:{SECRET}@h/d",
        f"postgresql:/app:{SECRET}@h/d",
        f"app:{SECRET}@h/d",
        f" postgresql://app:{SECRET}@h/d",
        f"postgresql://app:{SECRET}@h/d\n",
        "",
    ],
)
def test_a_url_that_cannot_work_is_refused_without_being_shown(bad: str) -> None:
    for name in ("url", "direct_url"):
        with pytest.raises(SettingsError, match=f"^{variable_of(name)}: ") as caught:
            DatabaseSettings(**{name: bad})
        assert SECRET not in str(caught.value)
        assert caught.value.__suppress_context__


def test_a_url_that_strayed_into_another_variable_is_not_shown_either() -> None:
    with pytest.raises(SettingsError) as caught:
        DatabaseSettings(pool_size=URL)
    assert SECRET not in str(caught.value)
    assert "DATABASE_POOL_SIZE" in str(caught.value)


def test_a_missing_url_matters_only_when_it_is_needed() -> None:
    chosen = DatabaseSettings()
    assert chosen.safe_url is None
    with pytest.raises(SettingsError, match=r"^DATABASE_URL: it is not set"):
        chosen.require_url()
    with pytest.raises(SettingsError, match=r"^DATABASE_URL: it is not set"):
        chosen.require_direct_url()


def test_the_url_is_given_to_whoever_connects() -> None:
    chosen = DatabaseSettings(url=URL)
    assert chosen.require_url() == URL
    assert chosen.require_direct_url() == URL
    assert DatabaseSettings(url=URL, direct_url="postgresql://d/x").require_direct_url() == "postgresql://d/x"


async def _token() -> str:
    return SECRET


@pytest.mark.parametrize("password", [SECRET, SecretStr(SECRET), lambda: SECRET, _token])
def test_nothing_that_is_shown_contains_a_secret(password: object) -> None:
    chosen = DatabaseSettings(
        url=URL, direct_url=f"postgresql://u:{SECRET}@h/d?password={SECRET}", password=password
    )
    for shown in (
        repr(chosen), str(chosen), f"{chosen}", repr(chosen.model_dump()), str(chosen.model_dump(mode="json")),
        chosen.model_dump_json(), repr(chosen.password), str(chosen.safe_url), repr(copy.copy(chosen)),
    ):  # fmt: skip
        assert SECRET not in shown
    assert chosen.safe_url == "postgresql+asyncpg://app:***@db.example:5433/plyr?sslmode=require"
    assert copy.deepcopy(chosen).require_url() == URL


def test_settings_are_not_pickled() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="would hold the password"):
            pickle.dumps(DatabaseSettings(url=URL), protocol)


def test_the_password_is_an_argument_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "x")
    monkeypatch.setenv("PASSWORD", "x")
    assert DatabaseSettings().password is None
    with pytest.raises(SettingsError, match=r"^password: text or a function that returns it, not int \["):
        DatabaseSettings(password=5)


def test_settings_do_not_change_and_replace_makes_others() -> None:
    chosen = DatabaseSettings(pool_size=3, password=SECRET)
    with pytest.raises(ValueError, match="frozen"):
        chosen.pool_size = 4
    other = chosen.replace(max_overflow=0)
    assert (chosen.max_overflow, other.max_overflow, other.pool_size) == (5, 0, 3)
    assert other.password == SecretStr(SECRET)
    with pytest.raises(SettingsError, match="DATABASE_POOL_SIZE=0"):
        chosen.replace(pool_size=0)
    with pytest.raises(SettingsError, match="DATABASE_POOL_SIZE=0"):
        chosen.model_copy(update={"pool_size": 0})
    with pytest.raises(SettingsError, match=r"^pool_sise: no such setting"):
        chosen.replace(pool_sise=1)


def test_replace_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = DatabaseSettings(pool_size=3)
    monkeypatch.setenv("DATABASE_MAX_OVERFLOW", "99")
    assert chosen.replace(pool_size=4).max_overflow == 5


def test_every_variable_is_documented() -> None:
    rows = list(settings_table())
    assert [row.variable for row in rows] == [variable_of(name) for name in DatabaseSettings.model_fields]
    assert all(row.meaning.endswith(".") and row.default for row in rows)
    by_name = {row.variable: row for row in rows}
    assert by_name["DATABASE_POOL_TIMEOUT"].default == "= DATABASE_CONNECTION_TIMEOUT"
    assert by_name["DATABASE_POOL_RECYCLE"][:3] == ("DATABASE_POOL_RECYCLE", "7200", "s")
    assert by_name["DATABASE_POOL_IDLE_TIMEOUT"].default == "off"


def test_a_documented_default_means_the_default() -> None:
    spelled = {
        row.variable: row.default for row in settings_table() if not row.default.startswith(("=", "not set"))
    }
    assert from_environment(**spelled).model_dump() == DatabaseSettings().model_dump()


anything = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(),
    st.text(max_size=20),
    st.none(),
    st.booleans(),
)


def accepted_or_refused(name: str, value: object) -> tuple[str | None, object]:
    try:
        return None, getattr(DatabaseSettings(**{name: value}), name)
    except SettingsError as error:
        return str(error), None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", NUMERIC)
@given(value=anything)
@example(value=10**5000)
@example(value="1e999")
@example(value="0x10")
@example(value="-0")
def test_any_value_is_within_bounds_or_refused_by_name(name: str, value: object) -> None:
    refusal, chosen = accepted_or_refused(name, value)
    if refusal is not None:
        assert refusal.startswith(f"{variable_of(name)}=")
        assert len(refusal.splitlines()) == 1
        return
    if chosen is None:
        assert name in CAN_BE_OFF
        return
    assert type(chosen) is (int if name in WHOLE else float)
    assert math.isfinite(chosen)
    assert chosen == float(value)  # accepted means taken as it was written
    assert 0 <= chosen <= 2**31


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", NUMERIC)
@given(data=st.data())
def test_what_an_argument_may_be_the_environment_may_spell(name: str, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, 100) if name in WHOLE else st.floats(1, 1000))
    if name == "shared_result_limit":
        number *= 1024
    if name == "shared_connections":
        number = min(number, 15)
    by_argument = getattr(DatabaseSettings(**{name: number}), name)
    assert getattr(from_environment(**{variable_of(name): repr(number)}), name) == by_argument == number
