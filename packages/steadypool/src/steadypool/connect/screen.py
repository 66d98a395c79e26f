"""Stands between a transport and asyncpg's protocol until the server has let us in; `log_in` says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asyncpg.protocol import Protocol  # pyright: ignore[reportMissingTypeStubs]

from steadypool.connect.failure import ClientRefused
from steadypool.connect.log_in import NotPostgres, examine


def screen(transport: Any, refuse: Callable[[Exception], None]) -> None:
    """Let asyncpg's protocol hear of a log-in only what it can bear; anything else goes to `refuse`, once.

    Args:
        transport: open; nothing has been read over it. With another protocol than asyncpg's nothing is done.
        refuse: is to close the connection.
    """
    protocol = transport.get_protocol()
    if isinstance(protocol, Protocol):
        transport.set_protocol(_Screen(transport, protocol, refuse))


class _Screen:
    def __init__(self, transport: Any, protocol: Any, refuse: Callable[[Exception], None]) -> None:
        self._transport = transport
        self._protocol = protocol
        self._refuse = refuse
        self._rest = b""
        self._refused = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)

    def data_received(self, data: bytes) -> None:
        """As the protocol's; leaves when the log-in is over."""
        if self._refused:
            return
        try:
            seen = examine(self._rest + data)
        except (ClientRefused, NotPostgres) as error:
            self._refused = True
            self._refuse(error)
            return
        self._rest = seen.rest
        if seen.over:
            self._transport.set_protocol(self._protocol)
        self._protocol.data_received(data)
