"""What is known about the addresses of servers: their names, which one worked last, and which ones are in doubt."""

from __future__ import annotations

import contextlib
import random
import weakref
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TypeVar

from steadypool._clock import SYSTEM_CLOCK, Clock
from steadypool.connect.dsn import ConnectTarget, Host
from steadypool.connect.resolver import Address, Resolve, Resolver, system_resolver

HESITATION = 0.2
"""Seconds after which a log-in that has not been answered puts its address in doubt for other attempts."""

_MOST_REMEMBERED = 512

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One place that may let us in. `address` is None for a Unix socket, and for the driver's default host."""

    host: Host | None
    address: Address | None

    @property
    def where(self) -> str:
        """For people: the address with its port."""
        if self.host is None:
            return "the default host"
        return str(self.host if self.address is None else Host(self.numeric, self.host.port))

    @property
    def numeric(self) -> str:
        """The address as text, as libpq's `hostaddr` takes it."""
        if self.address is None:
            return ""
        sockaddr = self.address[1]
        scope = f"%{sockaddr[3]}" if len(sockaddr) == 4 and sockaddr[3] and "%" not in sockaddr[0] else ""
        return f"{sockaddr[0]}{scope}"


@dataclass(slots=True)
class _Experience:
    """With one address: since when log-ins wait there, and whether it is in doubt."""

    pending: list[float] = field(default_factory=list[float])
    doubted: bool = False


class AddressBook:
    """The addresses that this process connects to. Knows nothing of any driver.

    Args:
        resolve: who is asked for the addresses of a name.
        clock: what measures time.
        rng: the order of the hosts under `load_balance_hosts=random`.
    """

    def __init__(
        self,
        resolve: Resolve = system_resolver,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
    ) -> None:
        self.names = Resolver(resolve, clock)
        self.rng = rng or random.Random()
        self._clock = clock
        self._best: dict[tuple[object, ...], Candidate] = {}
        self._experience: dict[Candidate, _Experience] = {}
        self._places: weakref.WeakKeyDictionary[object, Candidate] = weakref.WeakKeyDictionary()

    def preference(self, target: ConnectTarget, candidate: Candidate) -> tuple[bool, bool]:
        """What comes before the order of names and addresses; the smaller is tried earlier.

        Where an address is in doubt, or a log-in hangs there, another one gets the chance to be better.
        """
        known = self._experience.get(candidate)
        doubted = known is not None and (
            known.doubted or any(self._clock.monotonic() - since > HESITATION for since in known.pending)
        )
        balanced = target.options.get("load_balance_hosts") == "random"
        return doubted, balanced or self._best.get(_key(target)) != candidate

    @contextlib.contextmanager
    def logging_in(self, target: ConnectTarget, candidate: Candidate) -> Generator[None]:
        """While a log-in is on its way; what becomes of it is remembered."""
        known = self._of(candidate)
        started = self._clock.monotonic()
        known.pending.append(started)
        try:
            yield
        except BaseException:
            known.doubted = known.doubted or self._clock.monotonic() - started > HESITATION
            raise
        else:
            known.doubted = False
            _remember(self._best, _key(target), candidate)
        finally:
            known.pending.remove(started)

    def doubt(self, candidate: Candidate) -> None:
        """It did not answer, or broke off: the others come first until it works again."""
        self._of(candidate).doubted = True

    def trust(self, candidate: Candidate) -> None:
        """It is as good as the others again."""
        self._of(candidate).doubted = False

    def leads_to(self, connection: object, candidate: Candidate) -> None:
        """Remember where a connection that was opened leads to."""
        self._places[connection] = candidate

    def place_of(self, connection: object | None) -> Candidate | None:
        """Where a connection leads to; None if it was not opened here."""
        return None if connection is None else self._places.get(connection)

    def _of(self, candidate: Candidate) -> _Experience:
        known = self._experience.get(candidate)
        if known is None:
            known = _Experience()
            _remember(self._experience, candidate, known)
        return known


def _key(target: ConnectTarget) -> tuple[object, ...]:
    return target.hosts, target.options.get("target_session_attrs", "any")


def _remember(memory: dict[Key, Value], key: Key, value: Value) -> None:
    """As the newest entry; the oldest goes where there are many."""
    memory.pop(key, None)
    memory[key] = value
    if len(memory) > _MOST_REMEMBERED:
        del memory[next(iter(memory))]


NETWORK = AddressBook()
"""What this process knows so far."""
