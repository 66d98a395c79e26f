"""A streaming standby of a server of the lab, and its promotion: what a failover looks like from a client."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from steadypool_lab.postgres.cluster import SUPERUSER, Cluster, clean_environment
from steadypool_lab.postgres.embedded import EmbeddedPostgres, to_the_end
from steadypool_lab.postgres.server import PostgresServer

PROMOTE_SECONDS = 60


class _Copy(Cluster):
    """The data directory of a standby: not made, but copied from the primary, which has to run meanwhile."""

    def __init__(self, home: Path, primary: PostgresServer) -> None:
        super().__init__(home)
        self._primary = primary

    def initialise(self, *, control: int, durable: bool) -> None:
        """Copy the primary. Its users come along, and so does its password.

        Raises:
            LabError: it did not work, and why.
        """
        self._write("password", urlsplit(self._primary.url).password or "", 0o600)
        super().initialise(control=control, durable=durable)

    def _recipe(self, half: Path, durable: bool) -> tuple[list[str], dict[str, str]]:
        primary = urlsplit(self._primary.url)
        command = [
            str(self.binaries.program("pg_basebackup")),
            f"--pgdata={half / 'data'}",
            f"--host={primary.hostname}",
            f"--port={primary.port}",
            f"--username={SUPERUSER}",
            "--no-password",
            "--checkpoint=fast",
            "--wal-method=stream",
            "--write-recovery-conf",  # standby.signal, and where to stream from
            *([] if durable else ["--no-sync"]),
        ]
        return command, {**clean_environment(), "PGPASSWORD": self.password}


class _StandbyServer(PostgresServer):
    def __init__(self, primary: PostgresServer, settings: Mapping[str, str] | None) -> None:
        home = Path(tempfile.gettempdir()) / f"steadypool-{secrets.token_hex(8)}"
        super().__init__(home, settings=settings, temporary=True)
        self._cluster = _Copy(home, primary)

    def promote(self) -> None:
        """Make it a primary, and wait until it is one."""
        self._psql(f"SELECT pg_promote(true, {PROMOTE_SECONDS})")


class StandbyPostgres(EmbeddedPostgres):
    """A hot standby that streams from `primary`: it takes reads, refuses writes and LISTEN, and can be promoted.

    It is copied from its primary at the first start, has the same users, databases and password, and is gone
    afterwards. The primary may end meanwhile; it is not followed to another one.

    Args:
        primary: a server that runs. `max_connections` of the standby may not be smaller than its.
        settings: settings of postgresql.conf that win over the lab's defaults.

    Raises:
        LabError: from every method; the message says what happened.

    Example:
        async with EmbeddedPostgres.temporary() as primary, StandbyPostgres(primary) as standby:
            await primary.stop("immediate")
            await standby.promote()
    """

    blocking: _StandbyServer

    def __init__(self, primary: EmbeddedPostgres, *, settings: Mapping[str, str] | None = None) -> None:
        self.blocking = _StandbyServer(primary.blocking, settings)

    async def promote(self) -> None:
        """Make it a primary; returns when it takes writes.

        Raises:
            LabError: it is none to promote, or not running.
        """
        await to_the_end(self.blocking.promote)
