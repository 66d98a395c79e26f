"""Where in the program something was asked for: the frames of one's own code, cheap enough to note for every lease.

Only code objects and line numbers are kept, so nothing of the program's data stays alive; the text is made when
somebody wants to read it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from enum import Enum
from types import CodeType, FrameType
from typing import Any

Place = tuple[CodeType, int]
"""A piece of code and the line it was at."""

DEEPEST = 8
"""Frames that are kept."""

current_request: ContextVar[Callable[[], str] | None] = ContextVar("steadypool_request", default=None)
"""How to name the request that is being worked on, as the holder of a connection: its route, once it was routed."""

current_endpoint: ContextVar[Callable[[], str] | None] = ContextVar("steadypool_endpoint", default=None)
"""How to find out which kind of request that is, such as `GET /tracks/{id}`: known only once it was routed."""


def endpoint() -> str | None:
    """The kind of request that is being worked on, free of what the client typed; None where nobody has said."""
    ask = current_endpoint.get()
    return None if ask is None else ask()


def request_name() -> str | None:
    """The name of the request that is being worked on, for the holder of a connection; None outside of requests."""
    ask = current_request.get()
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
    left = DEEPEST
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    greenlet: Any = None
    parts, program, event_loop = _parts, _Part.PROGRAM, _Part.EVENT_LOOP
    while True:  # for every lease, over dozens of frames: no call more than there has to be
        while frame is not None:
            code = frame.f_code
            try:
                part = parts[code.co_filename]
            except KeyError:
                part = _part_of(frame)
            if part is event_loop:
                return tuple(places)
            if part is program:
                places.append((code, frame.f_lineno))
                left -= 1
                if not left:
                    return tuple(places)
            frame = frame.f_back
        greenlet = _outer(greenlet)
        if greenlet is None:
            return tuple(places)
        frame = greenlet.gr_frame


class _Part(Enum):
    """What a file is part of."""

    PROGRAM = "program"
    LIBRARY = "library"
    EVENT_LOOP = "event loop"
    """Here it ran the task; what ran the loop is the same for all."""


_parts: dict[str, _Part] = {}
"""By the names of files, of which a program has so many and no more."""


def _part_of(frame: FrameType) -> _Part:
    name = frame.f_globals.get("__name__", "")
    if name in ("asyncio.events", "asyncio.runners"):  # the latter where the loop is not written in Python
        part = _Part.EVENT_LOOP
    else:
        part = _Part.LIBRARY if name.startswith(_LIBRARIES) else _Part.PROGRAM
    file = frame.f_code.co_filename
    if file not in ("<string>", "<stdin>"):  # which may be anybody's
        _parts[file] = part
    return part


def _outer(greenlet: Any) -> Any:
    """The greenlet that started this one, or the current one."""
    if greenlet is not None:
        return greenlet.parent
    module = sys.modules.get("greenlet")
    return None if module is None else module.getcurrent().parent


def as_text(places: tuple[Place, ...]) -> str:
    """The frames as a traceback shows them, innermost last, without the source, which may have values in it."""
    lines: list[str] = []
    for code, line in reversed(places):
        lines.append(f'  File "{code.co_filename}", line {line}, in {code.co_name}')
    return "\n".join(lines)
