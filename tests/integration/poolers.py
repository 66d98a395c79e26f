"""PgBouncer before a test's database."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import pytest

UNPRIVILEGED = "nobody"
"""PgBouncer refuses to run as root, so root runs it under an account without rights."""


class pgbouncer:
    """PgBouncer before the server of a URL; entering gives the URL through it.

    Args:
        url: of the database.
        mode: `transaction` or `session`.
        port: where it listens; any free one by default.
        size: its connections to the server.
        ignored: start-up parameters that it swallows instead of refusing them.
        more: further lines of its configuration.
        checked: it asks for the password of the URL's user, and lets its console be seen by whom `more` names;
            otherwise it lets anybody in, into its console too.
    """

    def __init__(
        self,
        url: str,
        mode: str,
        port: int | None = None,
        *,
        size: int = 10,
        ignored: str = "",
        more: str = "",
        checked: bool = False,
    ) -> None:
        lines = (
            f"pool_mode = {mode}\ndefault_pool_size = {size}\nignore_startup_parameters = {ignored}\n{more}\n"
        )
        self._running = _running(url, lines, port, checked=checked)

    def __enter__(self) -> str:
        return self._running.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.__exit__(kind, error, trace)

    async def __aenter__(self) -> str:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


@contextlib.contextmanager
def _running(url: str, lines: str, port: int | None, *, checked: bool) -> Iterator[str]:
    binary = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if binary is None:
        pytest.fail(
            "these tests need PgBouncer, which is not installed: apt-get install --no-install-recommends pgbouncer "
            "(the service need not run; `make test` does it through scripts/system-packages.sh)"
        )
    if port is None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
    parts = urlsplit(url)
    with tempfile.TemporaryDirectory(prefix="steadypool-pgbouncer-") as folder:
        file, users = Path(folder) / "pgbouncer.ini", Path(folder) / "users.txt"
        users.write_text(f'"{parts.username}" "{parts.password}"\n')
        log_in = f"auth_type = scram-sha-256\nauth_file = {users}" if checked else "auth_type = any"
        file.write_text(
            "[databases]\n"
            f"* = host={parts.hostname} port={parts.port} user={parts.username} password={parts.password}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n{log_in}\n{lines}"
        )
        file.chmod(0o600)
        users.chmod(0o600)
        account: dict[str, Any] = {}
        if os.getuid() == 0:
            shutil.chown(folder, UNPRIVILEGED)
            shutil.chown(file, UNPRIVILEGED)
            shutil.chown(users, UNPRIVILEGED)
            account = {"user": UNPRIVILEGED, "extra_groups": []}
        process = subprocess.Popen([binary, "-q", file], stderr=subprocess.DEVNULL, **account)
        try:
            end = time.monotonic() + 10
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                assert process.poll() is None, "PgBouncer does not start"
                assert time.monotonic() < end, "PgBouncer does not answer"
                time.sleep(0.02)
            password = f":{parts.password}" if checked else ""
            yield f"postgresql://{parts.username}{password}@127.0.0.1:{port}{parts.path}"
        finally:
            process.kill()
            process.wait()
