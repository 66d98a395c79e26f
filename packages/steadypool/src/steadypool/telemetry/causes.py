"""Why a connect failed, in one of a few fixed words: no address, no user and no text of a server becomes a label."""

from __future__ import annotations

import socket
import ssl

from steadypool import errors
from steadypool.errors import causes

_BY_STATE = {
    "28P01": "password",
    "28000": "not allowed",
    "42501": "not allowed",
    "3D000": "no such database",
    "53300": "too many connections",
    "57P03": "starting or stopping",
    "57P01": "starting or stopping",
    "57P02": "starting or stopping",
}

_BY_TYPE: tuple[tuple[type[BaseException], str], ...] = (
    (ssl.SSLError, "tls"),
    (socket.gaierror, "name"),
    (ConnectionRefusedError, "refused"),
    (ConnectionResetError, "reset"),
    (errors.ConfigurationError, "configuration"),
    (TimeoutError, "timeout"),
    (OSError, "network"),
)


def connect_cause(error: BaseException) -> str:
    """The word for what a failed attempt ran into.

    Example:
        >>> connect_cause(ConnectionRefusedError(111, "Connection refused"))
        'refused'
    """
    chain = tuple(causes(error))
    for cause in chain:
        state = getattr(cause, "sqlstate", None)
        if isinstance(state, str) and state[:2] not in ("", "08"):
            return _BY_STATE.get(state, "refused by the server")
    for kind, word in _BY_TYPE:
        if any(isinstance(cause, kind) for cause in chain):
            return word
    return "other"
