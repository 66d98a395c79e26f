"""Signing in, and liking, which needs it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Locator, expect

from processes import Plyr, running_plyr

from .conftest import OpenVisit
from .kit import Service, Visit, kept_visits

DEMO = "Waking the Sleeper"


def likes(row: Locator) -> int:
    return int(row.locator(".like").inner_text())


def test_a_guest_who_likes_is_asked_to_sign_in(visit: OpenVisit) -> None:
    guest = visit().open()
    guest.row(DEMO).get_by_role("button", name="Like").click()
    dialog = guest.page.get_by_role("dialog", name="Sign in")
    expect(dialog).to_be_visible()
    expect(dialog.get_by_label("Developer token")).to_be_focused()
    guest.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert [answer.url for answer in guest.responses if answer.url.endswith("/like")] == []


@pytest.fixture
def link(service: Service, request: pytest.FixtureRequest) -> Iterator[tuple[Plyr, str]]:
    """Another instance, and the fragment of the link that it prints: that can be used once."""
    with running_plyr(service.home, request.node.name, DATABASE_URL=service.database_url) as plyr:
        found = re.search(r"/(#code=\S+)", plyr.said)
        assert found is not None
        yield plyr, found[1]


@pytest.fixture
def new_visit(browser: Browser, link: tuple[Plyr, str]) -> Iterator[Callable[[], Visit]]:
    with kept_visits() as visits:

        def start() -> Visit:
            visits.append(Visit(browser.new_context(locale="en-GB").new_page(), link[0].url))
            return visits[-1]

        yield start


def test_a_link_signs_in_once_and_does_not_stay_in_the_address(
    new_visit: Callable[[], Visit], link: tuple[Plyr, str]
) -> None:
    plyr, fragment = link
    artist = new_visit().open(fragment)
    account = artist.page.locator("#account")
    expect(account).to_contain_text("@demo.plyr.local")
    assert artist.page.url == f"{plyr.url}/"
    kept = artist.page.evaluate("localStorage.getItem('plyr-token')")
    assert kept.startswith("plyr_")
    assert kept != plyr.token  # one of its own, which expires
    account.click()
    expect(account).to_have_text("Sign in")
    artist.page.reload()
    expect(artist.rows.first).to_be_visible()
    expect(account).to_have_text("Sign in")

    second = new_visit()
    second.expect_in_console("status of 403")
    second.open(fragment)
    expect(second.page.get_by_role("alert")).to_contain_text("was used already")
    expect(second.page.locator("#account")).to_have_text("Sign in")
    assert second.page.evaluate("localStorage.length") == 0


def test_a_link_asks_before_it_replaces_who_is_signed_in(
    new_visit: Callable[[], Visit], link: tuple[Plyr, str]
) -> None:
    plyr, fragment = link
    artist = new_visit().open(token=plyr.token)
    stored = "localStorage.getItem('plyr-token')"
    expect(artist.page.locator("#account")).to_contain_text("@demo.plyr.local")
    artist.page.evaluate("window.here = true")
    for answer, kept in (("Stay", True), ("Switch", False)):
        artist.page.evaluate("fragment => { location.href = fragment }", fragment)
        artist.page.get_by_role("dialog", name="Switch accounts").get_by_role("button", name=answer).click()
        expect(artist.page.get_by_role("dialog", name="Switch accounts")).to_be_hidden()
        if not kept:
            artist.until(f"{stored} !== '{plyr.token}'")
        assert (artist.page.evaluate(stored) == plyr.token) is kept
        assert artist.page.url == f"{plyr.url}/"
    assert artist.page.evaluate("window.here") is True  # nothing was loaded anew: a track that plays goes on


def test_a_link_with_a_token_signs_nobody_in(visit: OpenVisit, service: Service) -> None:
    guest = visit().open(f"#token={service.token}")
    expect(guest.page.locator("#account")).to_have_text("Sign in")
    assert guest.page.evaluate("localStorage.length") == 0


def test_likes_survive_a_reload(visit: OpenVisit, service: Service) -> None:
    artist = visit().open(token=service.token)
    row = artist.row(DEMO)
    like = row.get_by_role("button", name="Like")
    before = likes(row)
    for pressed, count in (("true", before + 1), ("false", before)):
        expect(like).to_have_attribute("aria-pressed", "false" if pressed == "true" else "true")
        with artist.page.expect_response(lambda answer: answer.url.endswith("/like")) as answered:
            like.click()
        assert answered.value.status == 200
        expect(like).to_have_attribute("aria-pressed", pressed)
        artist.page.reload()
        expect(like).to_have_attribute("aria-pressed", pressed)
        assert likes(row) == count


def test_signing_in_by_hand(visit: OpenVisit, service: Service) -> None:
    artist = visit().open()
    artist.expect_in_console("status of 401")
    artist.page.get_by_role("button", name="Sign in").click()
    dialog = artist.page.get_by_role("dialog", name="Sign in")
    token = dialog.get_by_label("Developer token")
    token.fill("plyr_wrong")
    token.press("Enter")
    expect(dialog.get_by_role("alert")).to_have_text("This token is not valid.")
    token.fill(service.token)
    token.press("Enter")
    expect(dialog).to_be_hidden()
    expect(artist.page.locator("#account")).to_contain_text("@demo.plyr.local")


def test_a_token_that_is_no_longer_valid_leaves_a_guest(visit: OpenVisit) -> None:
    guest = visit()
    guest.expect_in_console("status of 401")
    guest.open(token="plyr_old")
    expect(guest.page.locator("#account")).to_have_text("Sign in")
    assert guest.page.evaluate("localStorage.length") == 0
