"""What every answer says about itself, and the address that the service calls its own."""

from __future__ import annotations

import ipaddress

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.config import Settings

DEFAULTS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "private, no-cache",
}
"""Where a route says nothing else. No cache may keep for others what was answered to a token or a cookie."""
CREDENTIALS = "Authorization, Cookie"


class SecurityHeaders:
    """Adds `DEFAULTS` and Vary to every response, also to errors, and keeps the Host of a request out of redirects."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def complete(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in DEFAULTS.items():
                    headers.setdefault(name, value)
                if "authorization" not in headers.get("vary", "").lower():
                    headers.add_vary_header(CREDENTIALS)
                _make_relative(headers, scope)
            await send(message)

        await self.app(scope, receive, complete)


def _make_relative(headers: MutableHeaders, scope: Scope) -> None:
    """Cut the scheme and host of the request off a redirect: they are what the client wrote."""
    location = headers.get("location")
    if location is None:
        return
    own = str(Request(scope).base_url)
    if location.startswith(own):
        headers["location"] = "/" + location[len(own) :].lstrip("/")


def own_url(request: Request) -> str:
    """The address of this service for URLs in answers, with a slash at its end.

    `PUBLIC_URL` if it is set. Otherwise the host that the request names, if it is this machine's loopback or the
    address that the request came to; else that address: any other name is only what the client wrote.
    """
    settings: Settings = request.app.state.settings
    if settings.server.public_url is not None:
        return settings.server.public_url.rstrip("/") + "/"
    host, port = request.scope.get("server") or ("", None)
    named = request.base_url
    if named.hostname == host or _is_loopback(named.hostname or ""):
        return str(named)
    return str(named.replace(hostname=f"[{host}]" if ":" in host else host, port=port))


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"
