"""Who may see the page.

Somebody on this machine, as the socket says, or whoever the application says is signed in. What a proxy says about
where a request came from counts for nothing: a request that was forwarded is never taken for one from this machine.
Nor does a website that somebody on this machine happens to have open get at it: the request has to come from the page
itself, and has to be addressed to this machine by one of its own names.
"""

from __future__ import annotations

import inspect
import ipaddress
from collections.abc import Awaitable, Callable

from starlette.requests import Request

from steadypool.settings.database import Dashboard

Allow = Callable[[Request], bool | Awaitable[bool]]
"""Whether a request comes from somebody who is signed in; may be a coroutine, and may raise an HTTPException."""

FORWARDED = (
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "cf-connecting-ip",
)
"""Headers by which a proxy shows itself."""

_SAME = frozenset({"same-origin", "none"})


async def may_see(request: Request, mode: Dashboard, allow: Allow | None) -> bool:
    """Whether this request gets the page.

    Args:
        request: the request.
        mode: DATABASE_DASHBOARD.
        allow: how the application tells who is signed in.
    """
    if mode is Dashboard.OFF or not is_own(request):
        return False
    if mode is Dashboard.LOOPBACK and is_from_here(request):
        return True
    if allow is None:
        return False
    answer = allow(request)
    return bool(await answer if inspect.isawaitable(answer) else answer)


def is_own(request: Request) -> bool:
    """Whether a browser sends this for the page itself, or for nobody: not for another website."""
    site = request.headers.get("sec-fetch-site")
    # To follow a link from elsewhere to the page is fine: nobody but the browser's user gets to see the answer.
    follows = request.headers.get("sec-fetch-mode") == "navigate" and request.method == "GET"
    if site is not None and site not in _SAME and not follows:
        return False
    origin = request.headers.get("origin")
    return origin is None or origin.partition("://")[2] == request.headers.get("host")


def is_from_here(request: Request) -> bool:
    """Whether the socket's other end is this machine, nobody forwarded it, and it is addressed to this machine."""
    if request.client is None or any(name in request.headers for name in FORWARDED):
        return False
    return _is_loopback(request.client.host) and _is_local_name(request.headers.get("host", ""))


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _is_local_name(authority: str) -> bool:
    """A name that a website cannot have: its own name may have been made to lead here."""
    host = authority.rpartition(":")[0] if not authority.endswith("]") and ":" in authority else authority
    host = host.strip("[]").lower().rstrip(".")
    return host == "localhost" or host.endswith(".localhost") or _is_loopback(host)
