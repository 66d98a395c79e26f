"""The relay as a process of its own: a distance between a contestant and the server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Self

from sqlalchemy import make_url

BENCH = Path(__file__).parent.parent


class Relay:
    """The relay's process.

    Args:
        url: the server that it stands before.
        delay: seconds that each piece takes, one way.
    """

    def __init__(self, url: str, delay: float) -> None:
        server = make_url(url)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "speed.relay", str(server.host), str(server.port), str(delay)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=BENCH,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._ask, self._answers = self._process.stdin, self._process.stdout
        self.url = server.set(port=int(self._answers.readline())).render_as_string(hide_password=False)

    def counts(self) -> dict[str, int]:
        self._ask.write(b"\n")
        self._ask.flush()
        return json.loads(self._answers.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ask.close()
        self._process.wait(timeout=5)
        self._answers.close()
