"""Where in the program something was asked for: the frames of one's own code, cheap enough to note for every lease.

Only code objects and line numbers are kept, so nothing of the program's data stays alive; the text is made when
somebody wants to read it.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import CodeType, FrameType

Place = tuple[CodeType, int]
"""A piece of code and the line it was at."""

DEEPEST = 8
"""Frames that are kept."""

current_request: ContextVar[str | None] = ContextVar("steadypool_request", default=None)
"""What is being worked on, such as `GET /tracks/7`; set by whoever knows, shown as the holder of a connection."""

current_endpoint: ContextVar[Callable[[], str] | None] = ContextVar("steadypool_endpoint", default=None)
"""How to find out which kind of request that is, such as `GET /tracks/{id}`: known only once it was routed."""


def endpoint() -> str | None:
    """The kind of request that is being worked on, free of what the client typed; None where nobody has said."""
    ask = current_endpoint.get()
    return None if ask is None else ask()


_LIBRARIES = (
    "steadypool.",
    "sqlalchemy.",
    "asyncio.",
    "greenlet",
    "contextlib",
    "starlette.",
    "fastapi.",
    "anyio.",
    "uvicorn.",
)


def whereabouts() -> tuple[Place, ...]:
    """The innermost frames of the program that led here, without those of the libraries in between.

    Inside SQLAlchemy the call runs in a greenlet, whose frames end where it began; those of the task that began it
    are behind the greenlet's parent.

    Example:
        >>> def handler(): return whereabouts()
        >>> handler()[0][0].co_name
        'handler'
    """
    places: list[Place] = []
    for frame in _frames(sys._getframe(1)):  # pyright: ignore[reportPrivateUsage]
        name = frame.f_globals.get("__name__", "")
        if name == "asyncio.events":
            break  # here the event loop ran the task; what ran the loop is the same for all
        if not name.startswith(_LIBRARIES):
            places.append((frame.f_code, frame.f_lineno))
            if len(places) == DEEPEST:
                break
    return tuple(places)


def _frames(innermost: FrameType | None) -> Iterator[FrameType]:
    frame, greenlets = innermost, _outer_greenlets()
    while frame is not None:
        yield frame
        frame = frame.f_back
        if frame is None:
            frame = next(greenlets, None)


def _outer_greenlets() -> Iterator[FrameType]:
    module = sys.modules.get("greenlet")
    if module is None:
        return
    current = module.getcurrent().parent
    while current is not None:
        if current.gr_frame is not None:
            yield current.gr_frame
        current = current.parent


def as_text(places: tuple[Place, ...]) -> str:
    """The frames as a traceback shows them, innermost last."""
    lines: list[str] = []
    for code, line in reversed(places):
        lines.append(f'  File "{code.co_filename}", line {line}, in {code.co_name}')
        source = linecache.getline(code.co_filename, line).strip()
        if source:
            lines.append(f"    {source}")
    return "\n".join(lines)
