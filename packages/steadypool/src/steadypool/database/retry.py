"""Whole transactions, tried again where the database asks for it, and honest about a COMMIT without an answer.

PostgreSQL asks applications to repeat a transaction that failed with 40001 (serialization_failure) or 40P01
(deadlock_detected), the whole of it, since its reads may have been stale (manual, "Serialization Failure Handling").
A connection that is lost before COMMIT was sent has changed nothing, so that may be repeated as well. One that is
lost after COMMIT was sent may have changed everything; only the caller can know whether repeating it is harmless.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from steadypool import errors
from steadypool._clock import Backoff, Clock
from steadypool.deadline import current_deadline
from steadypool.sqlalchemy.errors import sqlstate_of

Result = TypeVar("Result")

REPEATABLE = frozenset({"40001", "40P01"})
"""SQLSTATEs after which the server has rolled back, and wants to be asked again."""

ATTEMPTS = 5
"""How often a transaction is tried in all."""


async def repeat_transaction(
    open_session: Callable[[], AbstractAsyncContextManager[AsyncSession]],
    work: Callable[[AsyncSession], Awaitable[Result]],
    *,
    attempts: int,
    idempotent: bool,
    clock: Clock,
    backoff: Backoff,
) -> Result:
    """Do `work` in a transaction of its own and commit; do all of it again where that can help.

    Args:
        open_session: opens a new session for each try.
        work: what is to be done; gets the session, does not commit.
        attempts: tries in all, 1 or more.
        idempotent: whether doing the work twice does no harm; then a lost COMMIT is repeated too.
        clock: lets the pauses pass.
        backoff: how long they are.

    Raises:
        errors.CommitUnknown: the connection was lost after COMMIT was sent.
        Exception: whatever `work` raised last.
    """
    for attempt in range(1, attempts + 1):
        committing = False
        try:
            async with open_session() as session:
                result = await work(session)
                committing = True
                await session.commit()
                return result
        except Exception as error:
            if committing and _outcome_unknown(error) and not idempotent:
                raise errors.CommitUnknown(
                    "the connection was lost after COMMIT was sent: whether it took effect is not known. "
                    "Look for its effect before you repeat it, or say idempotent=True where that does no harm",
                    errors.Report(phase=errors.Phase.EXECUTING, maybe_executed=True),
                ) from error
            pause = backoff.next_pause()
            if attempt == attempts or not _worth_another_try(error, idempotent) or _too_late(pause, clock):
                raise
            await clock.sleep(pause)
    raise ValueError(f"attempts={attempts}: allowed: 1 or more")


def _outcome_unknown(error: Exception) -> bool:
    return isinstance(error, errors.SteadypoolError) and error.maybe_executed


def _worth_another_try(error: Exception, idempotent: bool) -> bool:
    if isinstance(error, errors.ConnectionLost):
        return True  # before COMMIT, so nothing has happened; after it, the caller said that twice is fine
    if _outcome_unknown(error):
        return idempotent and not isinstance(error, errors.DeadlineExceeded)
    return sqlstate_of(error) in REPEATABLE


def _too_late(pause: float, clock: Clock) -> bool:
    deadline = current_deadline()
    return deadline is not None and deadline.remaining(clock.monotonic()) <= pause
