"""How much one client or artist may ask of plyr, and what the next one is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from conditions import until

from .conftest import MAX_UPLOAD, Plyr, tone

pytestmark = pytest.mark.anyio


def limited(plyr: Plyr, **limits: Any) -> None:
    """Let these limits hold from now on."""
    settings = plyr.settings.limits.model_copy(update=limits)
    plyr.app.state.limits.__init__(settings)


def assert_is_limited(answer: httpx.Response, said: str) -> None:
    assert answer.status_code == 429, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1
    assert said in answer.json()["detail"]


def form(audio: bytes) -> dict[str, Any]:
    return {"data": {"title": "A title"}, "files": {"file": ("a.wav", audio)}}


async def test_an_address_sends_so_many_requests_a_minute(plyr: Plyr) -> None:
    limited(plyr, requests_per_address=3)
    headers = {"Origin": "https://elsewhere.example"}
    answers = [await plyr.anonymous.get("/tracks/", headers=headers) for _ in range(4)]
    assert [answer.status_code for answer in answers[:3]] == [200] * 3
    assert_is_limited(answers[3], "3 requests a minute for one address")
    assert answers[3].headers["access-control-allow-origin"] == "*"
    assert_is_limited(await plyr.client.get("/nowhere"), "for one address")
    for path in ("/livez", "/readyz"):
        assert (await plyr.anonymous.get(path)).status_code == 200


async def test_an_artist_sends_so_many_requests_a_minute_from_anywhere(plyr: Plyr) -> None:
    bob = {"Authorization": f"Bearer {await plyr.add_artist('bob')}"}
    limited(plyr, requests_per_artist=2)
    for path in ("/auth/me", "/tracks/"):
        assert (await plyr.client.get(path)).status_code == 200
    for path in ("/auth/me", "/tracks/", "/queue/", "/queue/events"):
        assert_is_limited(await plyr.client.get(path), "2 requests a minute for one artist")
    assert (await plyr.client.get("/auth/me", headers=bob)).status_code == 200
    assert (await plyr.anonymous.get("/tracks/")).status_code == 200


async def test_an_artist_sends_so_many_uploads_and_bytes_a_day(plyr: Plyr) -> None:
    bob = {"Authorization": f"Bearer {await plyr.add_artist('bob')}"}
    limited(plyr, uploads_per_day=2)
    assert (await plyr.client.post("/tracks/", **form(tone()))).status_code == 202
    assert (await plyr.client.post("/tracks/", **form(b"no audio"))).status_code == 415
    assert_is_limited(await plyr.client.post("/tracks/", **form(tone())), "2 uploads a day for one artist")
    assert (await plyr.client.post("/tracks/", **form(tone()), headers=bob)).status_code == 202
    limited(plyr, upload_bytes_per_day=1_000)
    assert (await plyr.client.post("/tracks/", **form(tone()))).status_code == 202
    assert_is_limited(await plyr.client.post("/tracks/", **form(tone())), "1,000 bytes of uploads a day")


async def test_an_artist_sends_so_many_uploads_at_the_same_time(plyr: Plyr) -> None:
    limited(plyr, uploads_at_once=1)
    started, go_on = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="title"\r\n\r\nSlow\r\n'
        started.set()
        await go_on.wait()
        yield b"--x--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    upload = asyncio.create_task(plyr.client.post("/tracks/", content=body(), headers=headers))
    await started.wait()
    await until(lambda: len(plyr.app.state.limits.uploads_at_once) == 1)
    assert_is_limited(await plyr.client.post("/tracks/", **form(tone())), "1 uploads of one artist")
    go_on.set()
    assert (await upload).status_code == 400
    assert (await plyr.client.post("/tracks/", **form(tone()))).status_code == 202


async def test_an_artist_makes_so_many_tracks_of_one_file(plyr: Plyr) -> None:
    bob = await plyr.add_artist("bob")
    limited(plyr, copies=2)
    ids = [await plyr.upload(tone()) for _ in range(2)]
    refused = await plyr.client.post("/tracks/", **form(tone()))
    assert refused.status_code == 409
    assert "2 tracks of yours with this file" in refused.json()["detail"]
    assert await plyr.upload(tone(), token=bob)
    await plyr.client.delete(f"/tracks/{ids[0]}")
    assert await plyr.upload(tone())


async def test_a_listener_receives_so_many_streams_at_the_same_time(plyr: Plyr) -> None:
    limited(plyr, streams=2)
    events = [plyr.client.stream("GET", "/queue/events") for _ in range(2)]
    async with events[0] as first, events[1] as second:
        assert (first.status_code, second.status_code) == (200, 200)
        assert_is_limited(await plyr.client.get("/queue/events"), "2 streams for one listener")
        assert (await plyr.client.get("/queue/")).status_code == 200, "it is no stream"
    await until(lambda: len(plyr.app.state.limits.streams) == 0)
    assert len(plyr.app.state.limits.streams) == 0


async def test_audio_is_a_stream_until_its_last_byte(plyr: Plyr) -> None:
    track_id = await plyr.upload(tone() + bytes(MAX_UPLOAD - len(tone())))
    path = f"/audio/{(await plyr.client.get(f'/tracks/{track_id}')).json()['file_id']}"
    limited(plyr, streams=1)
    go_on = asyncio.Event()
    storage = plyr.app.state.storage
    read = storage.read

    async def slow(*arguments: Any) -> AsyncIterator[bytes]:
        async with aclosing(read(*arguments)) as chunks:
            async for chunk in chunks:
                yield chunk
                await go_on.wait()

    storage.read = slow
    async with plyr.anonymous.stream("GET", path) as answer:
        assert answer.status_code == 200
        for again in (path, f"{path}/download"):
            assert_is_limited(await plyr.anonymous.get(again), "1 streams for one listener")
        assert (await plyr.client.head(path)).status_code == 200
        go_on.set()
        assert len(await answer.aread()) == MAX_UPLOAD
    await until(lambda: len(plyr.app.state.limits.streams) == 0)
