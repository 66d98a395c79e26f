"""What libpq said when it did not connect: its message is in the language of its locale, so it is not read.

What is looked at instead: the SQLSTATE, which libpq writes when asked to be verbose; the system's own words for an
`errno`, which are the same in libpq and here, whatever the language; and whether the socket is still open, because
then it was libpq that did not want to go on.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
from typing import Any

import psycopg
from psycopg import pq

from steadypool.connect.failure import ClientRefused, ServerRefused
from steadypool.connect.sockets import borrowed
from steadypool.pipeline.libpq import libpq_function

DEFAULT, VERBOSE = 1, 2
_CODE = re.compile(r":  ([0-9A-Z]{5}): ")
_NETWORK_ERRORS = ("ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "EPIPE", "ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH",
                   "EHOSTDOWN", "ENETDOWN", "EADDRNOTAVAIL", "EADDRINUSE", "EAFNOSUPPORT", "EACCES", "EPERM", "ENOENT",
                   "EMFILE", "ENFILE", "ENOBUFS", "ENOTCONN")  # fmt: skip


class _Refused(ServerRefused, psycopg.OperationalError):
    """What the server answered to the log-in; psycopg's OperationalError too, which stock SQLAlchemy has as `orig`."""


def refusal(pgconn: pq.abc.PGconn, status: int | None = None) -> Exception:
    """The exception for a connect that failed.

    Args:
        pgconn: libpq's connection, not finished yet.
        status: what it was doing before (`pq.ConnStatus`), where that is known.
    """
    text = pgconn.get_error_message("utf-8").strip()
    code = _CODE.search(text)
    if code is not None:
        # the lines after the first are the DETAIL, which may hold data, and where in the server's source it happened
        return _Refused(text[code.end() :].partition("\n")[0], code[1])
    number = _errno_of(text)
    if number is not None:
        return OSError(number, os.strerror(number))
    if status is not None and (pgconn.needs_password or (_decides(pgconn, status) and _is_open(pgconn))):
        return ClientRefused(text.partition("\n")[0])
    return psycopg.OperationalError(text)


def was_let_in(pgconn: pq.abc.PGconn) -> bool:
    """Whether the server had accepted the log-in, so that what failed came after it."""
    return pgconn.parameter_status(b"server_version") is not None


def _errno_of(text: str) -> int | None:
    """The `errno` whose text ends the first line; libpq and Python ask the same C library in the same locale."""
    line = text.partition("\n")[0]
    for name in _NETWORK_ERRORS:
        number = getattr(errno, name, None)
        if number is not None and line.endswith(f": {os.strerror(number)}"):
            return number
    return None


def _decides(pgconn: pq.abc.PGconn, status: int) -> bool:
    """Whether it is libpq's own to say no at this point: about TLS always, about the log-in where it is told to."""
    if status == pq.ConnStatus.SSL_STARTUP:
        return True
    given = {option.keyword: option.val for option in pgconn.info}
    return given.get(b"channel_binding") == b"require" or bool(given.get(b"require_auth"))


def _is_open(pgconn: pq.abc.PGconn) -> bool:
    """Whether the server has not hung up: a network that broke is no decision of anybody's."""
    try:
        with borrowed(pgconn.socket) as sock:
            return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except (OSError, psycopg.Error):  # reset; or libpq has closed it itself, which it does at an end of file
        return False


def set_verbosity(pgconn: Any, verbosity: int) -> None:
    """Let libpq write the SQLSTATE into its message; without it a refusal has no code, and is retried."""
    function = libpq_function("PQsetErrorVerbosity", ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
    if function is not None:
        function(pgconn.pgconn_ptr, verbosity)
