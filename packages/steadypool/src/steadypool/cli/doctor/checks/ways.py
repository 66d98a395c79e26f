"""The service's own ways to the database, tried out: prepared statements, notifications."""

from __future__ import annotations

import asyncio
import uuid

from steadypool.cli.doctor.console import PoolerConfig
from steadypool.cli.doctor.examination import CheckContext, milliseconds_text
from steadypool.cli.doctor.finding import Finding, check, note, ok, problem
from steadypool.database.database import Database
from steadypool.errors import NotificationsBlocked, words_of
from steadypool.listener import Gap
from steadypool.settings.database import Pooler

HEARD_WITHIN = 5.0


@check("prepared-statements")
async def prepared_statements(x: CheckContext) -> list[Finding]:
    """Whether prepared statements are safe with what stands before the server."""
    driver, mode = x.target.driver or "asyncpg", x.settings.pooler
    if not await x.signs_of_pooler():
        return [ok(f"{driver}: nothing stands in between, so a prepared statement is found again")]
    if mode is Pooler.SESSION:
        config = await x.pooler_config()
        sure = config.pool_mode if isinstance(config, PoolerConfig) else None
        if sure == Pooler.SESSION:
            return [
                ok(f"{driver}: kept, since DATABASE_POOLER=session, and PgBouncer's pool_mode is session")
            ]
        why = "In transaction mode the statement is on another server connection: 26000."
        if sure is not None:
            said = f"{driver}: kept, since DATABASE_POOLER=session, but PgBouncer's pool_mode is {sure}"
            return [problem(said, why, "DATABASE_POOLER=auto", "poolers")]
        return [
            note(f"{driver}: kept, since DATABASE_POOLER=session", why, "DATABASE_POOLER=auto if it is not")
        ]
    return [ok(f"{driver} behind a pooler: no statement is kept, and no name is used twice")]


@check("listen")
async def listen(x: CheckContext) -> list[Finding]:
    """Whether a notification that is sent really arrives (on a channel of its own, over DATABASE_DIRECT_URL if set)."""
    if (await x.row("SELECT pg_is_in_recovery() AS standby")).standby:
        return [note("a standby has no notifications", "LISTEN works on a primary only.", "")]
    settings = x.settings.replace(pool_size=1, max_overflow=0)
    channel, payload = f"steadypool_doctor_{uuid.uuid4().hex}", "are you there?"
    async with Database(settings, name="doctor") as database:
        try:
            async with asyncio.timeout(min(HEARD_WITHIN, x.left)):
                seconds = await _heard(x, database, channel, payload)
        except NotificationsBlocked as error:
            why = "Whoever listens waits for ever, and nothing says so."
            change = "DATABASE_DIRECT_URL=postgresql://… past the pooler"
            return [problem(words_of(error), why, change, "deaf-listener")]
        except TimeoutError:
            stats = database.stats().listener
            said = f"nothing arrived within {HEARD_WITHIN:g} s; the listener is {stats.state if stats else 'not there'}"
            if stats is not None and stats.last_error:
                said += f": {stats.last_error}"
            change = "DATABASE_DIRECT_URL=postgresql://… past the pooler"
            return [problem(said, "Whoever listens waits for ever.", change, "deaf-listener")]
    return [ok(f"heard {milliseconds_text(seconds)} after it was sent")]


async def _heard(x: CheckContext, database: Database, channel: str, payload: str) -> float:
    """Send a notification once we listen; returns how many seconds later it was heard."""
    async with database.listen(channel) as notifications:
        sent_at = 0.0

        async def send() -> None:
            nonlocal sent_at
            await notifications.live.wait()
            sent_at = x.clock.monotonic()
            await database.notify(channel, payload)

        sending = asyncio.create_task(send())
        try:
            async for heard in notifications:
                if not isinstance(heard, Gap) and heard.payload == payload:
                    break
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        return x.clock.monotonic() - sent_at
