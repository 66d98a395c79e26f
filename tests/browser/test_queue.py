"""One queue in two browsers, live."""

from __future__ import annotations

from playwright.sync_api import Locator, expect

from .conftest import OpenVisit
from .kit import Service, Visit


def entries(visit: Visit) -> Locator:
    return visit.page.locator("#queue > li")


def test_one_queue_on_two_devices(visit: OpenVisit, service: Service) -> None:
    desk = visit().open(token=service.token)
    phone = visit(viewport={"width": 375, "height": 800}, color_scheme="dark").open(token=service.token)
    for device in (desk, phone):
        expect(device.page.locator("#live")).to_have_text("live")
        expect(entries(device)).to_have_count(0)
    add = desk.page.locator("#tracks").get_by_role("button", name="to the queue")
    for number in range(3):
        add.nth(number).click()
    expect(entries(phone)).to_have_count(3)
    entries(phone).nth(1).get_by_role("button", name="Play").click()
    for device in (desk, phone):
        expect(entries(device).nth(1)).to_have_attribute("aria-current", "true")
    assert desk.page.evaluate("document.querySelector('audio').paused")  # only where somebody asked for it
    remove = entries(desk).get_by_role("button", name="Remove")
    remove.nth(2).focus()
    for left in (2, 1, 0):
        desk.page.keyboard.press("Enter")
        expect(entries(desk)).to_have_count(left)
    expect(desk.page.locator("#queue-heading")).to_be_focused()
    expect(entries(phone)).to_have_count(0)
    desk.page.locator("#account").click()
    expect(desk.page.locator("#up-next")).to_be_hidden()
