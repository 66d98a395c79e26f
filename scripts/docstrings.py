"""What mkdocstrings does not know of this library's docstrings: their `Example:` is code, a doctest or plain."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^Example:\n(?P<code>(?:(?: +.*)?\n?)+)", re.MULTILINE)


class Examples(griffe.Extension):
    """Loaded by name in zensical.toml."""

    def on_object(self, *, obj: griffe.Object, **_others: Any) -> None:
        """Each module, class, function and attribute, when it has been read."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(_as_code, obj.docstring.value)


def _as_code(match: re.Match[str]) -> str:
    code = match["code"]
    if ">>>" in code:
        return f"Examples:\n{code}"
    return f"```python\n{textwrap.dedent(code).strip()}\n```\n\n"
