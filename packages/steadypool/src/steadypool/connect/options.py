"""libpq's connection options, and what becomes of each with each driver. Nothing is dropped.

`HONOURED` is the published table. An option is passed to the driver as it is (`NATIVE`), carried out by steadypool
in the driver's place (`TRANSLATED`), or refused with what to do instead (`REFUSED`); an option that is in no table
is refused by its name.
"""

from __future__ import annotations

import difflib
import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlencode

from steadypool.connect.dsn import ConnectTarget
from steadypool.errors import ConfigurationError

ASYNCPG = "asyncpg"
PSYCOPG = "psycopg"


class Honour(Enum):
    """What becomes of an option."""

    NATIVE = "by the driver"
    TRANSLATED = "by steadypool"
    REFUSED = "refused"


class Rule(NamedTuple):
    """How one driver treats one option; `note` says how it is carried out, or what to do instead.

    `harmless` are the values that ask for nothing the driver does not do anyway, so they are not refused.
    """

    honour: Honour
    note: str = ""
    harmless: frozenset[str] = frozenset()


_NATIVE = Rule(Honour.NATIVE)


def _translated(note: str) -> Rule:
    return Rule(Honour.TRANSLATED, note)


def _refused(note: str, *harmless: str) -> Rule:
    return Rule(Honour.REFUSED, note, frozenset(harmless))


_USE_PSYCOPG = "use postgresql+psycopg://"
_BY_STEADYPOOL = {
    "host": _translated("addresses are tried by steadypool within one end of time"),
    "hostaddr": _translated("the address is used as it is; names in certificates are still the host's"),
    "port": _translated("with its host"),
    "connect_timeout": _translated(
        "the whole attempt ends by it, or by connection_timeout if that is shorter"
    ),
    "load_balance_hosts": _translated("random: the hosts are tried in random order"),
}
_BY_BOTH = _BY_STEADYPOOL | dict.fromkeys(
    ("user", "password", "dbname", "passfile", "sslmode", "sslcert", "sslkey", "sslpassword", "sslcrl",
     "sslnegotiation", "ssl_min_protocol_version", "ssl_max_protocol_version", "target_session_attrs", "krbsrvname",
     "gsslib"),
    _NATIVE,
)  # fmt: skip

HONOURED: Mapping[str, Mapping[str, Rule]] = {
    PSYCOPG: _BY_BOTH
    | dict.fromkeys(
        (
            "sslcompression",
            "sslcrldir",
            "sslsni",
            "sslcertmode",
            "sslkeylogfile",
            "requirepeer",
            "gssencmode",
            "gssdelegation",
            "channel_binding",
            "require_auth",
            "application_name",
            "fallback_application_name",
            "client_encoding",
            "keepalives",
            "keepalives_idle",
            "keepalives_interval",
            "keepalives_count",
            "tcp_user_timeout",
            "min_protocol_version",
            "max_protocol_version",
        ),
        _NATIVE,
    )
    | {
        "options": _translated("merged with the guards; what the URL says wins"),
        "sslrootcert": _translated("system: the file of trusted certificates that Python uses"),
        "service": _refused("write the service's host, user and database into the URL"),
        "servicefile": _refused("write the service's host, user and database into the URL"),
        "replication": _refused("a replication connection is not for a pool", "false", "off", "no", "0"),
    },
    ASYNCPG: _BY_BOTH
    | {
        "sslrootcert": _translated("system: the file of trusted certificates that Python uses"),
        "ssl": _translated("as sslmode"),
        "channel_binding": _translated(
            "require: the server's certificate is proven by a log-in with SCRAM-SHA-256-PLUS before asyncpg's first "
            "use of it, and asyncpg may talk to no other"
        ),
        "application_name": _translated("as a start-up setting"),
        "fallback_application_name": _translated("as a start-up setting where there is no application_name"),
        "options": _translated("as a start-up option; what it says wins over the guards"),
        "client_encoding": _refused("asyncpg speaks UTF-8 only", "utf8", "utf-8", "auto"),
        "keepalives": _translated("set on the socket"),
        "keepalives_idle": _translated("set on the socket"),
        "keepalives_interval": _translated("set on the socket"),
        "keepalives_count": _translated("set on the socket"),
        "tcp_user_timeout": _translated("set on the socket"),
        "gssencmode": _refused(f"asyncpg has no GSS encryption; {_USE_PSYCOPG}", "disable", "prefer"),
        "gssdelegation": _refused(f"asyncpg does not delegate; {_USE_PSYCOPG}", "0"),
        "require_auth": _refused(
            f"asyncpg cannot restrict the methods; {_USE_PSYCOPG}, or channel_binding=require"
        ),
        "requirepeer": _refused(_USE_PSYCOPG),
        "sslcompression": _refused("nobody compresses TLS any more; leave it out", "0"),
        "sslsni": _refused(f"asyncpg always sends the name; {_USE_PSYCOPG}", "1"),
        "sslcertmode": _refused(_USE_PSYCOPG, "allow"),
        "sslcrldir": _refused(f"give one file with sslcrl; or {_USE_PSYCOPG}"),
        "sslkeylogfile": _refused("set SSLKEYLOGFILE in the environment"),
        "min_protocol_version": _refused(_USE_PSYCOPG, "3.0"),
        "max_protocol_version": _refused("asyncpg speaks 3.0", "3.0"),
        "service": _refused("write the service's host, user and database into the URL"),
        "servicefile": _refused("write the service's host, user and database into the URL"),
        "replication": _refused("a replication connection is not for a pool", "false", "off", "no", "0"),
        "command_timeout": _translated("an argument of asyncpg.connect, seconds"),
        "statement_cache_size": _translated("an argument of asyncpg.connect"),
        "max_cached_statement_lifetime": _translated("an argument of asyncpg.connect, seconds"),
        "max_cacheable_statement_size": _translated("an argument of asyncpg.connect, bytes"),
    },
}

SQLALCHEMY_OPTIONS: Mapping[str, frozenset[str]] = {
    ASYNCPG: frozenset({"prepared_statement_cache_size", "prepared_statement_name_func", "async_fallback"}),
    PSYCOPG: frozenset({"async_fallback"}),
}
"""What SQLAlchemy's adapter reads from the URL itself; the driver never sees it."""

_ARGUMENTS: Mapping[str, Callable[[str], float]] = {
    "command_timeout": float,
    "statement_cache_size": int,
    "max_cached_statement_lifetime": int,
    "max_cacheable_statement_size": int,
}
_ASYNCPG_DSN = (
    "sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl", "sslnegotiation",
    "ssl_min_protocol_version", "ssl_max_protocol_version", "target_session_attrs", "krbsrvname", "gsslib", "passfile",
)  # fmt: skip
_WORDS: Mapping[str, tuple[str, ...]] = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "channel_binding": ("disable", "prefer", "require"),
    "sslnegotiation": ("postgres", "direct"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "load_balance_hosts": ("disable", "random"),
}
_WHOLE = frozenset(
    {
        "connect_timeout",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
    }
)


_ENVIRONMENT = {
    "PGCHANNELBINDING": "channel_binding", "PGREQUIREAUTH": "require_auth", "PGGSSENCMODE": "gssencmode",
    "PGGSSDELEGATION": "gssdelegation", "PGKRBSRVNAME": "krbsrvname", "PGGSSLIB": "gsslib",
    "PGSSLMODE": "sslmode", "PGSSLNEGOTIATION": "sslnegotiation", "PGSSLCOMPRESSION": "sslcompression",
    "PGSSLCERT": "sslcert", "PGSSLKEY": "sslkey", "PGSSLCERTMODE": "sslcertmode", "PGSSLROOTCERT": "sslrootcert",
    "PGSSLCRL": "sslcrl", "PGSSLCRLDIR": "sslcrldir", "PGSSLSNI": "sslsni", "PGREQUIREPEER": "requirepeer",
    "PGSSLMINPROTOCOLVERSION": "ssl_min_protocol_version", "PGSSLMAXPROTOCOLVERSION": "ssl_max_protocol_version",
    "PGMINPROTOCOLVERSION": "min_protocol_version", "PGMAXPROTOCOLVERSION": "max_protocol_version",
    "PGOPTIONS": "options", "PGAPPNAME": "application_name", "PGCLIENTENCODING": "client_encoding",
    "PGTARGETSESSIONATTRS": "target_session_attrs", "PGLOADBALANCEHOSTS": "load_balance_hosts",
    "PGCONNECT_TIMEOUT": "connect_timeout",
}  # fmt: skip
"""libpq's environment variables, by the option that each is the default of."""
_OURS_TO_DO = frozenset({"target_session_attrs", "load_balance_hosts", "connect_timeout", "sslrootcert"})
"""What libpq would read from the environment, but is carried out here."""


def with_environment(
    target: ConnectTarget, driver: str, environment: Mapping[str, str] = os.environ
) -> ConnectTarget:
    """The target with what libpq's environment variables say where the URL says nothing.

    asyncpg reads some of them, libpq all; what neither sees, or the driver cannot honour, must not be dropped.

    Raises:
        ConfigurationError: the driver cannot honour one of them.

    Example:
        >>> with_environment(ConnectTarget(), ASYNCPG, {"PGCHANNELBINDING": "require"}).options["channel_binding"]
        'require'
    """
    found: dict[str, str] = {}
    for variable, name in _ENVIRONMENT.items():
        value = environment.get(variable)
        known = name in target.options or (name == "sslmode" and "ssl" in target.options)
        if not value or known or (driver == PSYCOPG and name not in _OURS_TO_DO):
            continue
        rule = HONOURED[driver][name]
        if rule.honour is not Honour.REFUSED:
            found[name] = value
        elif value.lower() not in rule.harmless:
            raise ConfigurationError(
                f"{target}: {variable}={value} in the environment cannot be honoured by {driver}: {rule.note}"
            )
    return replace(target, options={**target.options, **found}) if found else target


def checked_options(target: ConnectTarget, driver: str) -> dict[str, str]:
    """The target's options for this driver, without those that ask for nothing and those of SQLAlchemy's adapter.

    Raises:
        ConfigurationError: the driver cannot honour one of them, or it has a value that means nothing.
    """
    rules = HONOURED[driver]
    options: dict[str, str] = {}
    for name, value in target.options.items():
        if name in SQLALCHEMY_OPTIONS[driver]:
            continue
        rule = rules.get(name)
        if rule is None:
            _refuse_unknown(name, driver, target)
        if rule.honour is not Honour.REFUSED:
            options[name] = value
        elif value.lower() not in rule.harmless:
            raise ConfigurationError(f"{target}: {name}={value} cannot be honoured by {driver}: {rule.note}")
    if driver == ASYNCPG and "ssl" in options:
        options.setdefault("sslmode", options.pop("ssl"))
    _check_values(options, target)
    return options


def sqlalchemy_options(target: ConnectTarget, driver: str) -> dict[str, str]:
    """The options of the URL that are for SQLAlchemy's adapter and not for the driver."""
    names = SQLALCHEMY_OPTIONS[driver]
    return {name: value for name, value in target.options.items() if name in names}


def _refuse_unknown(name: str, driver: str, target: ConnectTarget) -> NoReturn:
    other = ASYNCPG if driver == PSYCOPG else PSYCOPG
    if name in HONOURED[other] or name in SQLALCHEMY_OPTIONS[other]:
        hint = f"it is an option of {other}; use postgresql+{other}://, or leave it out"
    else:
        near = difflib.get_close_matches(name, HONOURED[driver], n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        hint += f"for a setting of the server write options=-c%20{name}%3D…"
    raise ConfigurationError(f"{target}: {driver} has no option {name}: {hint}")


def _check_values(options: Mapping[str, str], target: ConnectTarget) -> None:
    for name, value in options.items():
        if name in _WORDS and value not in _WORDS[name]:
            raise ConfigurationError(f"{target}: {name}={value}: allowed: {', '.join(_WORDS[name])}")
        if name in _WHOLE and not re.fullmatch(r"\d{1,9}", value, re.ASCII):
            raise ConfigurationError(f"{target}: {name}={value}: allowed: a whole number, 0 or more")
    sslmode = options.get("sslmode", "prefer")
    if options.get("sslrootcert") == "system" and sslmode != "verify-full":
        raise ConfigurationError(
            f"{target}: sslrootcert=system with sslmode={sslmode}: allowed: sslmode=verify-full; "
            "anyone can get a certificate from a public authority, so only the host's name tells whose it is"
        )
    if options.get("sslnegotiation") == "direct" and sslmode in ("disable", "allow", "prefer"):
        raise ConfigurationError(
            f"{target}: sslnegotiation=direct with sslmode={sslmode}: allowed: require, verify-ca, verify-full"
        )
    if options.get("channel_binding") == "require" and sslmode == "disable":
        raise ConfigurationError(
            f"{target}: channel_binding=require with sslmode=disable: there is no channel to bind to without TLS"
        )


def trusted_certificates() -> str:
    """The file of certificate authorities that this system trusts, as Python's `ssl` finds it.

    Asked for by `sslrootcert=system`. psycopg's binary wheels bring an OpenSSL that looks elsewhere.

    Raises:
        ConfigurationError: there is no such file.
    """
    known = ssl.get_default_verify_paths()
    for candidate in (known.cafile, *_CERTIFICATE_FILES):
        if candidate and os.path.exists(candidate):
            return candidate
    raise ConfigurationError(
        "sslrootcert=system: no file of trusted certificates was found; install ca-certificates, "
        "set SSL_CERT_FILE, or give the file as sslrootcert="
    )


_CERTIFICATE_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/cert.pem",  # macOS, BSD
)


def merged_options(own: str | None, guards: Mapping[str, str]) -> str:
    """Start-up options for the server: the guards first, so that what the URL says wins.

    Example:
        >>> merged_options("-c jit=off", {"statement_timeout": "2000"})
        '-c statement_timeout=2000 -c jit=off'
    """
    words = [f"-c {name}={_escaped(value)}" for name, value in guards.items()]
    return " ".join([*words, *([own] if own else [])])


def _escaped(value: str) -> str:
    return re.sub(r"([\\\s])", r"\\\1", value)


def psycopg_arguments(
    target: ConnectTarget, *, password: str | None = None, guards: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The keyword arguments of `psycopg.AsyncConnection.connect` for this target.

    Args:
        target: where to connect.
        password: used in place of the target's own.
        guards: server settings for the start of the session.

    Raises:
        ConfigurationError: psycopg cannot honour one of the target's options.
    """
    arguments = checked_options(target, PSYCOPG)
    arguments.pop("load_balance_hosts", None)
    if arguments.get("sslrootcert") == "system":
        arguments["sslrootcert"] = trusted_certificates()
    merged = merged_options(arguments.pop("options", None), guards or {})
    if merged:
        arguments["options"] = merged
    if target.hosts:
        arguments["host"] = ",".join(host.name for host in target.hosts)
        arguments["port"] = ",".join(str(host.port) for host in target.hosts)
        if any(host.address for host in target.hosts):
            arguments["hostaddr"] = ",".join(host.address or "" for host in target.hosts)
    return arguments | _identity(target, password, "dbname")


def _identity(target: ConnectTarget, password: str | None, database: str) -> dict[str, str]:
    if password is None and target.password is not None:
        password = target.password.get_secret_value()
    given = {"user": target.user, database: target.database, "password": password}
    return {name: value for name, value in given.items() if value is not None}


def asyncpg_arguments(
    target: ConnectTarget, *, password: str | None = None, guards: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The keyword arguments of `asyncpg.connect` for this target.

    TLS options travel in a `dsn` that holds nothing else. What the socket needs, and the proof that
    `channel_binding=require` asks for, is added by `open_asyncpg`.

    Args:
        target: where to connect.
        password: used in place of the target's own.
        guards: server settings for the start of the session.

    Raises:
        ConfigurationError: asyncpg cannot honour one of the target's options.
    """
    options = checked_options(target, ASYNCPG)
    if any(host.name.startswith("@") for host in target.hosts):
        raise ConfigurationError(f"{target}: asyncpg cannot reach an abstract socket; {_USE_PSYCOPG}")
    if options.get("sslrootcert") == "system":
        options["sslrootcert"] = trusted_certificates()
    if options.get("channel_binding") == "require" and options.get("sslmode", "prefer") in (
        "allow",
        "prefer",
    ):
        options["sslmode"] = "require"  # as in libpq: without TLS the log-in would fail, so it is not tried
    arguments: dict[str, Any] = {
        name: convert(_number(name, options[name], target))
        for name, convert in _ARGUMENTS.items()
        if name in options
    }
    tls = {name: options[name] for name in _ASYNCPG_DSN if name in options}
    if tls:
        arguments["dsn"] = "postgresql://?" + urlencode(tls)
    if target.hosts:
        arguments["host"] = [host.name for host in target.hosts]
        arguments["port"] = [host.port for host in target.hosts]
    settings = dict(guards or {})
    name = options.get("application_name", options.get("fallback_application_name"))
    if name is not None:
        settings["application_name"] = name
    if options.get("options"):
        # The server applies `options` before the settings by name, which would let the guards win: they go first.
        settings = {key: value for key, value in settings.items() if key == "application_name"}
        settings["options"] = merged_options(options["options"], guards or {})
    if settings:
        arguments["server_settings"] = settings
    return arguments | _identity(target, password, "database")


def _number(name: str, value: str, target: ConnectTarget) -> str:
    if not re.fullmatch(r"\d{1,9}" + (r"(\.\d+)?" if name == "command_timeout" else ""), value, re.ASCII):
        raise ConfigurationError(f"{target}: {name}={value}: allowed: a number, 0 or more")
    return value
