"""Watching one pool: the recorder, the alerts, and the task that looks once a second."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steadypool import events
from steadypool._clock import Clock, wall_time
from steadypool._owner_loop import end
from steadypool._printable import printable
from steadypool.monitor.alerts import Alerts
from steadypool.monitor.file import RecorderFile
from steadypool.monitor.recorder import Recorder
from steadypool.monitor.recording import head
from steadypool.monitor.rules import Limits
from steadypool.monitor.view import Look, PoolView
from steadypool.monitor.webhook import Webhook
from steadypool.settings.database import DatabaseSettings
from steadypool.telemetry.counters import Counters

_log = logging.getLogger("steadypool.alerts")

LOOK_EVERY = 1.0
"""Seconds between two looks at the pool."""
WRITE_EVERY = 2
"""Looks after which the file gets what was recorded."""

RECORDED_SETTINGS = (
    "pool_size",
    "max_overflow",
    "pool_timeout",
    "connection_timeout",
    "statement_timeout",
    "max_waiting",
    "max_connecting",
    "ping_after_idle",
)


class Monitor:
    """An observer of one pool's events that also looks at the pool, once a second, from `start` to `close`.

    Args:
        pool: its name.
        settings: the pool's; also the limits of alerts, the file and the webhook.
        observers: the pool's events: what is heard, and where alerts are told.
        look: asks for a view of the pool.
        lag: by how many seconds the event loop was late at most since this was last asked.
        clock: the pool's.
        wall: seconds since 1970.
        counters: what counts the pool's events already.
    """

    def __init__(
        self,
        pool: str,
        settings: DatabaseSettings,
        *,
        observers: events.Events,
        look: Look,
        lag: Callable[[], float],
        clock: Clock,
        wall: Callable[[], float] = wall_time,
        counters: Counters | None = None,
    ) -> None:
        self._settings = settings
        self._look = look
        self._lag = lag
        self._clock = clock
        self._recorded: dict[str, Any] = {name: getattr(settings, name) for name in RECORDED_SETTINGS}
        self.recorder = Recorder(pool, self._recorded, clock=clock, wall=wall, counters=counters)
        limits = Limits(settings.alert_utilization, settings.alert_after, settings.alert_rate)
        self.alerts = Alerts(pool, limits, observers.emit)
        self._webhook: Webhook | None = None
        self._file: RecorderFile | None = None
        self._task: asyncio.Task[None] | None = None
        self._ticks = 0
        self._waiting: set[asyncio.Future[None]] = set()
        self._observers = observers
        self._unsubscribe: list[Callable[[], None]] = []

    # -- its life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to look, unless DATABASE_RECORDER is off. Reads the file of an earlier process, if there is one."""
        if self._task is not None or not self._settings.recorder:
            return
        self._unsubscribe = [
            self.recorder.watch(self._observers),
            self._observers.subscribe(self._tell, events.AlertRaised, events.AlertCleared),
        ]
        if self._settings.alert_webhook is not None:
            self._webhook = Webhook(self._settings.alert_webhook.get_secret_value())
        if self._settings.recorder_file is not None:
            self._open_file(self._settings.recorder_file)
        self._task = asyncio.get_running_loop().create_task(self._run(), name="steadypool-watch")

    def _open_file(self, path: Path) -> None:
        try:
            self._file = RecorderFile(path)
            earlier = self._file.read()
        except OSError as error:
            _log.warning("what the pool does is not kept in a file: %s", error)
            return
        if earlier is not None:
            self.recorder.restore(earlier)
            self.recorder.note(
                "start", "the service was started again; what is before this was read from its file"
            )
        self.recorder.keeps_lines = True
        self._file.append([head(self.recorder.pool, self.recorder.now, self._recorded)])

    async def close(self) -> None:
        """Look a last time, write, tell what is still to be told, and end."""
        if self._task is None:
            return
        await end(self._task)
        self._task = None
        self.look()
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._wake()
        if self._file is not None:
            self._file.append(self.recorder.lines())
            await self._file.close()
            self._file, self.recorder.keeps_lines = None, False
        if self._webhook is not None:
            await self._webhook.close()

    async def _run(self) -> None:
        due = self._clock.monotonic()
        while True:
            due = max(due + LOOK_EVERY, self._clock.monotonic())
            await self._clock.sleep(due - self._clock.monotonic())
            self.look()

    def look(self) -> None:
        """A second has passed: record it and judge it. An error here is logged, and the next second is another."""
        try:
            view = self._look()
            self._recorded["workloads"] = {
                each.name: {
                    "statement_timeout": each.statement_timeout,
                    "max_connections": each.max_connections,
                }
                for each in view.workloads
            }
            row = self.recorder.tick(view, self._lag())
            self.alerts.check(self._clock.monotonic(), row, view)
            self._keep()
        except Exception:  # noqa: BLE001 - whoever watches must not end because of one odd second
            _log.exception("a second of the pool could not be recorded")
        self._wake()

    def _keep(self) -> None:
        self._ticks += 1
        if self._file is None or self._ticks % WRITE_EVERY:
            return
        if self._file.is_full:
            self.recorder.lines()  # they are in what is written now
            self._file.rewrite(self.recorder.frozen())
        else:
            self._file.append(self.recorder.lines())

    # -- for whoever follows -----------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether it looks: from `start` to `close`."""
        return self._task is not None

    def view(self) -> PoolView:
        """The pool now."""
        return self._look()

    async def next_look(self, seconds: float) -> bool:
        """Wait until the pool was looked at again; False where that did not happen within so many seconds."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds if math.isfinite(seconds) else None):
                    await future
                return True
            return False
        finally:
            self._waiting.discard(future)

    def _wake(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    # -- alerts ------------------------------------------------------------------------------------------------------

    def _tell(self, event: events.Event) -> None:
        if isinstance(event, events.AlertRaised):
            _log.warning("pool %r: %s", event.pool, printable(event.message))
            self.recorder.note("alert", event.message)
            self._send(event, {"event": "raised", "message": event.message, "runbook": event.runbook})
        elif isinstance(event, events.AlertCleared):
            _log.warning("pool %r: the alert %s is over after %.0f s", event.pool, event.name, event.seconds)
            self.recorder.note("alert", f"{event.name.replace('_', ' ')}: over after {event.seconds:.0f} s")
            self._send(event, {"event": "cleared", "seconds": round(event.seconds, 1)})

    def _send(self, event: events.AlertRaised | events.AlertCleared, more: dict[str, Any]) -> None:
        if self._webhook is not None:
            at = round(self.recorder.when(event.at), 3)
            self._webhook.send({"pool": event.pool, "alert": event.name, "at": at} | more)
