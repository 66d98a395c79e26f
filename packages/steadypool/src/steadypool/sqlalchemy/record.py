"""SQLAlchemy's record of a connection as the connection type of `steadypool.pool.Pool`."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import exc
from sqlalchemy.pool.base import _ConnectionRecord  # pyright: ignore[reportPrivateUsage]
from sqlalchemy.util import greenlet_spawn

from steadypool import errors
from steadypool._clock import wall_time
from steadypool._sql.session_state import Changes
from steadypool.connect.abort import CloseWaiter, take_farewell
from steadypool.pool.lease import Lease
from steadypool.sqlalchemy.renewal import renew

_log = logging.getLogger("steadypool.connect")

if TYPE_CHECKING:
    from steadypool.sqlalchemy.client_state import ClientState
    from steadypool.sqlalchemy.pool import SteadyPool
    from steadypool.sqlalchemy.session_reset import Reported


class Record(_ConnectionRecord):
    """SQLAlchemy's record of one connection, with the lease under which somebody has it."""

    lease: Lease[Record] | None = None
    read_only: bool = False
    """Whether the server took no writes, when it last said so."""
    farewell: CloseWaiter | None = None
    unattended: bool = False
    """Whether nobody waits any more until the server has let go of its connection: there was no time left for that."""
    collected: bool = False
    """Whether its last user forgot to give it back, and the garbage collector did."""
    changes: Changes
    """What statements since the last reset may have left in the session."""
    reported: Reported = ()
    """The settings that the server reported when the connection was opened."""
    client_state: ClientState | None = None
    """What its driver kept on this side then, where sessions are reset."""
    _fairy_ref: weakref.ref[Any] | None = None

    @property
    def driver_connection(self) -> Any | None:
        """The driver's own connection; None where there is none."""
        adapter: Any = self.dbapi_connection
        return None if adapter is None else adapter.driver_connection

    def __init__(self, owner: SteadyPool, connect: bool = True) -> None:
        self._owner = owner
        self.changes = Changes()
        # SQLAlchemy makes it last, and 2.0.40 needs it where connecting fails.
        self.finalize_callback = deque()
        try:
            super().__init__(owner, connect)
        except BaseException:
            # SQLAlchemy 2.0 leaves the connection behind when an event handler fails or is cancelled.
            self.cut()
            owner.stop_watching(self)
            raise

    @property
    def fairy_ref(self) -> weakref.ref[Any] | None:
        """SQLAlchemy's reference to the proxy that the user has; dead when that was never closed."""
        return self._fairy_ref

    @fairy_ref.setter
    def fairy_ref(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, value: weakref.ref[Any] | None
    ) -> None:
        if value is not None:
            self.collected = False
        elif self._fairy_ref is not None and self._fairy_ref() is None:
            self.collected = True
        self._fairy_ref = value

    async def renew(self, adapter: Any, silent_since: float | None) -> bool:
        """Put a live connection under its adapter, whose connection is dead; False where that cannot be done."""
        return await renew(self._owner, self, adapter, silent_since)

    def cut(self) -> None:
        """Cut the connection off, and keep what tells when the server has let go of it."""
        if self.dbapi_connection is not None:
            self.invalidate()

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:
        """As SQLAlchemy's; a hard invalidation cuts the socket at once."""
        driver_connection = self.driver_connection
        if not soft and driver_connection is not None:
            # SQLAlchemy connects a record anew when a handler of `checkout` rejects its connection.
            self.watch_end()
        try:
            super().invalidate(e, soft)
        finally:
            if not soft and self.dbapi_connection is not None and driver_connection is not None:
                self._owner.dialect.cut(driver_connection)  # an event handler failed, and hindered SQLAlchemy

    def watch_end(self) -> None:
        """Keep what tells when the server has let go of the connection, unless nobody is going to wait for that."""
        self._owner.stop_watching(self)
        if (
            not (self._owner.done or self.unattended or self._owner.is_left)
            and self.driver_connection is not None
        ):
            self.farewell = take_farewell(self.driver_connection)
        if self.farewell is not None:
            self._owner.watched.add(self)

    def checkin(self, _fairy_was_created: bool = True) -> None:
        """As SQLAlchemy's; the place is given back even if an event handler fails."""
        lease = self.lease
        try:
            super().checkin(_fairy_was_created)
        finally:
            if lease is not None and self.lease is lease and self.fairy_ref is None:
                self._owner.take_back(self)


class RecordDriver:
    """How `steadypool.pool.Pool` opens, proves, cleans and closes SQLAlchemy's records."""

    def __init__(self, owner: SteadyPool) -> None:
        self._owner = owner
        self._warned = False
        # Event loops keep what they call when a connection ends: that must not keep the pool.
        self._lost = _sweeps(weakref.ref(owner))

    async def open(self) -> Record:
        """Connect, in a greenlet of the pool's own task, with all of SQLAlchemy's connect events."""
        try:
            record = await self._connect()
        except errors.ConnectFailed as error:
            self._warn(error)
            raise
        self._warned = False
        return record

    def _warn(self, error: errors.ConnectFailed) -> None:
        """Log the first failure of an outage if callers go on waiting: they say nothing until their time is up."""
        core = self._owner.core
        seconds = core.waits_for
        if self._warned or error.final or not core.options.retry_connects or seconds <= 0:
            return
        self._warned = True
        until = ""
        if seconds < math.inf:
            end = time.strftime("%H:%M:%S", time.localtime(wall_time() + seconds))
            until = f" until {end} ({seconds:.1f}s)"
        _log.warning(
            "pool %r: %s. Callers wait, and it is tried again%s. To fail at once instead: connect_retry='never' "
            "(DATABASE_CONNECT_RETRY=never)",
            core.name,
            errors.words_of(error),
            until,
        )

    async def _connect(self) -> Record:
        try:
            record: Record = await greenlet_spawn(Record, self._owner)
            record.read_only = self._owner.dialect.takes_no_writes(record.driver_connection)
            self._owner.dialect.when_lost(record.driver_connection, self._lost)
            if self._owner.session_reset is not None:
                self._owner.session_reset.opened(self._owner, record)
            return record
        except errors.SteadypoolError:
            raise
        except exc.TimeoutError as error:
            raise errors.ConnectTimeout(str(error)) from error
        except Exception as error:
            raise self._owner.dialect.connect_error(error) from error

    async def ping(self, connection: Record) -> None:
        """One round trip, or an exception."""
        driver_connection = connection.driver_connection
        assert driver_connection is not None, "an idle record without a connection"
        dialect = self._owner.dialect
        try:
            await dialect.prove(driver_connection, select=self._owner.ping_by_select)
        except Exception as error:
            dialect.ping_failed(error, connection.dbapi_connection)
            raise

    def needs_reset(self, connection: Record) -> bool:
        """Whether the pool has to wait until it is clean. A reset that needs no answer is sent here.

        A transaction may have been left open behind SQLAlchemy's back; `pool_reset_on_return=None` allows it, as long
        as the session needs no reset.
        """
        adapter: Any = connection.dbapi_connection
        owner = self._owner
        if adapter is None:
            return False
        if owner.resets_on_return and owner.dialect.in_transaction(adapter.driver_connection):
            return True
        return owner.session_reset is not None and owner.session_reset.begin(owner, connection)

    async def reset(self, connection: Record) -> None:
        """Roll back what is open, and undo what the last holder changed in the session."""
        owner = self._owner
        if owner.dialect.in_transaction(connection.driver_connection):
            await owner.dialect.roll_back(connection.driver_connection)
        if owner.session_reset is not None:
            await owner.session_reset.clean(owner, connection)

    def is_open(self, connection: Record) -> bool:
        """Whether the socket is open as far as can be told without asking the server."""
        adapter: Any = (
            connection.dbapi_connection
        )  # asked twice in every use: not by way of `driver_connection`
        return adapter is not None and self._owner.dialect.is_open(adapter.driver_connection)

    def rest(self, connection: Record, lost: Callable[[], None]) -> None:
        """Let the event loop look at its socket while nobody uses it."""
        self._owner.dialect.rest(connection.driver_connection, self._lost)

    def abort(self, connection: Record) -> None:
        """Cut it off; the event handlers of `invalidate` and `close` are called."""
        driver_connection = connection.driver_connection
        try:
            connection.cut()
        except Exception:  # whatever a handler raises, the connection must not live on because of it
            self._owner.logger.exception("An event handler failed while a connection was cut off")
            connection.dbapi_connection = None
        finally:
            if driver_connection is not None:
                self._owner.dialect.cut(driver_connection)

    def hang_up(self, connection: Record) -> None:
        """End it for the server, from another thread."""
        driver_connection = connection.driver_connection
        if driver_connection is not None:
            self._owner.dialect.hang_up(driver_connection)

    def disown(self, connection: Record) -> None:
        """It is the parent process's: close this process's descriptors, and send nothing."""
        driver_connection = connection.driver_connection
        if driver_connection is not None:
            self._owner.dialect.disown(driver_connection)

    async def close(self, connection: Record) -> None:
        """Close it politely, or, where it was cut off, wait until the server has let go."""
        try:
            if connection.dbapi_connection is not None:
                if not self._owner.core.closed:  # whose place nobody needs again
                    connection.watch_end()
                await greenlet_spawn(connection.close)
            if connection.farewell is not None:
                await connection.farewell.wait(self._owner.options.leave_timeout)
        except asyncio.CancelledError:
            connection.unattended = True
            raise
        finally:
            self._owner.stop_watching(connection)


def _sweeps(owner: weakref.ref[SteadyPool]) -> Callable[[], None]:
    """What looks for dead connections in a pool, as long as there is one."""

    def sweep() -> None:
        pool = owner()
        if pool is not None:
            pool.core.sweep()

    return sweep
