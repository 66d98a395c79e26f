"""What may stand in a variable, one function a kind; and how a URL is shown without its password.

Each takes what the environment or the caller gave and returns what it means, or raises `ValueError` with what is
allowed. They know no variable's name: `settings.py` puts it before the message.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

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
_CLEAN_AUTHORITY = re.compile(r"(?:([^:@/?#]*)(:[^@/?#]*)?@)?([^@/?#]*)((?:[/?#][^@]*)?)", re.S)
_SECRET_OPTION = re.compile(r"((?:^|[?&\s])(?:password|passwd|pwd|sslpassword)=)[^&\s]*", re.I)
HIDDEN = "***"


def redact_url(url: str) -> str:
    """The URL with its passwords replaced by `***`, whatever state it is in.

    Example:
        >>> redact_url("postgresql://app:secret@db.example/plyr?sslpassword=x")
        'postgresql://app:***@db.example/plyr?sslpassword=***'
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        return HIDDEN
    clean = _CLEAN_AUTHORITY.fullmatch(rest)
    if clean is not None:
        user, password, hosts, tail = clean.groups()
        userinfo = "" if user is None else f"{user}:{HIDDEN}@" if password is not None else f"{user}@"
        # "user:secret" with the "@host" forgotten looks like a host and its port; a port is a number
        hosts = ",".join(re.sub(r"(?<!:):(?!\d*$)[^:\]]*$", f":{HIDDEN}", host) for host in hosts.split(","))
        return f"{scheme}://{userinfo}{hosts}" + _SECRET_OPTION.sub(rf"\g<1>{HIDDEN}", tail)
    # an "@", "/" or "?" that should have been percent-encoded: hide everything up to the last "@"
    before, _, after = rest.rpartition("@")
    user = re.split(r"[:@/?#]", before, maxsplit=1)[0]
    return f"{scheme}://{user}:{HIDDEN}@" + _SECRET_OPTION.sub(rf"\g<1>{HIDDEN}", after)


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
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0
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
    if "://" in text:
        text = redact_url(text)
    if not text.isprintable():
        text = repr(text)
    return f"{text[:57]}..." if len(text) > 60 else text
