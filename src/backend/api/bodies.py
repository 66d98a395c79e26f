"""How large the body of a request may be: bounded for every route, whichever way the route reads it."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ALLOWANCE = "plyr.body_allowance"


class _Allowance:
    """Bytes that the body of one request may still bring."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0

    def take(self, size: int) -> None:
        self.taken += size
        if self.taken > self.most:
            raise HTTPException(413, f"the body of the request is larger than {self.most:,} bytes")


class BodyLimit:
    """Refuses bodies that are larger than any route reads at once, with 413; `allow_body` sets another bound.

    Args:
        app: the application.
        most: bytes of a body, where the route sets no bound of its own.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        allowance = scope[_ALLOWANCE] = _Allowance(self._most)

        async def bounded() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                allowance.take(len(message.get("body", b"")))
            return message

        await self.app(scope, bounded, send)


def allow_body(request: Request, most: int) -> None:
    """Let the body of this request have so many bytes; before any of it is read, by a route that keeps none of it."""
    allowance: _Allowance = request.scope[_ALLOWANCE]
    allowance.most = most
