"""What `steadypool why` knows: a page for each symptom, and how a message finds its page.

The pages are the markdown files beside this module. They begin with their title, the names that they answer (classes
of `errors`, SQLSTATEs of `sqlstate`, events) and phrases that logs contain. The documentation's runbooks are made
from them.
"""

from __future__ import annotations

import difflib
import functools
import re
from dataclasses import dataclass
from importlib import resources

from steadypool import _sqlstate, errors, events

_HINT = re.compile(r"\[steadypool why (\w+)\]")
"""Where the message knows better than its class, as in a connect that failed because of the password, it decides."""
_FRONT = re.compile(r"---\n(.*?)\n---\n(.*)", re.DOTALL)
_CLASS, _CODE = 4, 16
"""What a class and a SQLSTATE in a message count for; a phrase counts for its words."""


@dataclass(frozen=True, slots=True)
class Topic:
    """One page. `answers` are names, `says` are phrases of messages; `body` is markdown without the title."""

    key: str
    title: str
    answers: tuple[str, ...]
    says: tuple[str, ...]
    body: str

    def section(self, name: str) -> str:
        """The text under one of its headings: Meaning, Diagnosis or Remedies."""
        found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", self.body, re.DOTALL | re.MULTILINE)
        return found[1].strip() if found else ""

    @property
    def remedies(self) -> list[str]:
        """The numbered steps, in the order in which they should be tried."""
        steps = re.split(r"^\d+\. ", self.section("Remedies"), flags=re.MULTILINE)[1:]
        return [" ".join(step.split()) for step in steps]

    def score(self, text: str) -> int:
        """How well it fits a message."""
        named = (name for name in self.answers if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text))
        return sum(_CODE if name[0].isdigit() else _CLASS for name in named) + sum(
            len(phrase.split()) for phrase in self.says if _pattern(phrase).search(text)
        )


@functools.cache
def _pattern(phrase: str) -> re.Pattern[str]:
    """Its words in their order, with a name or a number between them at most."""
    words = r"\W.{0,60}?".join(re.escape(word) for word in phrase.split())
    return re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE | re.DOTALL)


@functools.cache
def topics() -> tuple[Topic, ...]:
    """All pages, by key.

    Example:
        >>> [topic.title for topic in topics() if "57014" in topic.answers]
        ['A statement ran longer than it may']
    """
    folder = resources.files(__package__ or __name__).joinpath("pages")
    files = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".md")), key=lambda file: file.name
    )
    return tuple(_parsed(file.name.removesuffix(".md"), file.read_text(encoding="utf-8")) for file in files)


def _parsed(key: str, text: str) -> Topic:
    match = _FRONT.fullmatch(text)
    if match is None:
        raise ValueError(f"the page {key} has no front matter")
    front = dict(line.split(": ", 1) for line in match[1].splitlines())
    says = tuple(phrase.strip() for phrase in front["says"].split(" | "))
    return Topic(key, front["title"], tuple(front["answers"].split()), says, match[2].strip())


@dataclass(frozen=True, slots=True)
class Found:
    """What was asked for: the name it was recognised by, if any, its page, and other pages that may fit."""

    topic: Topic
    name: str | None = None
    also: tuple[Topic, ...] = ()


def find(asked: str) -> Found | None:
    """The page for a name, a SQLSTATE, a page's own key, or a message out of a log.

    Example:
        >>> found = find("QueuePool limit of size 10 overflow 5 reached")
        >>> found.topic.key
        'exhaustion'
    """
    hint, text = _HINT.search(asked), told(_HINT.sub("", asked))
    word = text.strip().rpartition(".")[2]  # a class may come with its module
    for topic in topics():
        for name in (topic.key, *topic.answers):
            if word.casefold() == name.casefold():
                return Found(topic, name)
    ranked = sorted(topics(), key=lambda topic: -topic.score(text))
    fitting = [topic for topic in ranked if topic.score(text)]
    if fitting:
        first = fitting[0]
        name = next((name for name in first.answers if re.search(rf"\b{name}\b", asked)), None)
        return Found(first, name, tuple(fitting[1:3]))
    if hint is not None:
        return find(hint[1])
    if _is_code(word):
        return None  # a code that looks like another means something else
    near = similar(word)
    return find(near[0]) if near else None


_FRAMES = re.compile(
    r"^(?:[ \t]+.*|Traceback .*|The above exception .*|During handling .*)$\n?", re.MULTILINE
)
_SQL = re.compile(
    r"\[(?:SQL|parameters): (?:[^\]]|\](?![ \t]*$))*+(?:\]|\Z)|\(Background on this error at: [^)]*+(?:\)|\Z)",
    re.MULTILINE,
)


def told(text: str) -> str:
    """What a message says, without what surrounds it: the frames of a traceback, the SQL that SQLAlchemy quotes.

    Example:
        >>> told("Traceback (most recent call last):\\n  File 'listen.py', line 1\\nValueError: no")
        'ValueError: no'
    """
    return _SQL.sub("", _FRAMES.sub("", text) if "Traceback (most recent" in text else text).strip()


def _is_code(word: str) -> bool:
    return re.fullmatch(r"[0-9A-Z]{5}", word) is not None and any(letter.isdigit() for letter in word)


def similar(word: str) -> list[str]:
    """Known names that are written like this one, the most similar first."""
    known = {name.casefold(): name for topic in topics() for name in (topic.key, *topic.answers)}
    return [known[near] for near in difflib.get_close_matches(word.casefold(), known, n=3, cutoff=0.75)]


def about(name: str | None) -> str:
    """One sentence about a name: what the error or event is, or what becomes of a connection after a SQLSTATE."""
    if name is None:
        return ""
    for module in (errors, events):
        kind = getattr(module, name, None)
        if isinstance(kind, type):
            return " ".join((kind.__doc__ or "").split("\n\n")[0].split())
    return code_meaning(name)


def code_meaning(code: str) -> str:
    """What the table of `sqlstate` says of a code; nothing where it is not in it.

    Example:
        >>> code_meaning("57014")
        'query_canceled: keep; the statement failed, not the connection'
    """
    for line in (_sqlstate.__doc__ or "").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        found = re.search(rf"\b{re.escape(code)}\b(?: ([a-z_]+\b))?", cells[0])
        if len(cells) == 3 and found:
            return f"{found[1] + ': ' if found[1] else ''}{cells[1]}; {cells[2]}"
    return ""
