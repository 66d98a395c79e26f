"""TCP ports on the loopback address for servers that stop and come back.

They are taken from below the range that the system uses for outgoing connections: in that range, while the server
is down, somebody's outgoing connection may take its port, and a client that connects to it may even reach itself.
"""

from __future__ import annotations

import random
import socket

HOST = "127.0.0.1"
_RANGE = (20_000, 32_767)


def listen(port: int) -> socket.socket:
    """A socket that listens on the loopback address; `OSError` if the port is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    try:
        listen(port).close()
    except OSError:
        return False
    return True


def listen_anywhere() -> socket.socket:
    """A socket that listens on some free port of the range."""
    for _ in range(1000):
        try:
            return listen(random.randint(*_RANGE))
        except OSError:
            continue
    raise OSError(f"no free port between {_RANGE[0]} and {_RANGE[1]} on {HOST}")


def free_port() -> int:
    """A port that is free now; somebody else may still take it first."""
    with listen_anywhere() as listener:
        port: int = listener.getsockname()[1]
        return port
