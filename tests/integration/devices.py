"""Instances of plyr as a client sees them, and devices that follow a queue."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

from backend.services.live_queues import LiveQueues


@dataclass
class Instance:
    client: httpx.AsyncClient
    live: LiveQueues

    async def put(self, state: dict[str, Any], revision: int) -> httpx.Response:
        return await self.client.put("/queue/", json={"state": state}, headers={"If-Match": f'"{revision}"'})

    async def revision(self) -> int:
        return (await self.client.get("/queue/")).json()["revision"]


@dataclass
class Event:
    id: str = ""
    data: Any = None
    name: str = ""


async def events_of(client: httpx.AsyncClient, known: str | None = None) -> AsyncIterator[Event]:
    """What a device hears."""
    headers = {} if known is None else {"Last-Event-ID": known}
    async with client.stream("GET", "/queue/events", headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        event = Event()
        async for line in answer.aiter_lines():
            field, _, value = line.partition(": ")
            if line == "":
                if event.name:
                    yield event
                event = Event()
            elif field == "id":
                event.id = value
            elif field == "event":
                event.name = value
            elif field == "data":
                event.data = json.loads(value)


async def next_of(events: AsyncIterator[Event], seconds: float = 10.0) -> Event:
    async with asyncio.timeout(seconds):
        return await anext(events)
