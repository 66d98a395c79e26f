"""The database dies under load: every answer has a name, and plyr recovers by itself."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx
import pytest

from backend.config import Settings
from backend.migrations.upgrade import upgrade
from steadypool import DatabaseSettings
from steadypool_lab import EmbeddedPostgres

from .conftest import Plyr, tone, with_driver

pytestmark = pytest.mark.anyio


@pytest.fixture
def plyr_settings(plyr_settings: Settings, private_server: EmbeddedPostgres, driver: str) -> Settings:
    url = with_driver(private_server.url, driver)
    database = DatabaseSettings(url=url, connection_timeout=1.5, request_deadline=1.5)
    upgrade(database)
    return plyr_settings.model_copy(update={"database": database})


async def test_postgres_is_killed_under_load(plyr: Plyr, private_server: EmbeddedPostgres) -> None:
    track_id = await plyr.upload(tone())
    answers: Counter[int] = Counter()
    unnamed: list[str] = []
    stop = asyncio.Event()

    async def load(path: str) -> None:
        while not stop.is_set():
            answer = await plyr.client.get(path)
            answers[answer.status_code] += 1
            if answer.status_code in (503, 504):
                if answer.headers["content-type"] != "application/problem+json":
                    unnamed.append(answer.text)
            elif answer.status_code != 200:
                unnamed.append(f"{answer.status_code} {answer.text}")

    async def upload() -> int:
        return (
            await plyr.client.post("/tracks/", data={"title": "x"}, files={"file": ("a.wav", tone(pitch=7))})
        ).status_code

    paths = ("/tracks/", f"/tracks/{track_id}", "/auth/me", "/queue/", "/tracks/liked", "/tracks/me")
    async with asyncio.TaskGroup() as tasks:
        for path in paths:
            tasks.create_task(load(path))
        await until_more(answers, 200, 50)
        await private_server.kill()
        uploaded = tasks.create_task(upload())
        await until_more(answers, 503, 1)
        await private_server.start()
        await until_more(answers, 200, 100)
        stop.set()
    assert unnamed == []
    assert uploaded.result() in (202, 503)
    assert (await plyr.client.get("/readyz")).status_code == 200
    healthy: list[httpx.Response] = [await plyr.client.get(path) for path in paths]
    assert {answer.status_code for answer in healthy} == {200}


async def until_more(answers: Counter[int], status: int, how_many: int) -> None:
    """Wait for so many more answers of this status."""
    goal = answers[status] + how_many
    async with asyncio.timeout(60):
        while answers[status] < goal:
            await asyncio.sleep(0.02)
