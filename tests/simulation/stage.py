"""A pool, its server and a virtual loop, for scenarios that are written by hand."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from steadypool._clock import Backoff
from steadypool._virtual_time import LoopClock, VirtualLoop
from steadypool.events import Event
from steadypool.pool import Pool
from steadypool.pool.circuit_breaker import CircuitBreaker
from steadypool.pool.lease import PoolOptions

from .server import Connection, Server

E = TypeVar("E", bound=Event)


class Stage:
    """What a scenario plays on.

    Args:
        ceilings: of workloads.
        pool_class: the pool; the mutants are others.
        options: those of `PoolOptions`; connections are 2 + 1, times one second, unless given.
    """

    def __init__(
        self,
        *,
        ceilings: dict[str, int] | None = None,
        pool_class: type[Pool[Any]] = Pool,
        **options: Any,
    ) -> None:
        given = {
            "size": 2,
            "max_overflow": 1,
            "pool_timeout": 1.0,
            "connect_timeout": 1.0,
            "recycle": None,
            "leave_timeout": 0.5,
            "close_grace": 1.0,
            **options,
        }
        self.options = PoolOptions(**given)
        self.faults: list[str] = []
        self.loop = VirtualLoop()
        self.loop.set_exception_handler(lambda loop, context: self.faults.append(str(context)))
        rng = random.Random(1)
        limits = (self.options.connect_timeout, self.options.connect_timeout / 2, self.options.leave_timeout)
        self.server = Server(
            self.loop, rng, limits, lambda: self.pool.closed, lambda event: None, self.faults.append
        )
        self.clock = LoopClock(self.loop)
        self.pool: Pool[Connection] = pool_class(
            self.server,
            self.options,
            clock=self.clock,
            rng=rng,
            breaker=CircuitBreaker(self.options.max_connecting, Backoff(0.05, 0.5, rng)),
            ceilings=ceilings,
        )
        self.events: list[Event] = []
        self.pool.events.subscribe(self.events.append)

    def all(self, kind: type[E]) -> list[E]:
        """The events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]

    def play(self, scenario: Callable[[Stage], Awaitable[None]]) -> None:
        """Run the scenario, then close the pool: the server must have nobody left."""

        async def main() -> None:
            await scenario(self)
            await self.pool.close(0)

        self.loop.run(main())
        assert self.faults == []
        assert self.pool.count() == 0
        left = [c for c in self.server.backends.values() if c.aborted_at is None]
        assert left == []
