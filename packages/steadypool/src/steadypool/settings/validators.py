"""What may stand in a variable, one function a kind; and how a URL is shown without its password.

Each takes what the environment or the caller gave and returns what it means, or raises `ValueError` with what is
allowed. They know no variable's name: `settings.py` puts it before the message.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from urllib.parse import unquote_plus, urlsplit

from pydantic import SecretStr

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.I)
_WITH_UNIT = re.compile(
    r"[+-]?[\d.]+\s*(ms|s|sec|seconds?|m|min|minutes?|h|hours?|d|k|kb|kib|mb|mib|g|gb|gib|b)", re.I
)
_OFF_WORDS = frozenset({"off", "none", "never"})
TRUE_WORDS = frozenset({"true", "on", "yes", "1", "t", "y"})
FALSE_WORDS = frozenset({"false", "off", "no", "0", "f", "n"})


def _number(value: object, allowed: str) -> float:
    """The number that `value` is or spells; anything else is refused, with a hint where one helps."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"allowed: {allowed}")
    if not isinstance(value, str):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    text = value.strip()
    if not text:
        raise ValueError(f"it is empty; unset it for the default; allowed: {allowed}")
    if _WITH_UNIT.fullmatch(text):
        raise ValueError(f"write the number alone, without a unit; allowed: {allowed}")
    if _INFINITE.fullmatch(text):
        return -math.inf if text.startswith("-") else math.inf
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"not a number; allowed: {allowed}")
    return float(text)


def _bounds(low: float, high: float, unit: str, off: bool) -> str:
    return f"{_plain(low)} to {_plain(high)}" + (f" {unit}" if unit else "") + (", or off" if off else "")


def _plain(number: float) -> str:
    """A bound as people write it, whatever its size."""
    return f"{number:,}" if number != int(number) else f"{int(number):,}"


def check_numeric(
    low: float, high: float, unit: str, *, whole: bool, off: bool, hint: str
) -> Callable[[object], object]:
    """Numbers from `low` to `high`, `off` as None where `off` is set; `hint` is said when one is too small."""
    allowed = _bounds(low, high, unit, off) + (", a whole number" if whole else "")

    def check(value: object) -> object:
        if off and (value is None or (isinstance(value, str) and value.strip().lower() in _OFF_WORDS)):
            return None
        number = _number(value, allowed)
        if not low <= number <= high:  # false for NaN as well
            endless = number == math.inf and not off
            said = hint if number < low else "there has to be a limit" if endless else ""
            raise ValueError(f"allowed: {allowed}" + (f"; {said}" if said else ""))
        if not whole:
            return number
        if number != int(number):
            raise ValueError(f"allowed: {allowed}")
        return int(number)

    return check


def check_switch(value: object) -> object:
    """On or off, in the words that people write for it."""
    word = str(value).strip().lower() if isinstance(value, str | int) else ""
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise ValueError("allowed: on or off (true, false, yes, no, 1, 0)")


def check_word(kind: type[StrEnum]) -> Callable[[object], object]:
    """One of the words of `kind`."""
    words = {member.value: member for member in kind}

    def check(value: object) -> object:
        member = words.get(value.strip().lower()) if isinstance(value, str) else None
        if member is None:
            raise ValueError("allowed: " + ", ".join(words))
        return member

    return check


_SCHEME = re.compile(r"(postgresql|postgres)(\+[a-z0-9_]+)?://")
_ANY_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-_]*")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%\w]*\]|[^\[\]:@#\s]*)(:\d{0,5})?")
_SECRET_OPTION = re.compile(
    r"(?:password|passwd|passphrase|pwd|secret|token|api_?key|scram_(?:client|server)_key)\s*=", re.I
)
_MAY_HAVE_AT = frozenset({"user", "host", "application_name", "fallback_application_name", "krbsrvname"})
_WORD = re.compile(r"[^\s\"'<>]+")
HIDDEN = "***"


def is_secret_option(name: str) -> bool:
    """Whether the value of this option of a URL is a secret; `passfile` and the like are paths.

    Example:
        >>> is_secret_option("sslpassword"), is_secret_option("pwd"), is_secret_option("passfile")
        (True, True, False)
    """
    return _SECRET_OPTION.search(f"{name}=") is not None


def redact_url(url: str) -> str:
    """The URL with its passwords replaced by `***`, whatever state it is in; in linear time.

    A URL that can be read in two ways, since an `@` was forgotten or a password was not percent-encoded, is cut
    where the password may begin. The userinfo of `http://` is hidden as a whole: it may be a token.

    Example:
        >>> redact_url("postgresql://app:secret@db.example/plyr?sslpassword=x")
        'postgresql://app:***@db.example/plyr?sslpassword=***'
        >>> redact_url("postgresql://app:secret/plyr")
        'postgresql://app:***'
    """
    scheme, mark, rest = url.partition("://")
    if not mark or not _ANY_SCHEME.fullmatch(scheme):
        return HIDDEN
    before, question, query = rest.partition("?")
    authority, slash, path = before.partition("/")
    user = re.split(r"[:@/?#]", rest, maxsplit=1)[0] if scheme.startswith("postgres") else ""
    cut = f"{scheme}://{user}:{HIDDEN}" if user else f"{scheme}://{HIDDEN}"
    if _has_stray_at(query):
        return cut
    if "@" in path:  # of a password with a "/" in it
        return f"{cut}@{before.rpartition('@')[2]}{question}{_redact_options(query)}"
    userinfo, at, hosts = authority.rpartition("@")
    if not all(map(_is_host, hosts.split(","))):  # "user:secret" with the "@host" forgotten
        return cut if not at else f"{cut}@{HIDDEN}"
    if not at:
        shown = f"{scheme}://"
    elif user and ":" not in userinfo:
        shown = f"{scheme}://{user}@"
    else:
        shown = f"{cut}@"
    return f"{shown}{hosts}{slash}{path}{question}{_redact_options(query)}"


def redact_urls(text: str) -> str:
    """The text with the passwords of all URLs in it replaced by `***`."""
    return _WORD.sub(lambda word: redact_url(word[0]) if "://" in word[0] else word[0], text)


def _has_stray_at(query: str) -> bool:
    """Whether an `@` says that this is no query, but the rest of a password with a `?` in it."""
    parts = (part.partition("=")[0] for part in query.split("&") if "@" in part)
    return any(name not in _MAY_HAVE_AT and not is_secret_option(name) for name in parts)


def _is_host(spec: str) -> bool:
    """Whether this can be a host with its port: a port is a number, a password need not be one."""
    found = _HOST.fullmatch(spec)
    if found is not None:
        return int((found[2] or ":0")[1:] or 0) <= 65_535
    try:
        ipaddress.IPv6Address(spec)
    except ValueError:
        return False
    return True


def _redact_options(query: str) -> str:
    shown: list[str] = []
    hiding = (
        False  # what has no name belongs to the value before it: an "&" that should have been percent-encoded
    )
    for part in query.split("&"):
        secret = _SECRET_OPTION.search(part)
        if secret is not None:
            shown.append(part[: secret.end()] + HIDDEN)
        elif _SECRET_OPTION.search(unquote_plus(part)):
            shown.append(HIDDEN)
        elif not hiding or "=" in part:
            shown.append(part)
        hiding = secret is not None or (hiding and "=" not in part)
    return "&".join(shown)


def check_url(value: object) -> object:
    """A URL's outside: what is wrong inside is found where it is used, by the driver that will use it."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if text is None:
        return None
    if not isinstance(text, str):
        raise ValueError(f"a URL is text, not {type(text).__name__}")
    if not text:
        raise ValueError(
            "it is empty; unset it or give a URL such as postgresql://user:password@host/database"
        )
    if text != text.strip() or any(character in text for character in "\r\n\t\0"):
        raise ValueError("there is white space or a line break in it")
    if not _SCHEME.match(text):
        raise ValueError("must begin with postgresql://, postgresql+asyncpg:// or postgresql+psycopg://")
    return SecretStr(text)


def check_web_url(value: object) -> object:
    """The address of something that takes a POST; its path is often the secret, so all of it is treated as one."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if text is None:
        return None
    if not isinstance(text, str) or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("allowed: http://… or https://…, percent-encoded")
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("allowed: http://… or https://…, with a host")
    return SecretStr(text)


def check_path(value: object) -> object:
    """A path of this machine; what is wrong with it is found where it is opened."""
    if value is None or isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError("allowed: the path of a file")
    return Path(value)


def shown(value: object) -> str:
    """A value for an error message: short, on one line, and no password even if one went astray."""
    if not isinstance(value, str | int | float):
        return type(value).__name__
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of very many digits"  # Python refuses to write down the longest of them
    text = value if isinstance(value, str) else repr(value)
    if "://" in text or "@" in text or _SECRET_OPTION.search(text):
        text = redact_url(text)  # a URL that went astray, perhaps without its scheme
    if not text.isprintable():
        text = repr(text)
    return f"{text[:57]}..." if len(text) > 60 else text
