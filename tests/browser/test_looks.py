"""Small screens, dark rooms: what can be measured of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .conftest import OpenVisit
from .kit import Visit, wav

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}

TARGETS = """() => [...document.querySelectorAll("a[href], button, input")]
  .filter((element) => element.checkVisibility())
  .map((element) => {
    const { width, height } = element.getBoundingClientRect();
    return { name: element.getAttribute("aria-label") || element.id || element.textContent.trim(), width, height };
  })"""

# Every text that is shown, with its colour and the one behind it.
COLOURS = """() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour.slice(0, 3);
      if (colour[3] !== 0) throw new Error(`half transparent: ${at.outerHTML.slice(0, 80)}`);
    }
    throw new Error("nothing behind it");
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement, text = node.textContent.trim();
    if (!text || !element.checkVisibility() || element.closest("script, .unseen, :disabled")) continue;
    found.push({ text, ink: parse(getComputedStyle(element).color).slice(0, 3), ground: behind(element) });
  }
  for (const input of document.querySelectorAll("input[placeholder]")) {
    if (!input.checkVisibility()) continue;
    const ink = parse(getComputedStyle(input, "::placeholder").color).slice(0, 3);
    found.push({ text: input.placeholder, ink, ground: behind(input) });
  }
  return found;
}"""


def luminance(colour: list[float]) -> float:
    """As WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: list[float], other: list[float]) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_the_measure_is_right() -> None:
    assert contrast([0, 0, 0], [255, 255, 255]) == pytest.approx(21)
    assert contrast([119, 119, 119], [255, 255, 255]) == pytest.approx(4.48, abs=0.005)


def too_faint(guest: Visit) -> list[Any]:
    found = guest.page.evaluate(COLOURS)
    assert len(found) > 4
    return [each for each in found if contrast(each["ink"], each["ground"]) < 4.5]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(visit: OpenVisit, scheme: str) -> None:
    guest = visit(color_scheme=scheme).open()
    ground = guest.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (luminance(ground) < 0.1) == (scheme == "dark")
    guest.play("Ten and Five")
    assert too_faint(guest) == []
    guest.page.get_by_role("button", name="Sign in").click()
    assert too_faint(guest) == []


def overflow(guest: Visit) -> int:
    return guest.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.mark.parametrize("signed_in", [False, True])
def test_on_a_phone_nothing_is_cut_off_or_too_small(
    visit: OpenVisit, service: Any, uploaded: Callable[..., int], signed_in: bool
) -> None:
    title = "Donaudampfschifffahrtsgesellschaft" * 4
    uploaded(title, wav(1), album="Unbroken" * 20)
    guest = visit(**PHONE).open(token=service.token if signed_in else None)
    if signed_in:
        guest.page.get_by_text("@demo.plyr.local").wait_for()
    assert overflow(guest) == 0
    guest.play("Ten and Five")
    assert overflow(guest) == 0
    targets = guest.page.evaluate(TARGETS)
    assert len(targets) > 10
    if not signed_in:
        guest.page.get_by_role("button", name="Sign in").tap()
        targets += guest.page.evaluate(TARGETS)
        assert overflow(guest) == 0
    assert [each for each in targets if min(each["width"], each["height"]) < 40] == []
