"""Letting go of an engine's pool from elsewhere: another event loop, another thread, a forked child.

SQLAlchemy's pools can be disposed of anywhere. A connection is used on its own loop only, so here it is that loop that
closes it, if it runs and answers in time; where it does not, the socket is ended without it. In a forked child nothing
is sent: the sockets are the parent's.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from steadypool._owner_loop import Standing, answer, done_elsewhere, done_soon, standing_of

if TYPE_CHECKING:
    from steadypool.sqlalchemy.dialects.base import BoundedDialect
    from steadypool.sqlalchemy.pool import SteadyPool

_log = logging.getLogger("steadypool.pool")


class Sharer(Protocol):
    """What uses connections of a pool for many callers (`Multiplexer`)."""

    def make_room(self) -> None:
        """Give back the connections that carry nothing, the others when they have answered."""
        ...

    def retire(self) -> None:
        """The same, for good: another pool has taken the place of this one."""
        ...

    def interrupt(self) -> None:
        """The event loop does not run: give back what carries nothing, and ask for no more until it goes on."""
        ...

    def bury(self) -> None:
        """The event loop is closed: end what waits there."""
        ...

    def resting(self) -> list[Any]:
        """The driver's connections that carry nothing; may be called from another thread."""
        ...


def dispose_of(pool: SteadyPool, standing: Standing) -> None:
    """Close the idle connections of a pool that belongs elsewhere, and let go of what nobody can use again.

    Connections in use are closed when they come back, as after any `dispose`; where the pool's loop is closed nobody
    can give them back, so they are cut off. Waits for another loop for `home.ASK` seconds, and for as long again where
    that has begun and then stops to answer.
    """
    core, sharer = pool.core, pool.sharer
    count = core.count()
    if not count or core.home is None:
        return
    said = "its connections were cut off"
    warns = False
    if standing is Standing.FORKED:
        core.disown()
        pool.stop_watching_all()
        said = "the parent's connections go on; this process has closed its descriptors"
    elif standing is Standing.ELSEWHERE:
        said = "that loop has closed its idle connections"
        begun = threading.Event()
        closed = _done(core.home[0], lambda: _leave(pool, begun))
        if not closed and begun.is_set() and _done(core.home[0], answer):
            said = f"{said}, and waits until the server has let go of them"
        elif not closed:
            warns, said = True, "that loop does not answer, so its idle connections were cut off"
            core.hang_up()
            for connection in [] if sharer is None else sharer.resting():
                pool.dialect.hang_up(connection)
    else:
        busy = _cut_off(pool, closed=standing is Standing.CLOSED)
        if busy:
            warns, said = True, f"{said}, {busy} of them in use or on their way"
    tell_left(pool, standing, count, said, warns=warns)


async def close_elsewhere(pool: SteadyPool, standing: Standing, grace: float) -> None:
    """Close for good a pool that belongs elsewhere. Waits as long as closing may take there, and no longer."""
    core = pool.core
    count = core.count()
    core.refuse()
    if core.home is None:
        return
    said, warns = "its connections were cut off", False
    if standing is Standing.FORKED:
        core.disown()
        said = "the parent's connections go on; this process has closed its descriptors"
    elif standing is Standing.ELSEWHERE:
        said = "that loop has closed its connections"
        # First whether it answers at all: those who use connections there may take their time, a blocked loop may not.
        answers = await done_elsewhere(core.home[0], answer)
        limit = grace + 2 * pool.options.leave_timeout
        if not answers or not await done_elsewhere(core.home[0], lambda: core.close(grace), limit):
            warns, said = True, "that loop does not answer, so its connections were cut off"
            core.hang_up(leased=True)
            await done_elsewhere(core.home[0], lambda: core.close(0), 0)  # when it goes on
    else:
        warns = core.cut_off(leased=True) > 0
    pool.stop_watching_all()
    if count:
        tell_left(pool, standing, count, said, warns=warns)


def collected(pool: SteadyPool) -> None:
    """The garbage collector found a pool that was not disposed of; it runs in any thread, in the middle of anything."""
    core = pool.core
    standing = standing_of(core.home)
    if standing is Standing.FORKED:
        core.disown()
    elif standing in (Standing.STOPPED, Standing.CLOSED):
        core.cut_off(leased=True)
        pool.stop_watching_all()
    elif core.home is not None:
        connections = [record.driver_connection for record in core.all_connections()]
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            core.home[0].call_soon_threadsafe(_cut_each, pool.dialect, connections)


def _cut_each(dialect: BoundedDialect, connections: list[Any]) -> None:
    for connection in connections:
        if connection is not None:
            dialect.cut(connection)


def _cut_off(pool: SteadyPool, *, closed: bool) -> int:
    """Outside of this greenlet: connects that are on their way, in greenlets of their own, cannot end in it."""
    core, sharer = pool.core, pool.sharer

    def cut_off() -> int:
        if sharer is not None and not closed:
            sharer.interrupt()
        busy = core.cut_off(leased=closed)
        pool.stop_watching_all()
        if sharer is not None and closed:
            sharer.bury()
        elif sharer is not None and core.home is not None:
            core.home[0].call_soon_threadsafe(sharer.retire)  # when it goes on
        return busy

    async def outside() -> int:
        return cut_off()

    return await_only(outside()) if in_greenlet() else cut_off()


async def _leave(pool: SteadyPool, begun: threading.Event) -> None:
    """On the pool's own loop."""
    begun.set()
    if pool.sharer is not None:
        pool.sharer.retire()
    await pool.core.evict()


def _done(loop: Any, work: Callable[[], Coroutine[Any, Any, object]]) -> bool:
    if in_greenlet():
        return await_only(done_elsewhere(loop, work))
    return done_soon(loop, work)


def tell_left(pool: SteadyPool, standing: Standing, count: int, said: str, *, warns: bool = False) -> None:
    """One line. A warning only where something was on its way, or a loop did not answer: per-loop engines are usual."""
    _log.log(
        logging.WARNING if warns else logging.INFO,
        "the pool %r with %d connections was disposed of from elsewhere (it belongs to %s): %s",
        pool.core.name,
        count,
        standing.value,
        said,
    )
