"""What commands write: results to stdout, for people or as JSON; everything else to stderr.

Colours, boxes and moving progress are for terminals only; in a pipe there is plain text.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.markdown import Markdown
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from steadypool._printable import printable

_WIDTH_IN_A_PIPE = 400


def plain(text: str) -> str:
    """Text for a person, escaped for rich's markup and for the terminal: it may come from servers, files, clients."""
    return escape(printable(text, keep="\n"))


def _json(value: object, indent: int | None = None) -> str:
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    if all(line.isprintable() for line in text.split("\n")):
        return text
    return json.dumps(value, indent=indent, default=str)  # escapes all that is not ASCII, by JSON's rules


class Output:
    """Where a command writes to.

    Args:
        as_json: whether the result is JSON.

    Example:
        >>> Output(as_json=True).result({"served": 200})
        {
          "served": 200
        }
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        # A pipe has no width, and rich would take 80 columns and break words.
        self._out = Console(width=None if sys.stdout.isatty() else _WIDTH_IN_A_PIPE, highlight=False)
        self._err = Console(stderr=True, highlight=False)

    def say(self, message: str) -> None:
        """Tell a person what is going on."""
        self._err.print(plain(message), soft_wrap=True)

    def fail(self, message: str) -> None:
        """Tell a person what went wrong."""
        self._err.print(f"[red]error:[/red] {plain(message)}", soft_wrap=True)

    def show(self, what: RenderableType) -> None:
        """Part of the result for people; nothing when it is JSON. In a pipe a table is columns and no lines."""
        if self.as_json:
            return
        if self._out.is_terminal or not isinstance(what, Table):
            self._out.print(what)
            return
        what.box, what.show_lines, what.pad_edge, what.title_justify = None, False, False, "left"
        with self._out.capture() as drawn:
            self._out.print(what)
        for line in drawn.get().splitlines():
            self._out.print(line.rstrip(), markup=False, soft_wrap=True)

    def text(self, markup: str) -> None:
        """A line of the result for people, in rich's markup; nothing when it is JSON."""
        if not self.as_json:
            self._out.print(markup, soft_wrap=True)

    def document(self, markdown: str) -> None:
        """A text for people: laid out on a terminal, as it is in a pipe; nothing when the result is JSON."""
        if not self.as_json:
            text = printable(markdown, keep="\n")
            self._out.print(Markdown(text) if self._out.is_terminal else escape(text), soft_wrap=True)

    def result(self, value: Any) -> None:
        """The result as JSON; nothing when it is for people."""
        if self.as_json:
            print(_json(value, indent=2), flush=True)

    def line(self, value: dict[str, Any], text: str) -> None:
        """One event of many: a line of JSON, or of text."""
        if self.as_json:
            print(_json(value), flush=True)
        else:
            self._out.print(plain(text), soft_wrap=True)

    @contextmanager
    def progress(self, total: int, doing: str) -> Generator[Step]:
        """Progress of so many steps: a moving bar on a terminal, else a line for each step."""
        if not self._err.is_terminal:
            yield Step(self)
            return
        columns = (SpinnerColumn(), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
        description = TextColumn("{task.description}")
        with Progress(*columns, description, console=self._err, transient=True) as bar:
            yield Step(self, bar, bar.add_task(plain(doing), total=total))

    @contextmanager
    def quiet_progress(self, total: int, doing: str) -> Generator[Step]:
        """Like `progress` on a terminal; nothing elsewhere, for what is over before anybody reads it."""
        if self._err.is_terminal:
            with self.progress(total, doing) as step:
                yield step
        else:
            yield Step(self, silent=True)


class Step:
    """Tells how far a command is: on the moving bar if there is one, else by lines."""

    def __init__(
        self,
        output: Output,
        bar: Progress | None = None,
        task: TaskID | None = None,
        *,
        silent: bool = False,
    ) -> None:
        self._silent = silent
        self._output = output
        self._bar = bar
        self._task = task

    def doing(self, text: str) -> None:
        """What is done now."""
        self._tell(text, 0)

    def done(self, text: str) -> None:
        """One step is over, and what came out."""
        self._tell(text, 1)

    def _tell(self, text: str, steps: int) -> None:
        if self._silent:
            return
        if self._bar is None or self._task is None:
            self._output.say(text)
        else:
            self._bar.update(self._task, advance=steps, description=plain(text))
