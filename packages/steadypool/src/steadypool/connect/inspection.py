"""What libpq is going to read during a log-in, looked at before it does; `log_in` says why.

libpq reads, hashes and answers in one call of `PQconnectPoll`, which nothing ends. So its bytes are seen where they
wait: in the socket (MSG_PEEK), or over TLS in OpenSSL's own buffer (`SSL_peek`).
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
from typing import Any

from psycopg import pq

from steadypool.connect.log_in import examine
from steadypool.connect.sockets import borrowed, socket_ready
from steadypool.pipeline.libpq import libpq_function

_RECORD = 16_384
"""Bytes of a TLS record (RFC 8446, section 5.1), the most that one SSL_read returns."""
_WANT_READ = 2
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int
_gss_in_use = libpq_function("PQgssEncInUse", _INT, _POINTER)
_ssl_of = libpq_function("PQgetssl", _POINTER, _POINTER)
# OpenSSL's, found through libpq that is linked to it
_peek_at = libpq_function("SSL_peek", _INT, _POINTER, _POINTER, _INT)
_ssl_error = libpq_function("SSL_get_error", _INT, _POINTER, _INT)
_clear_errors = libpq_function("ERR_clear_error", None)


class Inspection:
    """Looks at what libpq is going to read until the server lets it in.

    Args:
        pgconn: libpq's connection on its way.
    """

    def __init__(self, pgconn: Any) -> None:
        self._pgconn = pgconn
        self._rest = b""
        """The beginning of a message that libpq has read already."""

    async def ready_to_read(self) -> None:
        """Wait until libpq may read. What it must not see it does not get to read.

        Raises:
            failure.ClientRefused: the server asks for too many rounds of SCRAM's hash.
            log_in.NotPostgres: this is no log-in.
        """
        pgconn = self._pgconn
        await socket_ready(pgconn.socket, writing=False)
        if pgconn.status != pq.ConnStatus.AWAITING_RESPONSE or _is_wrapped(pgconn):
            self._rest = b""
        elif pgconn.ssl_in_use:
            while (decrypted := _peek_at_tls(pgconn)) is None:
                await socket_ready(pgconn.socket, writing=False)
            # libpq reads by SSL_read, one record at a time: what was seen and no more
            self._rest = examine(self._rest + decrypted).rest
        else:
            await self._whole_messages()

    async def _whole_messages(self) -> None:
        """Wait until what is in the socket ends with a message, so that what comes next begins with one.

        More may arrive before libpq reads. A challenge cannot be among it: it repeats a number that libpq chooses
        when it has read what is there now (RFC 5802, section 5.1, "r").
        """
        descriptor = self._pgconn.socket
        waiting = _peek(descriptor)
        while wanted := examine(waiting).wanted:
            enough = len(waiting) + wanted
            _wake_at(descriptor, enough)
            try:
                await socket_ready(descriptor, writing=False)
            finally:
                _wake_at(descriptor, 1)
            waiting = _peek(descriptor)
            if len(waiting) < enough:
                return  # the server has hung up, which libpq is to say


def _is_wrapped(pgconn: Any) -> bool:
    """Whether GSSAPI encrypts: then the server has proven itself, and only libpq can read what it says."""
    return _gss_in_use is not None and bool(_gss_in_use(pgconn.pgconn_ptr))


def _peek(descriptor: int) -> bytes:
    """What is in the socket, where it stays. Empty where the connection broke, which libpq is to say."""
    with contextlib.suppress(OSError), borrowed(descriptor) as sock:
        return sock.recv(65_536, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return b""


def _wake_at(descriptor: int, count: int) -> None:
    """Let the socket count as readable with so many bytes in it, or at its end (socket(7), SO_RCVLOWAT)."""
    with contextlib.suppress(OSError), borrowed(descriptor) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)


def _peek_at_tls(pgconn: Any) -> bytes | None:
    """What libpq's next SSL_read returns; None before a whole record has come.

    Empty where the connection broke, which libpq is to say, and where its TLS is not a shared OpenSSL.
    """
    if None in (_ssl_of, _peek_at, _ssl_error, _clear_errors):
        return b""
    ssl = _ssl_of(pgconn.pgconn_ptr)
    if not ssl:
        return b""
    buffer = ctypes.create_string_buffer(_RECORD)
    _clear_errors()  # SSL_get_error(3) demands it
    got = _peek_at(ssl, buffer, _RECORD)
    if got > 0:
        return buffer.raw[:got]
    return None if _ssl_error(ssl, got) == _WANT_READ else b""
