"""Two instances on one database, as `make run` in two terminals: one queue in two browsers, whatever a network does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import pytest
from playwright.sync_api import Browser, Locator, expect

from processes import Network, Plyr, network, running_plyr

from .kit import Service, Visit

RIGHT_AGAIN_WITHIN = 8.0
"""Seconds, with the service's own times: 5 to the next heartbeat, 2 for its answer, and the rest to connect again."""

MARGIN = 4.0
"""Seconds that a busy machine may add."""


@dataclass
class Other:
    """A second instance, and the network of its listener."""

    plyr: Plyr
    network: Network


@pytest.fixture
def other(service: Service) -> Iterator[Other]:
    with network(service.postgres.port) as between:
        parts = urlsplit(service.database_url)
        direct = urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{between.port}"))
        variables = {"DATABASE_URL": service.database_url, "DATABASE_DIRECT_URL": direct}
        with running_plyr(service.home, "other", **variables) as plyr:
            yield Other(plyr, between)


def entries(visit: Visit) -> Locator:
    return visit.page.locator("#queue > li")


def listener(plyr: Plyr) -> dict[str, Any]:
    return httpx.get(f"{plyr.url}/readyz").json()["listener"]


def test_one_queue_on_two_instances_whatever_the_network_does(
    service: Service, other: Other, browser: Browser
) -> None:
    visits: list[Visit] = []
    for plyr in (service.plyr, other.plyr):
        page = browser.new_context(locale="en-GB").new_page()
        visits.append(Visit(page, plyr.url).open(token=plyr.token))
        expect(page.locator("#live")).to_have_text("live")
    desk, phone = visits
    add = desk.page.locator("#tracks").get_by_role("button", name="to the queue")
    add.nth(0).click()
    expect(entries(phone)).to_have_count(1)
    entries(phone).nth(0).get_by_role("button", name="Remove").click()
    expect(entries(desk)).to_have_count(0)
    before = listener(other.plyr)
    assert (before["state"], before["connects"]) == ("connected", 1)

    other.network.do("half-open")  # what is open hears nothing ever again, and is not told
    broken_at = time.monotonic()
    add.nth(1).click()
    expect(entries(desk)).to_have_count(1)
    expect(entries(phone)).to_have_count(1, timeout=1000 * (RIGHT_AGAIN_WITHIN + MARGIN))
    print(f"\nright again {time.monotonic() - broken_at:.1f} s after the socket was dropped")

    end = time.monotonic() + 10
    while (after := listener(other.plyr))[
        "state"
    ] != "connected":  # until then the page's events ask the database
        assert time.monotonic() < end, after
    assert (after["connects"], after["gaps"]) == (2, before["gaps"] + 1)
    assert "notifications of channel 'queue_changes' may be missing for" in other.plyr.said
    entries(phone).nth(0).get_by_role("button", name="Remove").click()
    expect(entries(desk)).to_have_count(0)
    for visit in visits:
        visit.page.context.close()
        visit.verify()


def test_a_page_says_when_it_is_not_told_and_wakes_with_whoever_comes_back(
    service: Service, browser: Browser
) -> None:
    variables = {
        "DATABASE_URL": service.database_url,
        "DATABASE_IDLE_POLICY": "allow_sleep",
        "DATABASE_POOL_IDLE_TIMEOUT": "3",
        "QUEUE_HEARTBEAT_INTERVAL": "0.5",
    }
    with running_plyr(service.home, "sleepy", **variables) as plyr:
        visit = Visit(browser.new_context(locale="en-GB").new_page(), plyr.url).open(token=plyr.token)
        live = visit.page.locator("#live")
        expect(live).to_have_text("paused")
        with httpx.Client(
            base_url=service.url, headers={"Authorization": f"Bearer {service.token}"}
        ) as elsewhere:
            queue = elsewhere.get("/queue/").json()
            state = {"track_ids": [elsewhere.get("/tracks/").json()["tracks"][0]["file_id"]]}
            headers = {"If-Match": f'"{queue["revision"]}"'}
            assert elsewhere.put("/queue/", json={"state": state}, headers=headers).status_code == 200
        expect(entries(visit)).to_have_count(0)
        assert listener(plyr)["state"] == "dormant"
        visit.page.keyboard.press("Shift")
        expect(entries(visit)).to_have_count(1)
        expect(live).to_have_text("live")
        entries(visit).nth(0).get_by_role("button", name="Remove").click()
        expect(entries(visit)).to_have_count(0)
        visit.page.context.close()
        visit.verify()
