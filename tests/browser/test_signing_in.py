"""Signing in, and liking, which needs it."""

from __future__ import annotations

from playwright.sync_api import Locator, expect

from .conftest import OpenVisit
from .kit import Service

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


def test_a_link_signs_in_and_does_not_stay_in_the_address(visit: OpenVisit, service: Service) -> None:
    artist = visit().open(f"#token={service.token}")
    account = artist.page.locator("#account")
    expect(account).to_contain_text("@demo.plyr.local")
    assert artist.page.url == f"{service.url}/"
    account.click()
    expect(account).to_have_text("Sign in")
    artist.page.reload()
    expect(artist.rows.first).to_be_visible()
    expect(account).to_have_text("Sign in")


def test_a_link_signs_in_where_the_page_is_open_already(visit: OpenVisit, service: Service) -> None:
    artist = visit().open()
    account = artist.page.locator("#account")
    expect(account).to_have_text("Sign in")
    artist.page.evaluate("window.here = true")
    artist.page.evaluate("token => { location.href = `#token=${token}` }", service.token)
    expect(account).to_contain_text("@demo.plyr.local")
    assert artist.page.url == f"{service.url}/"
    assert artist.page.evaluate("window.here") is True  # nothing was loaded anew: a track that plays goes on


def test_likes_survive_a_reload(visit: OpenVisit, service: Service) -> None:
    artist = visit().open(f"#token={service.token}")
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
    guest.open("#token=plyr_old")
    expect(guest.page.locator("#account")).to_have_text("Sign in")
    assert guest.page.evaluate("localStorage.length") == 0
