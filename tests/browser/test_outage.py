"""The database is away: what a person sees, and that it passes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from .conftest import OpenVisit
from .kit import Service

MINUTE = 60_000


@pytest.fixture
def outage(service: Service) -> Iterator[Service]:
    """The database server can be stopped in such a test, and runs again after it."""
    yield service
    if not service.postgres.is_running:
        service.postgres.restart()


def test_a_message_for_people_and_all_is_well_again(visit: OpenVisit, outage: Service) -> None:
    guest = visit()
    guest.expect_in_console("status of 503")
    outage.postgres.stop("immediate")
    guest.page.goto(f"{outage.url}/")
    note = guest.page.locator("#note")
    expect(note).to_contain_text("The tracks could not be loaded", timeout=MINUTE)
    text = note.inner_text()
    assert not re.search(r"Traceback|Error\b|undefined|\[object|\{|postgresql://|127\.0\.0\.1", text), text
    outage.postgres.start()
    for _ in range(20):
        guest.page.reload()
        expect(note).not_to_have_text("Loading…", timeout=MINUTE)
        if guest.rows.count():
            break
        guest.page.wait_for_timeout(250)
    expect(guest.page.get_by_text("First Light on the Pool")).to_be_visible()
    expect(note).to_be_hidden()


def test_a_like_that_fails_is_taken_back(visit: OpenVisit, outage: Service) -> None:
    artist = visit().open(token=outage.token)
    artist.expect_in_console("status of 503")
    expect(artist.page.locator("#account")).to_contain_text("@demo")
    like = artist.row("Ten and Five").get_by_role("button", name="Like")
    outage.postgres.stop("immediate")
    like.click()
    expect(artist.page.locator("#announce")).to_contain_text("That did not work", timeout=MINUTE)
    expect(like).to_have_attribute("aria-pressed", "false")
