"""A race to the first address that answers, over all addresses of all hosts (RFC 8305, "Happy Eyeballs").

The race is run at the level of TCP and has one winner, which then logs in alone: raced log-ins would be as many
connections. All of it is callbacks in one task: whenever the race ends, however it ends, every socket that did not
win is closed at that moment.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Container, Iterator
from typing import Generic, Protocol, TypeVar

from steadypool.connect.addresses import AddressBook, Candidate
from steadypool.connect.dsn import ConnectTarget, Host
from steadypool.connect.failure import classify_connect_error
from steadypool.connect.resolver import PATIENCE, Address, Answer

STAGGER = 0.2
"""Seconds between the starts: RFC 8305 allows 0.1 s and more; with this, the third address begins within half a
second of the first."""

LATECOMERS = 0.05
"""Seconds that the addresses of the other names are waited for, once one name has answered (RFC 8305, section 3)."""

_FIRST_HALF = 0.5
"""The part of the time in which every address has begun: the last one must have time to answer, too."""


class Dial(Protocol):
    """A TCP connection on its way."""

    def fileno(self) -> int:
        """The descriptor, which becomes writable when the connection stands, or has failed."""
        ...

    def established(self) -> None:
        """Take note that it stands. Raises what went wrong where it does not."""
        ...

    def close(self) -> None:
        """Close it now, unless it was taken over. Safe to call twice."""
        ...


DialT = TypeVar("DialT", bound=Dial)

Said = Callable[[str, str], None]
"""Told a place and what it said."""


class NobodyAnswered(Exception):
    """No address is left; `last` is what the last one said."""

    def __init__(self, last: Exception) -> None:
        super().__init__(str(last))
        self.last = last


class Candidates:
    """Who may still win: the addresses of a target's hosts, as they become known, less those that were dropped.

    Args:
        target: whose hosts.
        network: what is known about them.
        seconds: what is left for all of it.
        said: told of names that have no address.
    """

    def __init__(self, target: ConnectTarget, network: AddressBook, seconds: float, said: Said) -> None:
        self._target = target
        self._network = network
        self._said = said
        self._ranks: dict[Candidate, tuple[int, int]] = {}
        self._lookups: dict[asyncio.Future[Answer], Host] = {}
        self.last_error: Exception = OSError("there is no address")
        self.changed: Callable[[], None] = lambda: None
        hosts: list[Host | None] = list(target.hosts) or [None]
        if target.options.get("load_balance_hosts") == "random":
            network.rng.shuffle(hosts)
        self._order = {host: number for number, host in reversed(list(enumerate(hosts)))}
        patience = min(PATIENCE, seconds / 4)
        for host in self._order:
            if host is None or host.is_socket:
                self._ranks[Candidate(host, None)] = (0, self._order[host])
                continue
            answer = network.names.look_up(host.address or host.name, host.port, patience)
            self._lookups[answer] = host
            if answer.done():
                self._learn(answer)
            else:
                answer.add_done_callback(self._learn)

    def _learn(self, found: asyncio.Future[Answer]) -> None:
        host = self._lookups.pop(found, None)
        if host is None or found.cancelled():
            return
        answer = found.result()
        if answer.error is not None:
            self.last_error = answer.error
            self._said(str(host), classify_connect_error(answer.error).summary)
        for index, address in enumerate(_interleaved(answer.addresses)):
            # the first addresses of all hosts come before the second ones
            self._ranks.setdefault(Candidate(host, address), (index, self._order[host]))
        self.changed()

    @property
    def unresolved(self) -> list[Host]:
        """The hosts whose names are still being looked up."""
        return list(self._lookups.values())

    @property
    def hosts_left(self) -> int:
        """How many hosts may still let us in."""
        return len({candidate.host for candidate in self._ranks} | set(self._lookups.values()))

    @property
    def size(self) -> int:
        """How many candidates are known."""
        return len(self._ranks)

    def best(self, begun: Container[Candidate]) -> Candidate | None:
        """The next to try, of those that are not in `begun`."""
        left = [candidate for candidate in self._ranks if candidate not in begun]
        return min(left, key=self._merit) if left else None

    def _merit(self, candidate: Candidate) -> tuple[bool, bool, int, int]:
        return *self._network.preference(self._target, candidate), *self._ranks[candidate]

    def drop(self, candidate: Candidate) -> None:
        """It said no."""
        self._ranks.pop(candidate, None)

    def drop_host(self, host: Host | None) -> None:
        """What one of its addresses said goes for all of them."""
        for candidate in [known for known in self._ranks if known.host == host]:
            del self._ranks[candidate]


def _interleaved(addresses: tuple[Address, ...]) -> Iterator[Address]:
    """The two families in turn, beginning with that of the first; within a family in the order given."""
    families: dict[int, list[Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    queues = list(families.values())
    for index in range(max(map(len, queues), default=0)):
        yield from (queue[index] for queue in queues if index < len(queue))


async def first_to_answer(
    field: Candidates,
    begin: Callable[[Candidate], DialT],
    *,
    seconds: float,
    said: Said,
    doubt: Callable[[Candidate], None],
    doing: Callable[[str], None],
) -> tuple[Candidate, DialT | None]:
    """The first of the field to answer, with its TCP connection; None where the driver itself connects.

    Args:
        field: who runs. Who refuses is dropped from it.
        begin: starts a TCP connection, without waiting.
        seconds: what is left; the caller ends the race then.
        said: told what each address said, or that it said nothing.
        doubt: told of those that were silent while others answered.
        doing: told what is waited for.

    Raises:
        NobodyAnswered: all have refused, or have no address.
    """
    race = _Race(field, begin, seconds, said, doubt)
    try:
        return await race.run(doing)
    except BaseException:  # a cancellation may come in the moment in which somebody has won
        race.disown_winner()
        raise
    finally:
        race.close()


@dataclasses.dataclass(slots=True)
class _Attempt(Generic[DialT]):
    dial: DialT
    started: float


class _Race(Generic[DialT]):
    def __init__(
        self,
        field: Candidates,
        begin: Callable[[Candidate], DialT],
        seconds: float,
        said: Said,
        doubt: Callable[[Candidate], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._field = field
        self._begin = begin
        self._seconds = seconds
        self._said = said
        self._doubt = doubt
        self._runners: dict[Candidate, _Attempt[DialT]] = {}
        self._begun: set[Candidate] = set()
        self._winner: tuple[Candidate, DialT | None] | None = None
        self._next_start = 0.0
        self._last: Exception | None = None
        self._waker: asyncio.Future[None] | None = None

    async def run(self, doing: Callable[[str], None]) -> tuple[Candidate, DialT | None]:
        self._field.changed = self._wake
        await self._first_names(doing)
        while self._winner is None:
            candidate = self._field.best(self._begun)
            now = self._loop.time()
            if candidate is not None and now >= self._next_start:
                self._start(candidate, now)
                others = len(self._runners) > 1  # each of them is listed with what it said
                doing(
                    f"opening a socket to {len(self._runners)} addresses"
                    if others
                    else f"opening a socket to {candidate.where}"
                )
                continue
            if candidate is None and not self._runners and not self._field.unresolved:
                raise NobodyAnswered(self._last or self._field.last_error)
            await self._pause(None if candidate is None else self._next_start)
        return self._winner

    async def _first_names(self, doing: Callable[[str], None]) -> None:
        """Wait for the first addresses, and for those of the other names a little longer."""
        end: float | None = None
        while self._field.unresolved and (end is None or self._loop.time() < end):
            doing("looking up " + ", ".join(host.name for host in self._field.unresolved))
            if self._field.size and end is None:
                end = self._loop.time() + LATECOMERS
                continue
            await self._pause(end)

    def _start(self, candidate: Candidate, now: float) -> None:
        self._begun.add(candidate)
        if candidate.address is None:
            self._winner = (candidate, None)
            return
        stagger = min(STAGGER, _FIRST_HALF * self._seconds / self._field.size)
        try:
            dial = self._begin(candidate)
        except Exception as error:  # noqa: BLE001 - raised again when nobody is left, and said in any case
            self._refused(candidate, error)
            return
        self._next_start = now + stagger
        self._runners[candidate] = _Attempt(dial, now)
        self._loop.add_writer(dial.fileno(), self._answered, candidate)

    def _answered(self, candidate: Candidate) -> None:
        runner = self._runners[candidate]
        self._loop.remove_writer(runner.dial.fileno())
        if self._winner is None:
            try:
                runner.dial.established()
            except Exception as error:  # noqa: BLE001 - raised again when nobody is left, and said in any case
                runner.dial.close()
                del self._runners[candidate]
                self._refused(candidate, error)
            else:
                del self._runners[candidate]
                self._winner = (candidate, runner.dial)
        self._wake()

    def _refused(self, candidate: Candidate, error: Exception) -> None:
        self._last = error
        self._field.drop(candidate)
        self._said(candidate.where, classify_connect_error(error).summary)
        self._next_start = 0.0  # its place in time is free

    async def _pause(self, until: float | None) -> None:
        waker: asyncio.Future[None] = self._loop.create_future()
        self._waker = waker
        timer = None if until is None else self._loop.call_at(until, self._wake)
        try:
            await waker
        finally:
            self._waker = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)

    def disown_winner(self) -> None:
        """Nobody takes what has won."""
        if self._winner is not None and self._winner[1] is not None:
            self._winner[1].close()

    def close(self) -> None:
        """Close all but the winner, and tell how long they were silent."""
        self._field.changed = lambda: None
        for candidate, runner in self._runners.items():
            self._loop.remove_writer(runner.dial.fileno())
            runner.dial.close()
            silent = self._loop.time() - runner.started
            if (
                self._winner is None or silent >= STAGGER / 2
            ):  # else it was only a little later than the winner
                self._said(candidate.where, f"no answer within {silent:.2g} s")
                self._doubt(candidate)
        self._runners.clear()
