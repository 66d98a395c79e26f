"""steadypool's errors as answers of a web service: RFC 9457 `application/problem+json`."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steadypool import errors
from steadypool._printable import printable
from steadypool.errors import Phase, SteadypoolError

_log = logging.getLogger("steadypool.fastapi")


@dataclass(frozen=True, slots=True)
class Problem:
    """What a client is told about a class of errors.

    `detail` None means the error's own message, without the pool's state in it: the text that the operator's manual
    tells people to look for. Everything else stays inside: addresses, statements, settings.
    """

    kind: str
    title: str
    status: HTTPStatus
    detail: str | None = None


_UNAVAILABLE = HTTPStatus.SERVICE_UNAVAILABLE
_INTERNAL = HTTPStatus.INTERNAL_SERVER_ERROR

# The first that fits: subclasses stand before their bases.
PROBLEMS: tuple[tuple[type[SteadypoolError], Problem], ...] = (
    (
        errors.PoolQueueFull,
        Problem("pool-queue-full", "Too many requests wait for the database", _UNAVAILABLE),
    ),
    (errors.PoolTimeout, Problem("pool-timeout", "No database connection became free in time", _UNAVAILABLE)),
    (
        errors.DatabaseUnavailable,
        Problem(
            "database-unavailable",
            "The database is unavailable",
            _UNAVAILABLE,
            "Recent attempts to reach the database failed, so this request did not try.",
        ),
    ),
    (
        errors.ConnectTimeout,
        Problem(
            "connect-timeout",
            "The database did not answer in time",
            _UNAVAILABLE,
            "No connection to the database could be opened in time.",
        ),
    ),
    (
        errors.ConnectFailed,
        Problem(
            "connect-failed",
            "The database could not be reached",
            _UNAVAILABLE,
            "No connection to the database could be opened.",
        ),
    ),
    (
        errors.HookFailed,
        Problem(
            "hook-failed", "Internal Server Error", _INTERNAL, "The service prepares its connections wrongly."
        ),
    ),
    (
        errors.StatementTimeout,
        Problem(
            "statement-timeout",
            "A database query took too long",
            HTTPStatus.GATEWAY_TIMEOUT,
            "A query ran longer than its limit and was ended.",
        ),
    ),
    (
        errors.DeadlineExceeded,
        Problem(
            "deadline-exceeded",
            "The request's time is up",
            _UNAVAILABLE,
            "The request's deadline passed before the database had answered.",
        ),
    ),
    (
        errors.CommitUnknown,
        Problem(
            "commit-unknown",
            "It is not known whether the changes were saved",
            _UNAVAILABLE,
            "The connection broke while the changes were being saved. Look before trying again.",
        ),
    ),
    (
        errors.ConnectionLost,
        Problem(
            "connection-lost",
            "The connection to the database broke",
            _UNAVAILABLE,
            "The connection broke while the request used it.",
        ),
    ),
    (
        errors.TransactionRolledBack,
        Problem(
            "transaction-rolled-back",
            "Nothing was saved",
            _INTERNAL,
            "The database rolled the changes back instead of saving them.",
        ),
    ),
    (
        errors.PoolClosed,
        Problem("pool-closed", "The service is stopping", _UNAVAILABLE, "This instance takes no more work."),
    ),
    (
        SteadypoolError,
        Problem("internal", "Internal Server Error", _INTERNAL, "The service uses its database wrongly."),
    ),
)


def problem_response(
    kind: str,
    title: str,
    status: HTTPStatus,
    detail: str,
    *,
    path: str,
    headers: dict[str, str] | None = None,
    **more: Any,
) -> JSONResponse:
    """An answer in the form of RFC 9457."""
    body = {"type": f"urn:steadypool:{kind}", "title": title, "status": status.value, "detail": detail}
    return JSONResponse(
        body | {"instance": path} | more,
        status_code=status,
        media_type="application/problem+json",
        headers=headers,
    )


def error_response(error: SteadypoolError, path: str) -> JSONResponse:
    """The answer to a request that ended in this error."""
    problem = next(problem for kind, problem in PROBLEMS if isinstance(error, kind))
    status = problem.status
    if isinstance(error, errors.DeadlineExceeded) and error.phase is Phase.EXECUTING:
        status = HTTPStatus.GATEWAY_TIMEOUT
    invited = status is _UNAVAILABLE and error.retryable
    return problem_response(
        problem.kind,
        problem.title,
        status,
        problem.detail or public_message(error),
        path=path,
        headers={"Retry-After": str(retry_after(error))} if invited else None,
        phase=error.phase.value,
        retryable=is_retryable(error),
        maybe_executed=error.maybe_executed,
    )


def retry_after(error: SteadypoolError) -> int:
    """Whole seconds after which a client may come back; at least 1."""
    return max(1, math.ceil(error.retry_after or 1.0))


def is_retryable(error: SteadypoolError) -> bool:
    """Whether coming back can help, as far as this error knows."""
    return error.retryable and not getattr(error, "final", False)


def public_message(error: SteadypoolError) -> str:
    """The error's message without the pool's state, which names who holds what."""
    message = error.message
    return message if error.pool is None else message.replace(f" ({error.pool})", "")


def steadypool_error(error: BaseException) -> SteadypoolError | None:
    """The error itself, or the first of a group in which there is nothing else; None for all that is not ours."""
    if isinstance(error, SteadypoolError):
        return error
    if not isinstance(error, BaseExceptionGroup):
        return None
    group = cast("BaseExceptionGroup[BaseException]", error)
    inner = [steadypool_error(each) for each in group.exceptions]
    return None if None in inner else inner[0]


class ProblemMiddleware:
    """Answers steadypool's errors. Once a response has begun nothing can be answered: the error goes to the server."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as raised:
            error = steadypool_error(raised)
            if error is None or begun:
                raise
            response = error_response(error, scope["path"])
            _report(error, scope, response.status_code)
            await response(scope, receive, send)


def _report(error: SteadypoolError, scope: Scope, status: int) -> None:
    # repr: a path may contain line breaks. The query string stays out: it may contain secrets.
    unexpected = status == _INTERNAL
    _log.log(
        logging.ERROR if unexpected else logging.WARNING,
        "%s %r -> %d %s: %s",
        printable(scope["method"]),
        scope["path"],
        status,
        type(error).__name__,
        printable(str(error)),
        exc_info=error if unexpected else None,
    )
