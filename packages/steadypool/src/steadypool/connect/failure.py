"""What a failed connect means: whether trying again can help, and what to tell people. No text is interpreted.

Servers and libpq speak the language of their locale, so only codes and types count: the SQLSTATE, `errno`, the
class of an exception. Where neither tells, the failure is taken for a passing one; another try is the smaller harm.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from dataclasses import dataclass

from steadypool._printable import printable
from steadypool._sqlstate import THE_DRIVERS_OWN, Disposition, fate_of, is_final_at_connect
from steadypool.errors import ConfigurationError, causes

INVALID_PASSWORD = "28P01"

_GUARDS_REFUSED = frozenset({"08P01", "42704", "22023", "0A000"})
_STOPS_AT_THE_FIRST_HOST = ("28", "3D", "42", "22", "0A", "08P")


@dataclass(frozen=True, slots=True)
class ConnectFailure:
    """What became of an attempt.

    `final` means that trying again cannot help until somebody changes something. `sqlstate` is the server's code,
    None where the server said nothing. `summary` is for people, on one line, without a secret, never empty.
    """

    final: bool
    sqlstate: str | None
    summary: str

    @property
    def refuses_guards(self) -> bool:
        """Whether the server, or a pooler before it, may have refused a setting that came with the start-up."""
        return self.sqlstate in _GUARDS_REFUSED

    @property
    def answers_application(self) -> bool:
        """Whether the server said it to SQL of the application: after the log-in, on a connection that goes on.

        Only for what a handler, a hook or a creator of the application raised.
        """
        if self.sqlstate is None or self.sqlstate.startswith(("08", "28", "3D")):
            return False  # about the log-in of a creator
        return fate_of(self.sqlstate) not in (
            Disposition.EVICT,
            Disposition.EVICT_AND_PROVE,
            Disposition.BACK_OFF,
        )

    @property
    def concerns_all_hosts(self) -> bool:
        """Whether the next host would say the same: it is about who asks for what, not about the host."""
        return self.sqlstate is not None and self.sqlstate.startswith(_STOPS_AT_THE_FIRST_HOST)


BUGS = (TypeError, AttributeError, NameError, LookupError, AssertionError, NotImplementedError)
"""What Python raises where a program is wrong; never said by a server or a network."""


class ServerRefused(Exception):
    """The server answered the log-in with an error; its code survives here whatever its language."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.sqlstate = sqlstate


class ClientRefused(Exception):
    """Our own side ended the log-in, because the server is not, or does not, what was asked for: TLS, a
    certificate, channel binding, a way to log in."""


class NotTheRole(Exception):
    """The host is fine, but not what `target_session_attrs` asks for."""


class BindingRefused(Exception):
    """The server did not prove that it knows the password over this very TLS channel."""


class CertificateNotProven(ssl.SSLError):
    """The server showed a certificate that no log-in has proven yet."""


_FINAL_TYPES = (
    BindingRefused,
    ClientRefused,
    CertificateNotProven,
    ssl.SSLCertVerificationError,
    ConfigurationError,
    PermissionError,
)
_FINAL_NAMES = frozenset(
    {
        # asyncpg's and psycopg's classes by name: one of them may not be installed
        "asyncpg.exceptions._base.ClientConfigurationError",
        "asyncpg.exceptions._base.InterfaceError",
        "asyncpg.exceptions._base.UnsupportedClientFeatureError",
        "psycopg.ProgrammingError",
        "psycopg.NotSupportedError",
        "psycopg.errors.ProgrammingError",
        "psycopg.errors.NotSupportedError",
    }
)


def classify_connect_error(error: BaseException) -> ConnectFailure:
    """Tell what a driver's exception during connect means, whichever driver it was.

    Example:
        >>> classify_connect_error(ConnectionRefusedError(111, "Connection refused"))
        ConnectFailure(final=False, sqlstate=None, summary='Connection refused')
    """
    for cause in causes(error):
        sqlstate = getattr(cause, "sqlstate", None)
        if isinstance(sqlstate, str) and sqlstate not in THE_DRIVERS_OWN:
            return ConnectFailure(
                is_final_at_connect(sqlstate) or sqlstate in _ALSO_FINAL, sqlstate, _summary(cause)
            )
    final = isinstance(error, _FINAL_TYPES) or _name(error) in _FINAL_NAMES
    return ConnectFailure(final, None, _summary(error))


_ALSO_FINAL = frozenset({"42704", "22023", "0A000"})
"""An unknown setting, a value it cannot have, a feature the server lacks: asked for by us, so asked for again."""


def _name(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}"


def _summary(error: BaseException) -> str:
    """One line, never empty, without the server's DETAIL."""
    if isinstance(error, socket.gaierror):
        return f"the name cannot be resolved ({error.strerror or error})"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not trusted ({getattr(error, 'verify_message', None) or error})"
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)) and not str(error):
        return "no answer in time"
    text = (
        getattr(error, "message", None)
        or (error.strerror if isinstance(error, OSError) else None)
        or str(error)
    )
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError):
        text = os.strerror(error.errno) if error.errno > 0 else text
    line = printable(" ".join(str(text).split()))
    return line or type(error).__name__
