"""Alerts: when they are raised and cleared, what they say, and how they leave the process."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from steadypool import events
from steadypool.cli.why.topics import topics
from steadypool.errors import PoolSnapshot
from steadypool.monitor import PoolView, RecordedSecond
from steadypool.monitor.alerts import Alerts
from steadypool.monitor.rules import RULES, RUNBOOKS, Limits
from steadypool.monitor.webhook import MOST_WAITING, Webhook
from steadypool.pool.inspection import PoolInspection
from steadypool.settings import DatabaseSettings


class Watched:
    """Alerts on a clock of their own, a second at a time."""

    def __init__(self, **limits: Any) -> None:
        self.seen: list[events.Event] = []
        self.alerts = Alerts("main", Limits(**limits), self.seen.append)
        self.now = 0.0

    def seconds(self, count: int, view: PoolView | None = None, **values: float) -> list[str]:
        """So many seconds of this; returns what was said in them."""
        before = len(self.seen)
        for _ in range(count):
            self.now += 1.0
            self.alerts.check(self.now, RecordedSecond(int(self.now), {"size": 10.0} | values), view)
        return [
            ("+" if isinstance(event, events.AlertRaised) else "-") + event.name
            for event in self.seen[before:]
            if isinstance(event, events.AlertRaised | events.AlertCleared)
        ]


def listening(state: str) -> PoolView:
    pool = PoolSnapshot(size=10, max_overflow=5)
    return PoolView(pool, PoolInspection("main", (), ()), "closed", {"state": state})


def test_the_defaults_are_the_seeds() -> None:
    assert Limits() == Limits(utilization=0.8, after=60.0, rate=3)
    assert [rule.name for rule in RULES][:4] == [
        "utilization",
        "pool_timeouts",
        "statement_timeouts",
        "connection_errors",
    ]


def test_every_runbook_that_is_named_is_there() -> None:
    named = {rule.runbook for rule in RULES} | {"background-work", "cold-start"}  # the verdict's own
    assert named <= {topic.key for topic in topics()}
    for name in named:
        assert (Path(__file__).parents[2] / f"{RUNBOOKS}/{name}.md").is_file()


def test_utilization_has_to_last() -> None:
    watched = Watched()
    assert watched.seconds(58, leased=9) == []
    assert watched.seconds(5, leased=9) == ["+utilization"]
    burst = Watched()
    for _ in range(5):
        assert burst.seconds(40, leased=10) == []
        assert burst.seconds(25, leased=2) == []
    edge = Watched()
    assert edge.seconds(200, leased=8) == [], "80 % is not above 80 %"


def test_one_quiet_second_does_not_end_what_lasts() -> None:
    watched = Watched()
    assert watched.seconds(40, leased=10) == []
    assert watched.seconds(1, leased=3) == []
    assert watched.seconds(30, leased=10) == ["+utilization"]


def test_what_comes_and_goes_is_one_alert() -> None:
    watched = Watched()
    assert watched.seconds(62, leased=10) == ["+utilization"]
    for _ in range(4):
        assert watched.seconds(30, leased=7) == []
        assert watched.seconds(5, leased=10) == []
    assert watched.seconds(70, leased=2) == ["-utilization"]
    assert watched.seconds(100, leased=2) == []


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("pool_timeouts", "pool_timeouts"),
        ("pool_timeouts", "queue_full"),
        ("statement_timeouts", "statement_timeouts"),
        ("connection_errors", "connect_failures"),
    ],
)
def test_a_rate_is_counted_within_a_minute(name: str, column: str) -> None:
    watched = Watched()
    for _ in range(10):
        assert watched.seconds(1, **{column: 1}) == []
        assert watched.seconds(30) == [], "two in a minute are not three"
    assert watched.seconds(1, **{column: 1}) == []
    assert watched.seconds(1, **{column: 1}) == [f"+{name}"]
    assert watched.seconds(59) == []
    assert watched.seconds(1, **{column: 1}) == [], "still the same alert"
    assert watched.seconds(59) == []
    assert watched.seconds(2) == [f"-{name}"]


def test_a_deaf_listener_an_open_breaker_and_a_leak() -> None:
    watched = Watched()
    assert watched.seconds(3, listening("connected")) == []
    assert watched.seconds(1, listening("deaf")) == ["+listener_deaf"]
    assert watched.seconds(4, breaker=1) == [], "one failed attempt is no outage"
    assert watched.seconds(2) == []
    assert watched.seconds(5, breaker=1) == ["+breaker_open"]
    assert watched.seconds(1, leaks=1) == ["+leak"]
    assert sorted(watched.seconds(100)) == ["-breaker_open", "-leak", "-listener_deaf"]


def test_each_message_says_what_to_do_and_where_more_stands() -> None:
    watched = Watched(after=2.0)
    watched.seconds(
        5,
        listening("deaf"),
        leased=20,
        pool_timeouts=9,
        statement_timeouts=9,
        connect_failures=9,
        connections_lost=9,
        leaks=1,
        wake_ups=1,
    )
    watched.seconds(5, breaker=1)
    raised = [event for event in watched.seen if isinstance(event, events.AlertRaised)]
    assert {event.name for event in raised} == {rule.name for rule in RULES}
    for event in raised:
        assert f"`steadypool why {event.runbook}`" in event.message
        assert f"docs/runbooks/{event.runbook}.md" in event.message
        assert len(event.message) > 100
    assert {event.runbook for event in raised} <= {
        "exhaustion", "connect-timeouts", "statement-timeouts", "cold-start", "deaf-listener", "leaks",
        "background-work", "connection-lost",
    }  # fmt: skip
    cleared = [event for event in watched.seen if isinstance(event, events.AlertCleared)]
    assert all(event.seconds >= 2.0 for event in cleared)
    assert len(watched.alerts.raised) == len(raised) - len(cleared)


# -- the webhook -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def receiver(answer: bytes | None) -> AsyncIterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """A web server that takes POSTs and gives that answer, or none at all."""
    received: list[tuple[str, dict[str, Any]]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("Content-Length")
        )
        received.append((head, json.loads(await reader.readexactly(length))))
        if answer is not None:
            writer.write(answer)
        else:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook/s3cret?to=ops", received
    finally:
        server.close()


@pytest.mark.anyio
async def test_a_webhook_gets_each_alert_once() -> None:
    async with receiver(b"HTTP/1.1 204 No Content\r\n\r\n") as (url, received):
        webhook = Webhook(url)
        for number in range(3):
            webhook.send({"alert": "leak", "number": number})
        await webhook.close()
    assert [message["number"] for _, message in received] == [0, 1, 2]
    assert received[0][0].startswith("POST /hook/s3cret?to=ops HTTP/1.1\r\nHost: 127.0.0.1:")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "answer", [None, b"HTTP/1.1 500 Oops\r\n\r\n", b"HTTP/1.1 403 No\r\n\r\n", b"SSH-2.0-x\r\n"]
)
async def test_a_webhook_that_fails_is_said_once_without_its_secret(
    answer: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    async with receiver(answer) as (url, received):
        webhook = Webhook(url, timeout=0.2)
        webhook.send({"alert": "leak"})
        async with asyncio.timeout(60):
            while not caplog.records:
                await asyncio.sleep(0.01)
        await webhook.close()
    assert len(received) == (1 if answer and b"403" in answer else 2)
    (record,) = caplog.records
    assert "could not be sent to 127.0.0.1" in record.getMessage()
    assert "s3cret" not in record.getMessage()


@pytest.mark.anyio
async def test_a_webhook_with_a_user_and_password_is_sent_them() -> None:
    async with receiver(b"HTTP/1.1 204 No Content\r\n\r\n") as (url, received):
        webhook = Webhook(url.replace("http://", "http://me:s%40crets@"))
        webhook.send({"alert": "leak"})
        await webhook.close()
    [(head, _)] = received
    credentials = base64.b64encode(b"me:s@crets").decode()
    assert f"\r\nAuthorization: Basic {credentials}\r\n" in head
    assert "\r\nHost: 127.0.0.1:" in head
    with pytest.raises(ValueError, match="with a host"):
        DatabaseSettings(alert_webhook="http://h:0/")


@pytest.mark.anyio
async def test_a_webhook_that_hangs_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async with receiver(None) as (url, received):
        webhook = Webhook(url, timeout=0.3)
        for number in range(3 * MOST_WAITING):
            webhook.send({"number": number})
        async with asyncio.timeout(10):
            await webhook.close()
    assert len(received) <= 4
    assert "too many wait already" in caplog.text
