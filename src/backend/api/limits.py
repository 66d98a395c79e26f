"""Limits as HTTP knows them: who asks, what waits for them, and 429 with the time to come back."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import AsyncIterator
from http import HTTPStatus

from fastapi import Depends, Request, Response
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from backend.api.deps import CurrentArtist, LimitsDep, Viewer
from backend.services.limits import LimitExceeded, Limits
from steadypool.fastapi.problems import problem_response

UNLIMITED = ("/livez", "/readyz")
"""Asked by machines that decide whether this instance lives."""


def address_of(connection: HTTPConnection) -> str:
    """Whom an address is given to: itself, or its network of IPv6, within which a client may choose."""
    host = connection.client.host if connection.client is not None else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host  # a Unix socket: all of them are one client
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), 64), strict=False))


def too_many_requests(error: LimitExceeded, path: str) -> Response:
    """The answer to one who asks for too much."""
    return problem_response(
        "too-many-requests",
        "Too many requests",
        HTTPStatus.TOO_MANY_REQUESTS,
        f"{error}; try again later",
        path=path,
        # What was not read of a body is not read any more.
        headers={"Retry-After": str(max(1, math.ceil(error.retry_after))), "Connection": "close"},
    )


async def on_limit_exceeded(request: Request, error: Exception) -> Response:
    """Answer what a dependency raised."""
    assert isinstance(error, LimitExceeded)
    return too_many_requests(error, request.url.path)


class AddressLimit:
    """Counts the requests of each address, before anything is done for them."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] == "http" and scope["path"] not in UNLIMITED:
            try:
                self._limits.by_address.take(address_of(HTTPConnection(scope)))
            except LimitExceeded as error:
                await too_many_requests(error, scope["path"])(scope, receive, send)
                return
        await self.app(scope, receive, send)


def listener_of(request: Request, viewer: str | None) -> str:
    """Who hears: an artist who is signed in, else whoever is at that address."""
    return viewer or address_of(request)


async def _listener_streams(request: Request, viewer: Viewer, limits: LimitsDep) -> AsyncIterator[None]:
    with limits.streams.hold(listener_of(request, viewer)):
        yield


async def _artist_streams(artist: CurrentArtist, limits: LimitsDep) -> AsyncIterator[None]:
    with limits.streams.hold(artist.did):
        yield


async def _artist_uploads(artist: CurrentArtist, limits: LimitsDep) -> AsyncIterator[None]:
    limits.upload_bytes.take(artist.did, 0)
    with limits.uploads_at_once.hold(artist.did):
        limits.uploads.take(artist.did)
        yield


LISTENER_STREAMS = Depends(_listener_streams)
"""One of the listener's streams, until the response is complete."""

ARTIST_STREAMS = Depends(_artist_streams)
"""The same for a route that wants an artist."""

ARTIST_UPLOADS = Depends(_artist_uploads)
"""One of the artist's uploads."""
