"""Host names that only this process knows, and addresses where nobody ever answers."""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from steadypool_lab.errors import LabError


@contextmanager
def resolving(names: Mapping[str, Sequence[str] | Callable[[], Sequence[str]]]) -> Generator[None]:
    """Let these names have these addresses, in that order, for everything in this process that asks Python.

    A function is asked with every lookup: name servers answer in another order each time.

    Example:
        >>> with resolving({"two.test": ["127.0.0.2", "127.0.0.1"]}):
        ...     [answer[4][0] for answer in socket.getaddrinfo("two.test", 80, type=socket.SOCK_STREAM)]
        ['127.0.0.2', '127.0.0.1']
    """
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in names:
            return real(host, port, *args, **kwargs)
        known = names[name]
        addresses = known() if callable(known) else known
        return [answer for address in addresses for answer in real(address, port, *args, **kwargs)]

    socket.getaddrinfo = getaddrinfo
    try:
        yield
    finally:
        socket.getaddrinfo = real


@contextmanager
def silent_address(address: str, port: int) -> Generator[None]:
    """An address on this machine that answers no attempt to connect, as if its packets were lost.

    A listener with a full queue drops what arrives; nothing else on a machine of one's own does so without rights.

    Raises:
        LabError: the system has no such address, or answers nevertheless.
    """
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
        except OSError as error:
            raise LabError(f"this system cannot listen on {address}:{port}: {error.strerror}") from error
        listener.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.1)
            try:
                filler.connect((address, port))
            except TimeoutError:
                break
        else:
            raise LabError(f"{address}:{port} answers although its queue is full; only Linux is known not to")
        yield
