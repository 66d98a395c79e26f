"""A password, wherever in a URL it was put, is in no error, repr or traceback; and finding it takes linear time."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backend.config import load_settings
from steadypool import DatabaseSettings
from steadypool.cli import main
from steadypool.cli.advise.sources import load
from steadypool.connect.dsn import parse_url
from steadypool.errors import ConfigurationError
from steadypool.settings.validators import redact_url, redact_urls, shown
from steadypool.sqlalchemy import create_async_engine

PLACES = (
    "postgresql://app:{}@h/db",
    "postgresql://:{}@h/db",
    "postgresql://app:{}/db",
    "postgresql://app:{}",
    "postgresql://app:{}:5432/db",
    "postgresql://app:{}h:5432/db",
    "postgresql://app:{}@h:port/db",
    "postgresql://app:{}@h,i:5432/db",
    "postgresql://app:{}@x@h/db?sslmode=require",
    "postgresql://h/db?password={}",
    "postgresql://h/db?a=b&PASSWORD={}&c=d",
    "postgresql://h/db?sslpassword={}&sslmode=require",
    "postgresql://app:x@h/db?passwd={}",
    "postgresql://app:x@h/db?pwd={}&user=me@here",
    "postgresql://h/db?%70assword={}",
    "postgresql+asyncpg://app:{}@[::1]:77/db",
    "postgres://app:{}@%2Ftmp/db",
    "mysql://app:{}@h/db",
    "app:{}@h/db",
    "host=h password={}",
)
WEB_PLACES = (
    "http://u:{}@127.0.0.1:1/pool",
    "https://{}@127.0.0.1:1/pool",
    "http://u:{}",
    "http://h:1/?token={}",
)

raw = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(lambda text: f"q{text}q7z")
secrets = raw | raw.map(lambda text: quote(text, safe=""))


def uses(url: str) -> list[Callable[[], object]]:
    """What a URL is given to; each raises, or returns something to look at."""
    return [
        lambda: redact_url(url),
        lambda: redact_urls(f"it was {url} at last") if "://" in url and " " not in url else None,
        lambda: shown(url),
        lambda: parse_url(url),
        lambda: (DatabaseSettings(url=url), DatabaseSettings(url=url).safe_url),
        lambda: DatabaseSettings(alert_webhook=url),
        lambda: create_async_engine(url).url,
    ]


def said(use: Callable[[], object]) -> str:
    """All that can be read of the result, or of the error and those before it."""
    try:
        result = use()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is read
        parts = traceback.format_exception(error)
        current: BaseException | None = error
        while current is not None:
            parts += [str(current), repr(current)]
            current = current.__cause__ or current.__context__
        return "\n".join(parts)
    return f"{result} {result!r}"


@settings(deadline=None)
@given(secret=secrets, place=st.sampled_from(PLACES))
@example(secret="hunterZWEI", place="postgresql://app:{}:5432/db")
@example(secret="qa@b?c/dq7z", place="postgresql://app:{}@h/db")
@example(secret="qa?b=c@dq7z", place="postgresql://app:{}@h/db")
@example(secret="qa,bq7z", place="postgresql://app:{}/db")
@example(secret="qa@bq7z", place="postgresql://h/db?password={}")
def test_a_secret_is_shown_nowhere(secret: str, place: str) -> None:
    for use in uses(place.format(secret)):
        assert secret not in said(use)


@settings(deadline=None, max_examples=30)
@given(secret=secrets, place=st.sampled_from(WEB_PLACES))
@example(secret="hunterZWEI", place="http://u:{}@127.0.0.1:1/pool")
def test_an_address_with_a_secret_is_shown_without_it(secret: str, place: str) -> None:
    url = place.format(secret)
    if "h:1" not in url:
        assert secret not in said(lambda: load(url))
    assert secret not in said(lambda: redact_url(url))
    assert secret not in said(lambda: DatabaseSettings(alert_webhook=url))


@pytest.mark.parametrize(
    ("url", "redacted"),
    [
        ("postgresql://app:hunterZWEI/db", "postgresql://app:***"),
        ("postgresql://app:hunterZWEI:5432/db", "postgresql://app:***"),
        ("postgresql://me@h/db?user=a@b", "postgresql://me@h/db?user=a@b"),
        ("postgresql://h:1,[::1]:2,::1/db?pwd=x&a=b", "postgresql://h:1,[::1]:2,::1/db?pwd=***&a=b"),
        ("postgresql://h/db?passfile=/etc/pgpass", "postgresql://h/db?passfile=/etc/pgpass"),
        ("http://token@h/pool", "http://***@h/pool"),
        ("http://h:8000/pool", "http://h:8000/pool"),
    ],
)
def test_what_is_no_secret_stays(url: str, redacted: str) -> None:
    assert redact_url(url) == redacted


def test_a_misplaced_url_is_shown_without_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORT", "postgresql://app:hunterZWEI@h/db")
    assert "hunterZWEI" not in said(load_settings)
    assert main(["doctor", "--urll=postgresql://app:hunterZWEI@h/db"]) == 2
    assert main(["advise", "http://u:hunterZWEI@127.0.0.1:1/pool"]) == 1
    captured = capsys.readouterr()
    assert "hunterZWEI" not in captured.out + captured.err


PARTS = ["a:", "@", "/", "?", "&", "=", ",", "[", "password=", "pwd ", "%70", "://", ":1", " "]


@pytest.mark.parametrize("part", PARTS)
def test_hostile_urls_take_linear_time(part: str) -> None:
    def seconds(size: int) -> float:
        url = "postgresql://" + part * (size // len(part))
        began = time.process_time()
        redact_url(url)
        redact_urls(url)
        with suppress(ConfigurationError):
            parse_url(url[: size // 20])  # it makes an object of each host
        return time.process_time() - began

    small = min(seconds(250_000) for _ in range(3))
    assert seconds(1_000_000) < max(12 * small, 0.5)
