"""Taking database URLs apart, and showing them without their passwords."""

from __future__ import annotations

import pickle
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr
from sqlalchemy import make_url

from steadypool.connect.dsn import ConnectTarget, Host, parse_url
from steadypool.errors import ConfigurationError
from steadypool.settings.validators import redact_url
from steadypool.sqlalchemy.engine import sqlalchemy_url

SECRET = "hunter2"


def test_the_url_of_neons_console() -> None:
    target = parse_url(
        f"postgresql://user:{SECRET}@ep-x-pooler.region.aws.neon.tech/db?sslmode=require&channel_binding=require"
    )
    assert target == ConnectTarget(
        hosts=(Host("ep-x-pooler.region.aws.neon.tech", 5432),),
        user="user",
        password=SecretStr(SECRET),
        database="db",
        options={"sslmode": "require", "channel_binding": "require"},
    )


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://", ()),
        ("postgresql:///d", ()),
        ("postgresql://h", (Host("h"),)),
        ("postgres://h:6543/d", (Host("h", 6543),)),
        ("postgresql://a:1,b,[::1]:3/d", (Host("a", 1), Host("b"), Host("::1", 3))),
        ("postgresql://[::1]/d", (Host("::1"),)),
        ("postgresql://%2Ftmp%2Fpg:3/d", (Host("/tmp/pg", 3),)),
        ("postgresql:///d?host=/tmp/pg&port=3", (Host("/tmp/pg", 3),)),
        ("postgresql:///d?host=a,b&port=1,2", (Host("a", 1), Host("b", 2))),
        ("postgresql:///d?host=a:1&host=b:2", (Host("a", 1), Host("b", 2))),
        ("postgresql:///d?host=a,b&port=7", (Host("a", 7), Host("b", 7))),
        ("postgresql://h/d?hostaddr=10.0.0.1", (Host("h", 5432, "10.0.0.1"),)),
        ("postgresql:///d?hostaddr=10.0.0.1", (Host("10.0.0.1", 5432, "10.0.0.1"),)),
        ("postgresql://ignored/d?host=h", (Host("h"),)),
    ],
)
def test_hosts(url: str, hosts: tuple[Host, ...]) -> None:
    assert parse_url(url).hosts == hosts


def test_a_host_without_a_port_has_the_port_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "6543")
    assert parse_url("postgresql://a,b:1/d").hosts == (Host("a", 6543), Host("b", 1))
    assert parse_url("postgresql://h/d?port=7").hosts == (Host("h", 7),)
    assert parse_url("postgresql:///d").hosts == ()
    monkeypatch.setenv("PGPORT", "")
    assert parse_url("postgresql://h/d").hosts == (Host("h", 5432),)


def test_what_is_written_in_options_wins_over_the_front_of_the_url() -> None:
    target = parse_url("postgresql+psycopg://a:b@h/d?user=x&password=y&dbname=z")
    assert (target.user, target.password, target.database, target.driver) == (
        "x",
        SecretStr("y"),
        "z",
        "psycopg",
    )
    assert parse_url("postgresql://h/?database=z").database == "z"


def test_a_plus_is_a_space_in_options_only_as_sqlalchemy_writes_it() -> None:
    assert parse_url("postgresql://u:a+b@h/d?options=-c+jit%3Doff").password == SecretStr("a+b")
    assert parse_url("postgresql://u:a+b@h/d?options=-c+jit%3Doff").options == {"options": "-c jit=off"}


@pytest.mark.parametrize(
    ("url", "why"),
    [
        (f"mysql://u:{SECRET}@h/d", "must begin with"),
        (f"u:{SECRET}@h/d", "must begin with"),
        (f"postgresql://u:{SECRET}%zz@h/d", "%25"),
        (f"postgresql://u:{SECRET}@x@h/d", "two @"),
        (f"postgresql://u:x/{SECRET}@h/d", "two @"),
        (f"postgresql://u:{SECRET}/d", "port"),
        ("postgresql://h:0/d", "1 to 65535"),
        ("postgresql://h:65536/d", "1 to 65535"),
        ("postgresql://h:٣/d", "1 to 65535"),
        ("postgresql://a:b:1/d", "more than one colon"),
        ("postgresql:///d?host=a,b&port=1,2,3", "2 hosts, but 3 ports"),
        ("postgresql://a,b/d?hostaddr=10.0.0.1", "addresses"),
        ("postgresql://h/d?sslmode", "name=value"),
        ("postgresql://h/d?a=1&a=2", "given twice"),
    ],
)
def test_what_is_no_url_is_refused_without_showing_a_password(url: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as caught:
        parse_url(url)
    assert SECRET not in str(caught.value)


def test_a_target_shows_no_secret() -> None:
    target = parse_url(f"postgresql://u:{SECRET}@h:1,h2/d?sslpassword={SECRET}&sslmode=require")
    assert str(target) == "u@h:1,h2:5432/d"
    assert SECRET not in repr(target)
    assert "sslmode" in repr(target)
    assert hash(target) == hash(
        parse_url(f"postgresql://u:{SECRET}@h:1,h2/d?sslpassword={SECRET}&sslmode=require")
    )
    with pytest.raises(TypeError):
        target.options["sslmode"] = "disable"  # type: ignore[index]
    with pytest.raises(TypeError):
        pickle.dumps(target)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql://u:{SECRET}@h/d", "postgresql://u:***@h/d"),
        (f"postgresql://u:{SECRET}@h:1,[::1]:2/d?a=b", "postgresql://u:***@h:1,[::1]:2/d?a=b"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        (f"postgresql://u:{SECRET}@x@h/d", "postgresql://u:***@h/d"),
        (f"postgresql://u:x/{SECRET}@h/d", "postgresql://u:***@h/d"),
        (f"postgresql://u:{SECRET}", "postgresql://u:***"),
        (f"postgresql://h/d?password={SECRET}&a=b", "postgresql://h/d?password=***&a=b"),
        (f"postgresql://h/d?a=b&sslpassword={SECRET}", "postgresql://h/d?a=b&sslpassword=***"),
        (f"host=h password={SECRET}", "***"),
    ],
)
def test_redaction(url: str, shown: str) -> None:
    assert redact_url(url) == shown


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
marked = texts.map(lambda text: f"q{text}q7z")


@given(password=marked)
def test_no_password_survives_redaction_however_it_was_written(password: str) -> None:
    for raw in (password, quote(password, safe="")):
        assert raw not in redact_url(f"postgresql://u:{raw}@h/d")


@given(user=texts, password=texts, database=texts, host=st.sampled_from(["h", "[::1]:77", "%2Ftmp:9"]))
def test_every_quoted_url_means_the_same_here_and_in_libpq(
    user: str, password: str, database: str, host: str
) -> None:
    url = f"postgresql://{quote(user, safe='')}:{quote(password, safe='')}@{host}/{quote(database, safe='')}"
    target = parse_url(url)
    libpq = conninfo_to_dict(url)
    assert target.user == user == libpq["user"]
    assert target.password == SecretStr(password)
    assert password == libpq["password"]
    assert target.database == database == libpq["dbname"]
    assert target.hosts[0].name == libpq["host"]
    assert str(target.hosts[0].port) == libpq.get("port", "5432")


@given(user=texts, password=texts, name=texts)
def test_what_sqlalchemy_writes_is_read_as_it_was_meant(user: str, password: str, name: str) -> None:
    url = make_url("postgresql+asyncpg://h/d").set(
        username=user, password=password, query={"application_name": name}
    )
    target = parse_url(url.render_as_string(hide_password=False))
    assert (target.user, target.password) == (user, SecretStr(password))
    assert target.options == {"application_name": name}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://app:s%2Cecret@one:5432,two/plyr?target_session_attrs=primary",
        "postgresql://[::1]:5432,b:5433",
        "postgresql://app@one,two/plyr?host=three",
        "postgresql://app@one/plyr",
    ],
)
def test_sqlalchemys_url_leads_to_the_same_hosts(url: str) -> None:
    """SQLAlchemy itself takes the hosts after a comma for a port."""
    made = sqlalchemy_url(url)
    assert parse_url(made.render_as_string(hide_password=False)) == parse_url(url)
    assert sqlalchemy_url(made) is made
