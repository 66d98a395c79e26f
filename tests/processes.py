"""Programs of this repository in processes of their own, as a person starts them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

START_SECONDS = 60.0


@dataclass
class Plyr:
    """A running service, the demo artist's token, and the file that it writes to."""

    url: str
    token: str = field(repr=False)
    output: Path
    pid: int

    @property
    def said(self) -> str:
        """Everything so far, its log included."""
        return self.output.read_text()


@contextmanager
def running_plyr(
    home: Path, name: str = "plyr", descriptors: int | None = None, **variables: str
) -> Generator[Plyr]:
    """`python -m backend` on a free port, with its data in `home`; ended with a signal, which must end it cleanly.

    `descriptors` is its limit of open files.

    Several with one `home` share it, as `make run` in several terminals.
    """
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("DATABASE_", "QUEUE_"))
    }
    environment |= {
        "PLYR_DATA_DIR": str(home / "data"),
        "STORAGE_AUDIO_DIR": str(home / "audio"),
        "HOST": "127.0.0.1",
        "PORT": "0",
        "PYTHONUNBUFFERED": "1",
        **variables,
    }
    output = home / f"{name}.out"
    command = [sys.executable, "-m", "backend"]
    if descriptors is not None:
        command = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *command]
    with output.open("wb") as file:
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=file, stderr=file)
    with process:
        try:
            url, token = _ready(process, output)
            yield Plyr(url, token, output, process.pid)
        finally:
            process.terminate()
    assert process.returncode == 0, output.read_text()


def _ready(process: subprocess.Popen[bytes], output: Path) -> tuple[str, str]:
    end = time.monotonic() + START_SECONDS
    while "Ctrl-C" not in (said := output.read_text()):
        assert process.poll() is None, said
        assert time.monotonic() < end, said
        time.sleep(0.02)
    url, token = re.search(r"plays at (http\S+)/", said), re.search(r"^PLYR_TOKEN=(\S+)", said, re.M)
    assert url is not None, said
    assert token is not None, said
    return url[1], token[1]


class Network:
    """`steadypool lab proxy` before a server."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.port = int(re.search(r"127\.0\.0\.1:(\d+) leads to", self._answer())[1])  # type: ignore[index]

    def do(self, command: str) -> None:
        """One of its commands: silent, drop, pass, …; returns when it is done."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextmanager
def network(port: int) -> Generator[Network]:
    """A network that can fail before what listens on this port; ends with the block."""
    command = [sys.executable, "-m", "steadypool.cli", "lab", "proxy", f"127.0.0.1:{port}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) as process:
        try:
            yield Network(process)
        finally:
            process.terminate()
