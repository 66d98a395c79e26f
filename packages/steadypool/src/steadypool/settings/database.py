"""Every `DATABASE_*` variable: its default, its unit, what may stand in it, and why it exists.

This module is the only place that knows them; the documentation's tables are made from `settings_table()`.
A value that cannot work is refused with its variable's name, never corrected silently.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn, Self, cast

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_serializer,
    model_validator,
)
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as SourceError

from steadypool.errors import ConfigurationError, words_of
from steadypool.settings.validators import (
    FALSE_WORDS,
    HIDDEN,
    TRUE_WORDS,
    check_numeric,
    check_path,
    check_switch,
    check_url,
    check_web_url,
    check_word,
    redact_url,
    shown,
)

PREFIX = "DATABASE_"

DAY = 86_400.0

Password = str | SecretStr | Callable[[], str] | Callable[[], Awaitable[str]]
"""A password, or a function (plain or async) that is asked for one before every connect."""


class SettingsError(ConfigurationError):
    """One or more settings cannot work; a line for each, with the variable, its value and what is allowed."""


class PrePing(StrEnum):
    """How a connection is proven alive before it is handed out."""

    TRUE = "true"
    SELECT1 = "select1"
    FALSE = "false"


class IdlePolicy(StrEnum):
    """Whether an idle application may let a serverless database fall asleep."""

    KEEP_AWAKE = "keep_awake"
    ALLOW_SLEEP = "allow_sleep"


class Pooler(StrEnum):
    """What stands between the application and Postgres."""

    AUTO = "auto"
    NONE = "none"
    SESSION = "session"
    TRANSACTION = "transaction"


class ConnectRetry(StrEnum):
    """What callers do after a connect that failed."""

    WAKE = "wake"
    NEVER = "never"


def _pre_ping(value: object) -> object:
    if isinstance(value, str | int):
        word = str(value).strip().lower()
        if word == PrePing.SELECT1.value:
            return PrePing.SELECT1
        if word in TRUE_WORDS:
            return PrePing.TRUE
        if word in FALSE_WORDS:
            return PrePing.FALSE
    raise ValueError("allowed: true, select1, false")


class Reset(StrEnum):
    """After which uses of a connection its session is made clean."""

    TOUCHED = "touched"
    ALWAYS = "always"
    NEVER = "never"


class Dashboard(StrEnum):
    """Who may see the live page."""

    OFF = "off"
    LOOPBACK = "loopback"
    SIGNED_IN = "signed_in"


LET_GO_AFTER = 60.0
"""Seconds without use after which connections are let go under `allow_sleep`: well before the suspend times of
serverless databases, which are minutes and may only begin to count once nobody is connected."""

# -- the variables -------------------------------------------------------------------------------------------

_Url = Annotated[SecretStr | None, BeforeValidator(check_url)]
_WebUrl = Annotated[SecretStr | None, BeforeValidator(check_web_url)]
_Switch = Annotated[bool, BeforeValidator(check_switch)]


def _setting(default: Any, meaning: str, unit: str = "", **more: Any) -> Any:
    """A field with what the documentation needs to know about it."""
    if default is not PydanticUndefined:
        more["default"] = default
    return Field(description=meaning, json_schema_extra={"unit": unit}, **more)


def _seconds(low: float, high: float = DAY, *, off: bool = False, hint: str = "") -> BeforeValidator:
    return BeforeValidator(check_numeric(low, high, "s", whole=False, off=off, hint=hint))


def _count(low: int, high: int, *, unit: str = "", hint: str = "") -> BeforeValidator:
    return BeforeValidator(check_numeric(low, high, unit, whole=True, off=False, hint=hint))


def _follow_connection_timeout(values: dict[str, Any]) -> float:
    """The default of pool_timeout; one that was refused is reported itself."""
    return cast(float, values.get("connection_timeout", 10.0))


_RATIO = check_numeric(0.01, 10, "", whole=False, off=False, hint="0.8 is 80 %")
_NO_ZERO = "0 would mean no limit at all, and a limit is what this setting is for"


class DatabaseSettings(BaseSettings):
    """What the environment says about the database: a field per `DATABASE_*` variable, without the prefix.

    Arguments win over the environment. No `.env` file is read unless `_env_file=` names one. An instance
    never changes; `replace()` makes another. Neither `repr`, `str` nor a dump shows a secret.

    Args:
        password: the password, where it is not in the URL: text, or a function (plain or async) that is
            called before every connect, for tokens that expire. An argument only: no variable is read for it.
        **values: the settings, by field name.

    Raises:
        SettingsError: a value cannot work, or an argument is unknown; all of them in one message.

    Example:
        >>> settings = DatabaseSettings(url="postgresql://app:secret@db.example/plyr", pool_size=15)
        >>> settings.pool_size + settings.max_overflow, settings.safe_url
        (20, 'postgresql://app:***@db.example/plyr')
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=None,
        extra="ignore",  # a .env holds other programs' variables too; __init__ refuses unknown arguments
        frozen=True,
        hide_input_in_errors=True,
        validate_default=False,
        enable_decoding=False,  # no field is JSON
    )

    url: _Url = _setting(
        None, "Where the database is, with user and password: postgresql://user:password@host/name."
    )
    direct_url: _Url = _setting(
        None,
        "The address past a transaction pooler, for LISTEN; the same as DATABASE_URL when it is not set.",
    )

    statement_timeout: Annotated[float, _seconds(0.001, hint=_NO_ZERO)] = _setting(
        10.0,
        "How long one SQL statement may run before the server ends it: a runaway must not hold a connection.",
        "s",
    )
    connection_timeout: Annotated[float, _seconds(0.001, 3600, hint=_NO_ZERO)] = _setting(
        10.0,
        "How long opening a connection may take: names, every address, TLS and log-in together. "
        "Longer than the 5-10 s a sleeping database needs to wake.",
        "s",
    )
    connect_retry: Annotated[ConnectRetry, BeforeValidator(check_word(ConnectRetry))] = _setting(
        ConnectRetry.WAKE,
        "What a caller does after a connect that failed: wake waits for the database, which may be waking or "
        "restarting, and tries again until the caller's time is up; never fails at once.",
    )
    pool_timeout: Annotated[float, _seconds(0.001, 3600, hint=_NO_ZERO)] = _setting(
        PydanticUndefined,
        "How long a request waits while all connections are busy; DATABASE_CONNECTION_TIMEOUT unless set.",
        "s",
        default_factory=_follow_connection_timeout,
    )
    pool_size: Annotated[
        int, _count(1, 1_000, hint="SQLAlchemy reads 0 as no limit; here every pool has one")
    ] = _setting(10, "Connections kept open between requests.", "connections")
    max_overflow: Annotated[
        int, _count(0, 1_000, hint="SQLAlchemy reads -1 as no limit; here every pool has one")
    ] = _setting(
        5, "Further connections for bursts; closed when they come back and nobody waits.", "connections"
    )
    pool_recycle: Annotated[float | None, _seconds(1, 30 * DAY, off=True, hint="for never write off")] = (
        _setting(
            7200.0,
            "Age at which a connection is replaced, less up to 10 %: a fleet must not reconnect as one.",
            "s",
        )
    )
    pool_pre_ping: Annotated[PrePing, BeforeValidator(_pre_ping)] = _setting(
        PrePing.TRUE,
        "Prove a connection alive before use: true (when its last proof is older than "
        "DATABASE_PING_AFTER_IDLE), select1 (a SELECT 1 before every use), false (never).",
    )

    ping_after_idle: Annotated[float, _seconds(0, 3600)] = _setting(
        0.5, "A connection proven alive more recently than this is used without a ping.", "s"
    )
    max_waiting: Annotated[int, _count(1, 1_000_000)] = _setting(
        1_000,
        "Callers that may wait for a connection; the next is refused at once: its wait would be hopeless.",
        "callers",
    )
    max_connecting: Annotated[int, _count(1, 1_000)] = _setting(
        4,
        "Connections being opened at the same time; a database that just woke is not stormed.",
        "connections",
    )
    leak_after: Annotated[float | None, _seconds(0.001, off=True)] = _setting(
        60.0, "A connection held longer than this is reported, with who holds it.", "s"
    )
    idle_in_transaction_timeout: Annotated[float | None, _seconds(0.001, off=True)] = _setting(
        60.0,
        "The server ends a transaction that does nothing for this long; it would hold its locks for ever.",
        "s",
    )
    pool_idle_timeout: Annotated[float | None, _seconds(0.001, 30 * DAY, off=True)] = _setting(
        None, "An idle connection is closed after this time.", "s"
    )
    close_grace: Annotated[float, _seconds(0, 3600)] = _setting(
        5.0, "How long closing waits for busy connections before it aborts them.", "s"
    )
    request_deadline: Annotated[float | None, _seconds(0.001, off=True)] = _setting(
        15.0, "How long a web request may take in all where it sets no deadline itself.", "s"
    )
    slow_query_after: Annotated[float | None, _seconds(0, off=True)] = _setting(
        0.5, "Statements slower than this are logged.", "s"
    )
    breaker: _Switch = _setting(
        True,
        "While the database is down one attempt probes it, the rest fail at once; off: every request tries.",
    )
    idle_policy: Annotated[IdlePolicy, BeforeValidator(check_word(IdlePolicy))] = _setting(
        IdlePolicy.KEEP_AWAKE,
        "keep_awake keeps a serverless database from suspending (which is billed); allow_sleep lets it.",
    )
    pooler: Annotated[Pooler, BeforeValidator(check_word(Pooler))] = _setting(
        Pooler.AUTO,
        "What stands before Postgres: none, session, transaction (prepared statements and session state do "
        "not survive there), or auto to find out.",
    )
    reset: Annotated[Reset, BeforeValidator(check_word(Reset))] = _setting(
        Reset.TOUCHED,
        "When a session is made clean before the next holder gets it (role, settings, locks, temporary tables, LISTEN, "
        "cursors): touched (after a use whose statements may have changed it), always (after every use, for functions "
        "that change it inside), never (only transactions are rolled back, as SQLAlchemy's pool does).",
    )
    client_check_interval: Annotated[float | None, _seconds(0.001, 3600, off=True)] = _setting(
        1.0,
        "How often the server looks whether the client of a running statement is still there "
        "(client_connection_check_interval); without it an aborted statement runs to its end.",
        "s",
    )
    keepalive_idle: Annotated[float | None, _seconds(1, off=True)] = _setting(
        30.0,
        "A connection silent this long is probed by TCP, from both ends; after three probes it is dead.",
        "s",
    )
    tcp_user_timeout: Annotated[float | None, _seconds(0.001, off=True)] = _setting(
        30.0, "A connection whose sent data stays unacknowledged this long is dead, from both ends.", "s"
    )

    shared_connections: Annotated[int, _count(0, 100)] = _setting(
        2,
        "Connections over which statements of many callers travel together; 0 turns that way off.",
        "connections",
    )
    shared_window: Annotated[int, _count(1, 1_000)] = _setting(
        8,
        "Statements on their way at once on a shared connection; the most that can queue behind a slow one.",
        "statements",
    )
    shared_statement_timeout: Annotated[float, _seconds(0.001, hint=_NO_ZERO)] = _setting(
        2.0, "How long a statement may run on a shared connection, where others wait behind it.", "s"
    )
    shared_lock_timeout: Annotated[float, _seconds(0.001, hint=_NO_ZERO)] = _setting(
        1.0, "How long a statement on a shared connection may wait for a lock.", "s"
    )
    shared_result_limit: Annotated[int, _count(1_024, 2**31, unit="bytes")] = _setting(
        16 * 2**20, "Largest result over a shared connection; more is discarded and refused.", "bytes"
    )

    recorder: _Switch = _setting(
        True,
        "Remember the last hour by the second and the last day by the minute, for the live page, for alerts and for "
        "steadypool advise.",
    )
    recorder_file: Annotated[Path | None, BeforeValidator(check_path)] = _setting(
        None, "Where the recorder keeps what it saw, so that a restart does not forget it."
    )
    alert_utilization: Annotated[float, BeforeValidator(_RATIO)] = _setting(
        0.8,
        "Connections in use over DATABASE_POOL_SIZE above which, for DATABASE_ALERT_AFTER, an alert is raised.",
    )
    alert_after: Annotated[float, _seconds(1, 3600)] = _setting(
        60.0,
        "How long something has to be wrong before an alert is raised, and to be well before it is cleared.",
        "s",
    )
    alert_rate: Annotated[int, _count(1, 1_000_000)] = _setting(
        3,
        "Pool timeouts, statement timeouts or connection errors within DATABASE_ALERT_AFTER that raise an alert.",
        "failures",
    )
    alert_webhook: _WebUrl = _setting(
        None, "Where alerts are sent, each as a POST of JSON; http:// or https://."
    )
    dashboard: Annotated[Dashboard, BeforeValidator(check_word(Dashboard))] = _setting(
        Dashboard.OFF,
        "Who may see the live page: nobody (off), whoever comes from this machine or is signed in (loopback), "
        "only who is signed in (signed_in: behind a proxy, everybody seems to come from this machine).",
    )

    _password: Password | None = PrivateAttr(default=None)

    def __init__(self, *, password: Password | None = None, **values: Any) -> None:
        problems = list(_unknown_arguments(type(self), values))
        problems += _password_problems(password)
        try:
            super().__init__(**values)
        except ValidationError as error:
            _refuse([*_problems(error), *problems])
        except SourceError as error:
            _refuse([str(error), *problems])
        if problems:
            _refuse(problems)
        self._password = SecretStr(password) if isinstance(password, str) else password

    @property
    def password(self) -> SecretStr | Callable[[], str] | Callable[[], Awaitable[str]] | None:
        """The password given as an argument, or the function that is asked for it before every connect."""
        return cast("SecretStr | Callable[[], str] | Callable[[], Awaitable[str]] | None", self._password)

    @property
    def safe_url(self) -> str | None:
        """The URL for people to read: its password is `***`."""
        return None if self.url is None else redact_url(self.url.get_secret_value())

    @property
    def idle_timeout(self) -> float | None:
        """Seconds after which an unused connection is closed: DATABASE_POOL_IDLE_TIMEOUT, or a minute where the
        database is allowed to sleep, or None.
        """
        if self.pool_idle_timeout is None and self.idle_policy is IdlePolicy.ALLOW_SLEEP:
            return LET_GO_AFTER
        return self.pool_idle_timeout

    def require_url(self) -> str:
        """The URL, password included, for whoever connects.

        Raises:
            SettingsError: there is none.
        """
        if self.url is None:
            _refuse([f"{PREFIX}URL: it is not set; allowed: postgresql://user:password@host/database"])
        return self.url.get_secret_value()

    def require_direct_url(self) -> str:
        """The URL that avoids a transaction pooler, password included; the ordinary one where none is set.

        Raises:
            SettingsError: there is neither.
        """
        return self.require_url() if self.direct_url is None else self.direct_url.get_secret_value()

    def replace(self, **changes: Any) -> Self:
        """Another instance with these settings changed, checked like any other; reads no environment.

        Raises:
            SettingsError: a change cannot work.

        Example:
            >>> DatabaseSettings(pool_size=3).replace(max_overflow=0).pool_size
            3
        """
        password = changes.pop("password", self._password)
        problems = [*_unknown_arguments(type(self), changes), *_password_problems(password)]
        values = {name: getattr(self, name) for name in self.model_fields_set} | changes
        copy = type(self).__new__(type(self))
        try:
            type(self).__pydantic_validator__.validate_python(values, self_instance=copy)
        except ValidationError as error:
            _refuse([*_problems(error), *problems])
        if problems:
            _refuse(problems)
        copy._password = SecretStr(password) if isinstance(password, str) else password
        return copy

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's, but what is updated is checked."""
        return self.replace(**(update or {}))

    @field_serializer("url", "direct_url")
    def _hide(self, value: SecretStr | None) -> str | None:
        return None if value is None else redact_url(value.get_secret_value())

    @field_serializer("alert_webhook")
    def _hide_all(self, value: SecretStr | None) -> str | None:
        return None if value is None else HIDDEN  # such an address is a secret as a whole

    @model_validator(mode="after")
    def _shared_fit_into_the_pool(self) -> Self:
        # The default of 2 is a wish that a smaller pool may leave unfulfilled; a number that was asked for is not.
        total = self.pool_size + self.max_overflow
        if "shared_connections" in self.model_fields_set and self.shared_connections > total:
            raise ValueError(
                f"{PREFIX}SHARED_CONNECTIONS={self.shared_connections}: allowed: at most "
                f"{PREFIX}POOL_SIZE + {PREFIX}MAX_OVERFLOW, which is {total}"
            )
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Settings hold the password in clear, and a pickle would carry it to wherever that ends."""
        raise TypeError(
            "DatabaseSettings is not pickled, because the pickle would hold the password; "
            "build DatabaseSettings() in the other process, from its environment"
        )


# -- errors for people ---------------------------------------------------------------------------------------


def variable_of(field: str) -> str:
    """The environment variable of a field of `DatabaseSettings`."""
    return PREFIX + field.upper()


def _problems(error: ValidationError) -> Iterator[str]:
    for detail in error.errors(include_url=False, include_context=True):
        if detail["type"] == "default_factory_not_called":
            continue  # of pool_timeout, when connection_timeout was refused
        cause = detail.get("ctx", {}).get("error")
        field = str(detail["loc"][0]) if detail["loc"] else ""
        if field not in DatabaseSettings.model_fields:
            yield str(cause or detail["msg"])
            continue
        reason = words_of(cause) if cause is not None else str(detail["msg"])
        value = "" if field.endswith(("url", "webhook")) else f"={shown(detail['input'])}"
        yield f"{variable_of(field)}{value}: {reason}"


def _unknown_arguments(model: type[DatabaseSettings], values: Mapping[str, Any]) -> Iterator[str]:
    for name in values:
        if name not in model.model_fields and not name.startswith("_"):
            yield f"{name}: no such setting; allowed: password, {', '.join(model.model_fields)}"


def _password_problems(password: object) -> list[str]:
    if password is None or isinstance(password, str | SecretStr) or callable(password):
        return []
    return [f"password: text or a function that returns it, not {type(password).__name__}"]


def _refuse(problems: list[str]) -> NoReturn:
    # `from None`: pydantic's own error holds the input, and a traceback would print it
    raise SettingsError("\n".join(problems)) from None


# -- documentation -------------------------------------------------------------------------------------------


class SettingRow(NamedTuple):
    """One line of the documentation's table of settings."""

    variable: str
    default: str
    unit: str
    meaning: str


def settings_table() -> Iterator[SettingRow]:
    """Every variable with its default, unit and meaning, in the order of reading.

    Example:
        >>> next(row for row in settings_table() if row.variable == "DATABASE_POOL_SIZE").default
        '10'
    """
    for name, field in DatabaseSettings.model_fields.items():
        extra = cast("dict[str, str]", field.json_schema_extra or {})
        yield SettingRow(
            variable_of(name), _default_text(name, field.default), extra["unit"], field.description or ""
        )


def _default_text(name: str, default: object) -> str:
    if default is PydanticUndefined:
        return f"= {variable_of('connection_timeout')}"
    if default is None:
        return "not set" if name.endswith(("url", "webhook", "file")) else "off"
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, float) else str(default)
