"""The code blocks of the documents, and what the documents say about running them.

A comment before a block, which readers do not see, says what is special about it:

    <!-- test: given db, app -->        names that the block uses and the page does not define (`GIVEN` in the tests)
    <!-- test: file app.py -->          the block is a file, which later `python app.py` and pytest find
    <!-- test: patch app.py -->         a diff that is made in such a file
    <!-- test: said -->                 what was printed before, numbers aside
    <!-- test: raises PoolTimeout -->   the block ends with that error
    <!-- test: not run: the reason -->  the block is only compiled; every one of them is listed in the tests
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)(?P<rest>[^\n]*)$")
_MARK = re.compile(r"^ *<!-- test: (?P<what>.*?) -->$")
_KINDS = re.compile(r"(?P<kind>given|file|patch|said|raises|not run)(?P<rest>:? .*)?", re.DOTALL)


class DocumentError(AssertionError):
    """A document says something about a block that nobody understands."""


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: `line` is where its code begins, counted from 1."""

    page: str
    line: int
    language: str
    code: str
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Every document whose code is run, by its path in the repository."""
    found = [ROOT / "README.md", ROOT / "packages/steadypool/README.md", *(ROOT / "docs").rglob("*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def blocks_of(page: str) -> Iterator[Block]:
    """The blocks of a page in the order of reading."""
    lines = (ROOT / page).read_text().splitlines()
    marks: dict[str, str] = {}
    number = 0
    while number < len(lines):
        line = lines[number]
        if mark := _MARK.match(line):
            kind, said = _understood(mark["what"], f"{page}:{number + 1}")
            marks[kind] = said
        elif fence := _FENCE.match(line):
            end = number + 1
            while lines[end] != f"{fence['indent']}```":
                end += 1
            code = [text.removeprefix(fence["indent"]) for text in lines[number + 1 : end]]
            yield Block(page, number + 2, fence["language"], "\n".join(code) + "\n", marks)
            marks, number = {}, end
        elif line.strip() and marks:
            raise DocumentError(f"{page}:{number + 1}: a mark for a block, and no block")
        number += 1


def _understood(what: str, where: str) -> tuple[str, str]:
    match = _KINDS.fullmatch(what)
    if match is None:
        raise DocumentError(f"{where}: not understood: {what}")
    return match["kind"], (match["rest"] or "").removeprefix(":").strip()
