"""What others wrote stays text, and the page loads nothing but itself."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import expect

from .conftest import OpenVisit
from .kit import wav

MARKUP = '<img src="/nowhere" onerror="window.ran = true"><b>bold</b>'


def test_markup_of_others_is_text(visit: OpenVisit, uploaded: Callable[..., int]) -> None:
    uploaded(MARKUP, wav(1), album=MARKUP, description=MARKUP)
    guest = visit().open()
    row = guest.rows.first
    expect(row.locator(".title")).to_have_text(MARKUP)
    expect(row.locator(".by")).to_contain_text(MARKUP)
    row.get_by_role("button", name=f"Play {MARKUP}").click()
    expect(guest.page.locator("#now-title")).to_have_text(MARKUP)
    assert guest.page.locator("main img, main b, footer img, footer b").count() == 0
    assert guest.page.evaluate("window.ran") is None
    assert not any("nowhere" in answer.url for answer in guest.responses)


def test_a_script_that_got_in_is_not_run(visit: OpenVisit) -> None:
    """The second line of defence: the policy knows the page's own script only."""
    guest = visit().open()
    guest.expect_in_console("Content Security Policy")
    violated = guest.page.evaluate(
        """() => new Promise((resolve) => {
          document.addEventListener("securitypolicyviolation", (event) => resolve(event.violatedDirective));
          const script = document.createElement("script");
          script.textContent = "window.ran = true";
          document.body.append(script);
        })"""
    )
    assert violated == "script-src-elem"
    assert guest.page.evaluate("window.ran") is None


def test_the_page_asks_this_service_only(visit: OpenVisit) -> None:
    """Every visit is watched for it (kit.Visit); this one shows that the watch sees what it should."""
    guest = visit().open()
    assert guest.wrong == []
    assert len(guest.responses) >= 2
    guest.expect_in_console("Content Security Policy")
    guest.page.evaluate("fetch('https://elsewhere.invalid/').catch(() => null)")
