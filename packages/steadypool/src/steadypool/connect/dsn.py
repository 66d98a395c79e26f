"""A database URL, taken apart once for all drivers.

The grammar is that of libpq's connection URIs with SQLAlchemy's driver in the scheme
(`postgresql+asyncpg://user:password@host1:5432,host2/name?sslmode=require`). Two habits of SQLAlchemy are kept:
`?host=a:5432&host=b` may repeat, and in the query `+` is a space.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NoReturn
from urllib.parse import parse_qsl, unquote

from pydantic import SecretStr

from steadypool.errors import ConfigurationError
from steadypool.settings.validators import HIDDEN, is_secret_option, redact_url

DEFAULT_PORT = 5432

_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SCHEME = re.compile(r"(?:postgresql|postgres)(?:\+([a-z0-9_]+))?://(.*)", re.S)


@dataclass(frozen=True, slots=True)
class Host:
    """One place to connect to: a name, an address, or the directory of a Unix socket; and a port.

    `address` is the address that was given beside the name (libpq's `hostaddr`), so that no name is looked up.
    """

    name: str
    port: int = DEFAULT_PORT
    address: str | None = None

    @property
    def is_socket(self) -> bool:
        """Whether this is a Unix socket (a directory, or `@name` of Linux's abstract namespace)."""
        return self.name.startswith(("/", "@"))

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine: a Unix socket or a loopback address."""
        if self.is_socket or (self.name == "localhost" and not self.address):
            return True
        try:
            return ipaddress.ip_address(self.address or self.name).is_loopback
        except ValueError:  # a name: where it leads is not asked
            return False

    @property
    def socket_path(self) -> str:
        """The file of the Unix socket."""
        return f"{self.name}/.s.PGSQL.{self.port}"

    def __str__(self) -> str:
        if self.is_socket:
            return self.socket_path
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


@dataclass(frozen=True)
class ConnectTarget:
    """Where to connect, as whom, and with which options; the same for every driver.

    `hosts` is empty where the URL names none: the driver's own default applies (a local socket, `PGHOST`).
    `options` are libpq's and the driver's, by name, without host, port, user, password and dbname. Neither `repr`
    nor `str` shows a secret.

    Example:
        >>> target = parse_url("postgresql+asyncpg://app:secret@db.example/plyr?sslmode=require")
        >>> target.hosts, target.database, target.options["sslmode"], target.driver
        ((Host(name='db.example', port=5432, address=None),), 'plyr', 'require', 'asyncpg')
    """

    hosts: tuple[Host, ...] = ()
    user: str | None = None
    password: SecretStr | None = None
    database: str | None = None
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    driver: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    def __hash__(self) -> int:
        return hash((self.hosts, self.user, self.database, self.driver, tuple(sorted(self.options.items()))))

    def __repr__(self) -> str:
        options = {name: HIDDEN if is_secret_option(name) else value for name, value in self.options.items()}
        return f"ConnectTarget({self}, {options})"

    def __str__(self) -> str:
        """`user@host:port,host:port/database`, for messages."""
        user = f"{self.user}@" if self.user else ""
        database = f"/{self.database}" if self.database else ""
        return f"{user}{self.where}{database}"

    @property
    def where(self) -> str:
        """The hosts with their ports."""
        return ",".join(map(str, self.hosts)) or "the driver's default host"


def parse_url(url: str) -> ConnectTarget:
    """Take a URL apart.

    Args:
        url: `postgresql://`, `postgres://` or `postgresql+driver://`, with its password if it has one.

    Raises:
        ConfigurationError: it is not such a URL; the message shows it without its passwords.
    """

    def refuse(why: str) -> NoReturn:
        raise ConfigurationError(f"{redact_url(url)}: {why}") from None

    scheme = _SCHEME.fullmatch(url)
    if scheme is None:
        refuse("must begin with postgresql://, postgresql+asyncpg:// or postgresql+psycopg://")
    driver, rest = scheme.groups()
    if (bad := _BAD_ESCAPE.search(rest)) is not None:
        del bad  # where it stands would show what is around it, perhaps a password
        refuse("a % is not followed by two hexadecimal digits; a literal % is written %25")
    before_query, _, query = rest.partition("?")
    authority, _, path = before_query.partition("/")
    userinfo, at, hostspec = authority.rpartition("@")
    if "@" in path or "@" in userinfo:
        refuse("there are two @ in it; in a password write @ as %40, / as %2F, ? as %3F")
    user, colon, password = userinfo.partition(":")
    parameters = _query(query, refuse)
    hosts = _hosts(hostspec, parameters, refuse)
    chosen_password = parameters.pop("password", unquote(password) if colon else None)
    return ConnectTarget(
        hosts=hosts,
        user=parameters.pop("user", unquote(user) if at and user else None),
        password=None if chosen_password is None else SecretStr(chosen_password),
        database=parameters.pop("dbname", unquote(path) or None),
        options=parameters,
        driver=driver,
    )


_Refuse = Callable[[str], NoReturn]


def _query(query: str, refuse: _Refuse) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        refuse("its options are not written name=value&name=value")
    parameters: dict[str, str] = {}
    hosts = [value for name, value in pairs if name == "host"]
    for name, value in pairs:
        if name == "host":
            parameters.setdefault(name, ",".join(hosts))
        elif name in parameters:
            refuse(f"the option {name} is given twice")
        else:
            parameters[name] = value
    if "database" in parameters:  # asyncpg's and SQLAlchemy's word for it
        parameters.setdefault("dbname", parameters.pop("database"))
    return parameters


def _hosts(hostspec: str, parameters: dict[str, str], refuse: _Refuse) -> tuple[Host, ...]:
    """The hosts of the authority, or of `host=` and `port=`, which win as they do in libpq."""
    spec = parameters.pop("host", "")
    decode = (
        str if spec else unquote
    )  # an option's value is decoded already, and a port is found before decoding
    names = (spec or hostspec).split(",")
    ports = parameters.pop("port", "").split(",")
    addresses = parameters.pop("hostaddr", "").split(",")
    if addresses != [""] and names == [""]:
        names = addresses
    if len(ports) not in (1, len(names)):
        refuse(f"{len(names)} hosts, but {len(ports)} ports")
    if addresses != [""] and len(addresses) != len(names):
        refuse(f"{len(names)} hosts, but {len(addresses)} addresses in hostaddr")
    if names == [""] and ports == [""]:
        return ()
    wide_ports = ports * len(names) if len(ports) == 1 else ports
    wide_addresses: Iterable[str] = addresses if addresses != [""] else [""] * len(names)
    return tuple(
        _host(name, port, address, decode, refuse)
        for name, port, address in zip(names, wide_ports, wide_addresses, strict=True)
    )


def _host(spec: str, port: str, address: str, decode: Callable[[str], str], refuse: _Refuse) -> Host:
    name, own_port = spec, ""
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::(\d*))?", spec)
    if bracketed is not None:
        name, own_port = bracketed[1], bracketed[2] or ""
    elif spec.count(":") == 1 and not spec.startswith(("/", "@")):
        name, _, own_port = spec.partition(":")
    elif ":" in spec and not spec.startswith(("/", "@")) and not _is_ipv6(spec):
        refuse("a host has more than one colon; an IPv6 address is written in brackets, [::1]")
    text = own_port or port or os.environ.get("PGPORT") or str(DEFAULT_PORT)  # as libpq and asyncpg have it
    if not re.fullmatch(r"\d{1,5}", text, re.ASCII) or not 1 <= int(text) <= 65_535:
        # not shown: where an @ was forgotten, this is the password
        refuse("a port is not a number from 1 to 65535")
    return Host(decode(name) or "localhost", int(text), address or None)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
