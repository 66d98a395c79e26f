"""plyr with one connection and little time: what is slow on the client's side costs neither."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy import text

from backend.config import Settings

from .conftest import Plyr, tone

pytestmark = pytest.mark.anyio


@pytest.fixture
def plyr_settings(plyr_settings: Settings) -> Settings:
    tight = plyr_settings.database.replace(
        pool_size=1, max_overflow=0, pool_timeout=1.0, request_deadline=2.5
    )
    return plyr_settings.model_copy(update={"database": tight})


async def test_an_upload_may_take_longer_than_the_deadline_of_a_request(plyr: Plyr) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="title"\r\n\r\nSlow\r\n'
        started.set()
        await go_on.wait()
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + tone()
        yield b"\r\n--x--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    upload = asyncio.create_task(plyr.client.post("/tracks/", content=body(), headers=headers))
    await started.wait()
    # longer than the deadline, while the one connection serves others
    end = time.monotonic() + 2.6
    while time.monotonic() < end:
        await asyncio.sleep(0.2)
        assert (await plyr.anonymous.get("/tracks/")).status_code == 200
    go_on.set()
    answer = await upload
    assert answer.status_code == 202, answer.text
    assert (await plyr.progress(answer.json()["upload_id"]))[-1]["status"] == "completed"


async def test_an_exhausted_pool_is_a_503_that_says_so(plyr: Plyr) -> None:
    async with plyr.database.session() as session:
        await session.execute(text("SELECT 1"))
        answers: list[httpx.Response] = await asyncio.gather(
            *(
                plyr.client.get(path, headers={"Origin": "https://elsewhere.example"})
                for path in ("/tracks/", "/queue/", "/tracks/1", "/auth/me")
            )
        )
        assert (await plyr.anonymous.get("/livez")).status_code == 200
        assert (await plyr.anonymous.get("/")).status_code == 200
    for answer in answers:
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert int(answer.headers["retry-after"]) >= 1
        assert "QueuePool limit of size 1 overflow 0 reached" in answer.json()["detail"]
        assert answer.headers["access-control-allow-origin"] == "*"
    assert (await plyr.client.get("/auth/me")).status_code == 200
