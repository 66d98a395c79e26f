"""Names become addresses off the event loop, and the last good answer is kept for when nobody answers.

A thread of its own asks for each name, one at a time per name: `getaddrinfo` cannot be cancelled, and a name server
that says nothing must neither use up the event loop's own threads nor keep the process from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from steadypool._clock import SYSTEM_CLOCK, Clock

Address = tuple[int, tuple[Any, ...]]
"""A family and what `socket.connect` takes for it."""

Resolve = Callable[[str, int], Sequence[Address]]
"""A function that may block: a name and a port to addresses, best first. Raises OSError."""

PATIENCE = 0.25
"""Seconds that a fresh answer is waited for where an older one is known."""

_MOST_NAMES = 256


def system_resolver(name: str, port: int) -> Sequence[Address]:
    """The system's own answer, in the order that RFC 6724 gives it."""
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a look-up found; `error` only where nothing is known, not even from earlier."""

    addresses: tuple[Address, ...]
    error: Exception | None = None


@dataclass(slots=True)
class _Flight:
    """A look-up on its way, and who waits for it."""

    started: float
    waiting: list[asyncio.Future[Answer]] = field(default_factory=list["asyncio.Future[Answer]"])


_Key = tuple[str, int]


class Resolver:
    """Looks names up, and remembers. Safe to use from several event loops.

    Args:
        resolve: who is asked.
        clock: what measures how long a look-up has been on its way.
    """

    def __init__(self, resolve: Resolve = system_resolver, clock: Clock = SYSTEM_CLOCK) -> None:
        self._resolve = resolve
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[_Key, tuple[Address, ...]] = {}
        self._flights: dict[_Key, _Flight] = {}
        _all.add(self)

    def look_up(self, name: str, port: int, patience: float = PATIENCE) -> asyncio.Future[Answer]:
        """Begin to look a name up; the future may be forgotten at any time, and never raises.

        Args:
            name: a host name, or an address, which needs no look-up.
            port: part of each address.
            patience: seconds after which an older answer is taken for the new one, if there is one.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        try:
            numeric = socket.getaddrinfo(
                name, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_NUMERICHOST
            )
        except (OSError, UnicodeError):
            pass  # a name, then
        else:
            future.set_result(Answer(tuple((family, sockaddr) for family, _, _, _, sockaddr in numeric)))
            return future
        key = (name, port)
        with self._lock:
            flight = self._flights.get(key)
            if flight is None:
                flight = self._flights[key] = _Flight(self._clock.monotonic())
                threading.Thread(target=self._ask, args=key, name=f"look up {name}", daemon=True).start()
            flight.waiting.append(future)
            known = self._known.get(key)
        if known is not None:
            # A look-up that hangs since earlier is not waited for again.
            left = max(0.0, flight.started + patience - self._clock.monotonic())
            loop.call_later(left, _settle, future, Answer(known))
        return future

    def _ask(self, name: str, port: int) -> None:
        key = (name, port)
        try:
            found = Answer(tuple(dict.fromkeys(self._resolve(name, port))))
            if not found.addresses:
                found = Answer((), socket.gaierror(socket.EAI_NONAME, "the name has no address"))
        except Exception as error:  # noqa: BLE001 - nobody is above this thread; whoever waits for it is told
            found = Answer((), error)
        with self._lock:
            flight = self._flights.pop(key, None)
            if found.addresses:
                self._known.pop(key, None)
                self._known[key] = found.addresses
                if len(self._known) > _MOST_NAMES:
                    del self._known[next(iter(self._known))]
            elif key in self._known:
                found = Answer(self._known[key])
        for future in [] if flight is None else flight.waiting:
            with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits any more
                future.get_loop().call_soon_threadsafe(_settle, future, found)

    def forget_flights(self) -> None:
        """After a fork: the threads that were asking are not in this process."""
        self._lock = threading.Lock()
        self._flights.clear()


def _settle(future: asyncio.Future[Answer], answer: Answer) -> None:
    if not future.done():
        future.set_result(answer)


_all: weakref.WeakSet[Resolver] = weakref.WeakSet()


def _forked() -> None:
    for names in tuple(_all):
        names.forget_flights()


os.register_at_fork(after_in_child=_forked)
