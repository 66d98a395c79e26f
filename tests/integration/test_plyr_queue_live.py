"""The queue on two instances of plyr and on several devices."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
import psycopg
import pytest

from backend.api import queue as queue_routes
from backend.config import QueueSettings, Settings
from backend.services.live_queues import CHANNEL
from backend.utilities.database import build_database
from conditions import until
from steadypool.listener import ListenerState
from steadypool_lab import EmbeddedPostgres, FaultProxy
from steadypool_lab.network.proxy import Mode

from .conftest import Plyr, serving, tone
from .devices import Instance, events_of, next_of

pytestmark = pytest.mark.anyio

KILL = (
    "select pg_terminate_backend(pid) from pg_stat_activity "
    "where application_name = 'steadypool listener' and datname = current_database()"
)
QUICK = QueueSettings(connect_timeout=2.0, heartbeat_interval=0.2)


@pytest.fixture
def driver() -> str:
    """One will do: what is heard comes over the listener's own connection, and the rest is in test_plyr_queue."""
    return "steadypool"


@pytest.fixture
def plyr_settings(plyr_settings: Settings) -> Settings:
    return plyr_settings.model_copy(update={"queue": QUICK})


@asynccontextmanager
async def another(plyr: Plyr, settings: Settings) -> AsyncIterator[Instance]:
    """One more instance on the same database, with the same artist signed in."""
    async with serving(settings) as (url, app), httpx.AsyncClient(base_url=url, timeout=30.0) as client:
        client.headers["Authorization"] = f"Bearer {plyr.token}"
        yield Instance(client, app.state.live_queues)


@pytest.fixture
async def a(plyr: Plyr) -> Instance:
    found = Instance(plyr.client, plyr.app.state.live_queues)
    await until(lambda: found.live.is_live, seconds=60)
    return found


@pytest.fixture
async def b(plyr: Plyr, plyr_settings: Settings) -> AsyncIterator[Instance]:
    async with another(plyr, plyr_settings) as instance:
        await until(lambda: instance.live.is_live, seconds=60)
        yield instance


# -- two instances -------------------------------------------------------------------------------------------


async def test_a_change_on_one_instance_is_seen_on_the_other(a: Instance, b: Instance) -> None:
    taken: list[float] = []
    instances = [a, b]
    for revision in range(40):
        writer, reader = instances[revision % 2], instances[1 - revision % 2]
        assert await reader.revision() == revision  # so that it has a copy that is old in a moment
        answer = await writer.put({"track_ids": [], "n": revision}, revision)
        assert answer.status_code == 200
        began = time.monotonic()
        while await reader.revision() != revision + 1:
            assert time.monotonic() - began < 5.0
        taken.append(time.monotonic() - began)
    median = statistics.median(taken)
    print(f"\na write is seen on the other instance after {median * 1000:.1f} ms (median of {len(taken)})")
    assert median < 0.5


async def test_reads_come_from_a_copy_while_changes_are_heard(a: Instance) -> None:
    await a.put({"track_ids": []}, 0)
    reads: list[str] = []
    asked = a.live._cache.reading

    def counting(did: str) -> Any:
        reads.append(did)
        return asked(did)

    a.live._cache.reading = counting  # type: ignore[method-assign]
    for _ in range(3):
        assert await a.revision() == 1
    assert reads == []
    a.live._subscription.live.clear()  # type: ignore[union-attr]
    for _ in range(3):
        assert await a.revision() == 1
    assert len(reads) == 3


async def test_a_change_that_is_not_committed_is_told_to_nobody(a: Instance, b: Instance, plyr: Plyr) -> None:
    heard: list[str | None] = []
    tell = b.live._hear
    b.live._hear = lambda payload: (heard.append(payload), tell(payload))[1]  # type: ignore[method-assign]
    async with plyr.database.session() as session:
        assert await b.live.put(session, "did:plc:alice", {"track_ids": ["never"]}, 0) == 1
    assert (await a.put({"track_ids": []}, 0)).status_code == 200
    await until(lambda: heard, seconds=60)
    assert [json.loads(payload or "") for payload in heard] == [{"did": "did:plc:alice", "revision": 1}]


async def test_who_loses_on_the_other_instance_is_told_how_it_looks_now(a: Instance, b: Instance) -> None:
    assert (await a.put({"track_ids": ["x"]}, 0)).status_code == 200
    answer = await b.put({"track_ids": ["y"]}, 0)
    assert answer.status_code == 409
    assert (answer.json()["state"], answer.json()["revision"]) == ({"track_ids": ["x"]}, 1)


async def test_copies_are_dropped_when_the_listener_was_killed(
    a: Instance, b: Instance, plyr_url: str
) -> None:
    for revision in range(3):
        await a.put({"track_ids": []}, revision)
        await until(lambda r=revision: r < 1 or b.live._database.stats().listener.connects > r, seconds=60)  # type: ignore[misc]
        await until(lambda: b.live.is_live, seconds=60)
        assert await b.revision() == revision + 1
        assert len(b.live._cache) == 1
        gaps = b.live._database.stats().listener.gaps  # type: ignore[union-attr]
        with psycopg.connect(plyr_url) as connection:
            connection.execute(KILL)
        await until(lambda g=gaps: b.live._database.stats().listener.gaps > g, seconds=60)  # type: ignore[misc, union-attr]
        assert len(b.live._cache) == 0
        assert await b.revision() == revision + 1


async def test_no_copy_is_older_than_the_moment_when_it_hears_again(a: Instance, plyr_url: str) -> None:
    """The gap may be read a moment after the listener is live: until then no old copy may be there to be used."""
    a.live._hear = lambda _payload: None  # type: ignore[method-assign]
    await a.revision()
    assert len(a.live._cache) == 1
    connects = a.live._database.stats().listener.connects  # type: ignore[union-attr]
    with psycopg.connect(plyr_url) as connection:
        connection.execute(KILL)
    await until(lambda: a.live._database.stats().listener.connects > connects, seconds=60)  # type: ignore[union-attr]
    await until(lambda: a.live.is_live, seconds=60)
    assert len(a.live._cache) == 0


async def test_what_was_missed_in_silence_is_seen_when_the_listener_hears_again(
    a: Instance, plyr: Plyr, plyr_settings: Settings, server: EmbeddedPostgres
) -> None:
    async with FaultProxy("127.0.0.1", server.port) as proxy:
        direct = plyr_settings.database.require_url().replace(f":{server.port}/", f":{proxy.port}/")
        database = plyr_settings.database.replace(direct_url=direct)
        async with another(plyr, plyr_settings.model_copy(update={"database": database})) as b:
            await until(lambda: b.live.is_live, seconds=60)
            device = events_of(b.client)
            async with aclosing(device):
                assert (await next_of(device)).id == "0"
                assert await b.revision() == 0
                proxy.mode = Mode.SILENT
                await a.put({"track_ids": []}, 0)
                await until(lambda: not b.live.is_live, seconds=60)  # noticed by the heartbeat
                assert await b.revision() == 1  # deaf, so it asks the database
                proxy.drop_all()
                proxy.mode = Mode.PASS
                assert (await next_of(device)).id == "1"
                await until(lambda: b.live.is_live, seconds=60)
                stats = b.live._database.stats().listener
                assert stats is not None
                assert (stats.state, stats.gaps > 0) == (ListenerState.CONNECTED, True)
                assert await b.revision() == 1
            proxy.mode = Mode.PASS


async def test_what_is_not_understood_drops_every_copy(a: Instance, plyr: Plyr) -> None:
    await a.put({"track_ids": []}, 0)
    for payload in ("", "x", "[]", '{"did": "x"}', '{"did": "x", "revision": null}'):
        await a.revision()
        assert len(a.live._cache) == 1
        await plyr.database.notify(CHANNEL, payload)
        await until(lambda: len(a.live._cache) == 0, seconds=60)


async def test_plyr_starts_without_its_database_and_hears_later(
    plyr_settings: Settings, server: EmbeddedPostgres
) -> None:
    async with FaultProxy("127.0.0.1", server.port) as proxy:
        url = plyr_settings.database.require_url().replace(f":{server.port}/", f":{proxy.port}/")
        proxy.mode = Mode.REFUSE
        database = plyr_settings.database.replace(url=url, connection_timeout=1.0, request_deadline=1.0)
        async with (
            serving(plyr_settings.model_copy(update={"database": database})) as (address, app),
            httpx.AsyncClient(base_url=address) as client,
        ):
            answer = await client.get("/queue/", headers={"Authorization": "Bearer x"})
            assert answer.status_code == 503
            proxy.mode = Mode.PASS
            await until(lambda: app.state.live_queues.is_live, seconds=60)
            answer = await client.get("/queue/", headers={"Authorization": "Bearer x"})
            assert answer.status_code == 401


def test_the_listener_has_the_times_of_the_settings(plyr_settings: Settings) -> None:
    queue = QueueSettings(connect_timeout=7.0, heartbeat_interval=3.0)
    options = build_database(plyr_settings.model_copy(update={"queue": queue})).listener.options
    assert (options.connect_timeout, options.heartbeat_interval, options.dormant_after) == (7.0, 3.0, None)
    sleepy = plyr_settings.database.replace(idle_policy="allow_sleep")
    options = build_database(plyr_settings.model_copy(update={"database": sleepy})).listener.options
    assert (options.heartbeat_interval, options.dormant_after) == (0.2, 60.0)


# -- devices -------------------------------------------------------------------------------------------------


async def test_other_devices_are_told_of_changes(a: Instance, b: Instance, plyr: Plyr) -> None:
    track = (await plyr.client.get(f"/tracks/{await plyr.upload(tone())}")).json()
    async with aclosing(events_of(a.client)) as here, aclosing(events_of(b.client)) as there:
        for device in (here, there):
            first = await next_of(device)
            assert (first.id, first.name, first.data["revision"]) == ("0", "queue", 0)
        state = {"track_ids": [track["file_id"]], "current_index": 0}
        assert (await a.put(state, 0)).status_code == 200
        for device, instance in ((here, a), (there, b)):
            told = await next_of(device)
            assert told.id == "1"
            assert told.data == (await instance.client.get("/queue/")).json()
            assert told.data["tracks"][0]["title"] == track["title"]


async def test_who_comes_back_hears_at_once_what_changed_and_nothing_twice(a: Instance) -> None:
    for revision in range(3):
        await a.put({"track_ids": [], "n": revision}, revision)
    for known in ("1", "0", "99", "nonsense", ""):
        async with aclosing(events_of(a.client, known)) as device:
            told = await next_of(device)
            assert (told.id, told.data["state"]["n"]) == ("3", 2)
    async with aclosing(events_of(a.client, "3")) as device:
        await until(lambda: a.live._watches, seconds=60)
        await a.put({"track_ids": [], "n": 3}, 3)
        assert (await next_of(device)).id == "4"


async def test_events_are_ones_own(a: Instance, plyr: Plyr) -> None:
    assert (await plyr.anonymous.get("/queue/events")).status_code == 401
    bob = {"Authorization": f"Bearer {await plyr.add_artist('bob')}"}
    async with aclosing(events_of(a.client)) as device:
        await next_of(device)
        await plyr.client.put("/queue/", json={"state": {"x": "bob"}}, headers={"If-Match": '"0"'} | bob)
        await a.put({"x": "alice"}, 0)
        assert (await next_of(device)).data["state"] == {"x": "alice"}


async def test_a_device_that_was_signed_out_hears_nothing_more(a: Instance, plyr_url: str) -> None:
    async with aclosing(events_of(a.client)) as device:
        await next_of(device)
        with psycopg.connect(plyr_url) as connection:
            connection.execute("UPDATE developer_tokens SET expires_at = now()")
            connection.execute("NOTIFY queue_changes, '?'")
        with pytest.raises(StopAsyncIteration):
            await next_of(device)


async def test_devices_hold_no_connection_and_leave_nothing_behind(a: Instance, plyr: Plyr) -> None:
    devices = [events_of(a.client) for _ in range(30)]  # more than there are connections
    await asyncio.gather(*(next_of(device) for device in devices))
    await until(lambda: plyr.held == 0, seconds=60)
    assert len(a.live._watches["did:plc:alice"]) == 30
    await a.put({"track_ids": []}, 0)
    told = await asyncio.gather(*(next_of(device) for device in devices))
    assert {event.id for event in told} == {"1"}
    await asyncio.gather(*(device.aclose() for device in devices))
    await until(lambda: not a.live._watches, seconds=60)


async def test_an_event_is_written_once_for_all_devices(a: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue may name two thousand tracks, and an artist may have a hundred devices: each change would be a flood."""
    written: list[int] = []
    content = queue_routes._content  # pyright: ignore[reportPrivateUsage]

    async def counted(*arguments: Any) -> dict[str, Any]:
        written.append(arguments[-1].revision)
        return await content(*arguments)

    monkeypatch.setattr(queue_routes, "_content", counted)
    devices = [events_of(a.client) for _ in range(30)]
    await asyncio.gather(*(next_of(device) for device in devices))
    written.clear()
    assert (await a.put({"track_ids": []}, 0)).status_code == 200
    told = await asyncio.gather(*(next_of(device) for device in devices))
    assert {event.id for event in told} == {"1"}
    assert len(written) <= 3, "for the answer to the PUT, and for all devices"
    await asyncio.gather(*(device.aclose() for device in devices))


async def test_devices_do_not_keep_the_service_from_ending(plyr: Plyr, plyr_settings: Settings) -> None:
    headers = {"Authorization": f"Bearer {plyr.token}"}
    async with httpx.AsyncClient(headers=headers) as client:
        async with serving(plyr_settings) as (url, _):
            client.base_url = httpx.URL(url)
            device = events_of(client)
            await next_of(device)
            began = time.monotonic()
        assert time.monotonic() - began < 3.0  # and not after the 5 s that requests in flight may take
        with pytest.raises(StopAsyncIteration):
            await next_of(device)


async def test_a_line_without_news_is_kept_open(a: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.05)
    async with a.client.stream("GET", "/queue/events") as answer:
        comments = 0
        async with asyncio.timeout(60):
            async for line in answer.aiter_lines():
                comments += line.startswith(": ping")
                if comments == 3:
                    break
    await until(lambda: not a.live._watches, seconds=60)
