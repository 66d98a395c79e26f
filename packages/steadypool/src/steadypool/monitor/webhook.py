"""Alerts sent elsewhere: one POST of JSON each, one after the other, from a task of its own.

Nothing waits for it. What it sends is bounded in number and time: a receiver that hangs costs one alert its delivery
after a few seconds, and of more alerts than can wait the oldest are left out and counted in the log.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import ssl
from collections import deque
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from steadypool._owner_loop import end
from steadypool._printable import printable

_log = logging.getLogger("steadypool.alerts")

TIMEOUT = 5.0
"""Seconds for one delivery: name, connect, TLS, request and answer together."""
ATTEMPTS = 2
MOST_WAITING = 32
LONGEST_ANSWER = 4096


class Webhook:
    """Sends to one address.

    Args:
        url: `http://` or `https://`, with `user:password@` for basic authentication; only its host is ever logged.
        timeout: seconds for one delivery.
    """

    def __init__(self, url: str, *, timeout: float = TIMEOUT) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        userinfo, _, self._authority = parts.netloc.rpartition("@")
        self._credentials = base64.b64encode(unquote_to_bytes(userinfo)).decode() if userinfo else None
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._timeout = timeout
        self._waiting: deque[Mapping[str, Any]] = deque(maxlen=MOST_WAITING)
        self._something = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def send(self, message: Mapping[str, Any]) -> None:
        """Send this soon. Never waits."""
        if len(self._waiting) == MOST_WAITING:
            _log.warning("an alert was not sent to %s: too many wait already", self._host)
        self._waiting.append(message)
        self._something.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="steadypool-webhook")

    async def close(self) -> None:
        """Send what waits, for at most one delivery's time, and end."""
        if self._task is None:
            return
        here = self._task.get_loop() is asyncio.get_running_loop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                while here and self._something.is_set() and not self._task.done():
                    await asyncio.wait({self._task}, timeout=0.05)
        await end(self._task)
        self._task = None

    async def _run(self) -> None:
        while True:
            await self._something.wait()
            while self._waiting:
                await self._deliver(json.dumps(self._waiting.popleft()).encode())
            self._something.clear()

    async def _deliver(self, body: bytes) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with asyncio.timeout(self._timeout):
                    status = await self._post(body)
            except (OSError, TimeoutError, ValueError) as error:
                outcome = str(error) or type(error).__name__
            else:
                if 200 <= status < 300:
                    return
                outcome = f"it answered {status}"
                if status < 500:
                    attempt = ATTEMPTS
            if attempt == ATTEMPTS:
                _log.warning("an alert could not be sent to %s: %s", self._host, printable(outcome))
                return

    async def _post(self, body: bytes) -> int:
        context = ssl.create_default_context() if self._tls else None
        reader, writer = await asyncio.open_connection(self._host, self._port, ssl=context)
        try:
            basic = self._credentials
            authorization = "" if basic is None else f"Authorization: Basic {basic}\r\n"
            head = (
                f"POST {self._target} HTTP/1.1\r\nHost: {self._authority}\r\nUser-Agent: steadypool\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{authorization}"
                "Connection: close\r\n\r\n"
            )
            writer.write(head.encode("ascii") + body)
            await writer.drain()
            first = (await reader.readline()).split(b" ", 2)
            if len(first) < 2 or not first[1].isdigit():
                raise ValueError("it does not answer like a web server")
            return int(first[1])
        finally:
            # What the receiver still has to say does not matter; closing must not wait for it.
            writer.transport.abort()
