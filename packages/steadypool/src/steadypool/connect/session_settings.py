"""What every session is told at its start, so that the server ends what nobody waits for any more.

The server's settings travel as start-up options; the same silence is noticed on our side by TCP.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from typing import Any

from steadypool.settings.database import DatabaseSettings

PROBES = 3
"""Unanswered TCP keepalives after which a connection is dead."""


def milliseconds(seconds: float) -> str:
    """Seconds as Postgres takes a time without a unit; 0 means no limit, and nothing else becomes 0."""
    return str(max(1, round(seconds * 1000))) if seconds else "0"


def session_guards(settings: DatabaseSettings) -> dict[str, str]:
    """The server settings that guard a session, by name, in the server's own units.

    On a Unix socket the server ignores the `tcp_` ones.

    Example:
        >>> session_guards(DatabaseSettings(statement_timeout=2))["statement_timeout"]
        '2000'
    """
    guards = {"statement_timeout": milliseconds(settings.statement_timeout)}
    if settings.idle_in_transaction_timeout is not None:
        guards["idle_in_transaction_session_timeout"] = milliseconds(settings.idle_in_transaction_timeout)
    if settings.client_check_interval is not None:
        guards["client_connection_check_interval"] = milliseconds(settings.client_check_interval)
    if settings.keepalive_idle is not None:
        guards["tcp_keepalives_idle"] = str(round(settings.keepalive_idle))
        guards["tcp_keepalives_interval"] = str(keepalive_interval(settings.keepalive_idle))
        guards["tcp_keepalives_count"] = str(PROBES)
    if settings.tcp_user_timeout is not None:
        guards["tcp_user_timeout"] = milliseconds(settings.tcp_user_timeout)
    return guards


def socket_guards(settings: DatabaseSettings) -> dict[str, str]:
    """libpq's names and values for the same on our side of the connection."""
    guards: dict[str, str] = {}
    if settings.keepalive_idle is not None:
        guards |= {
            "keepalives": "1",
            "keepalives_idle": str(round(settings.keepalive_idle)),
            "keepalives_interval": str(keepalive_interval(settings.keepalive_idle)),
            "keepalives_count": str(PROBES),
        }
    if settings.tcp_user_timeout is not None:
        guards["tcp_user_timeout"] = milliseconds(settings.tcp_user_timeout)
    return guards


def keepalive_interval(idle: float) -> int:
    """Seconds between probes: together they take as long again as the silence before them."""
    return max(1, round(idle / PROBES))


_TCP_OPTIONS = {
    "keepalives_idle": ("TCP_KEEPIDLE", "TCP_KEEPALIVE"),  # the second is macOS's name
    "keepalives_interval": ("TCP_KEEPINTVL",),
    "keepalives_count": ("TCP_KEEPCNT",),
    "tcp_user_timeout": ("TCP_USER_TIMEOUT",),
}


def guard_socket(sock: Any, options: Mapping[str, str]) -> None:
    """Set libpq's `keepalives*` and `tcp_user_timeout` on a socket, as libpq does; a Unix socket has none.

    An option that the system does not know (TCP_USER_TIMEOUT outside Linux) is left out: the keepalives remain.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    alive = options.get("keepalives", "1") != "0"
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(alive))
    for name, constants in _TCP_OPTIONS.items():
        value = int(options.get(name, "0"))
        if value <= 0 or (name.startswith("keepalives") and not alive):
            continue  # libpq reads 0 as the system's default
        for constant in constants:
            number = getattr(socket, constant, None)
            if number is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.IPPROTO_TCP, number, value)
                break
