"""Run the migrations, over a plain synchronous connection of its own."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.pool import NullPool

from backend.migrations import HEAD, LOCK_KEY, LOCK_TIMEOUT


class MigrationError(RuntimeError):
    """The database could not be brought up to date."""


def upgrade(url: URL, *, connect_timeout: float = 10.0) -> bool:
    """Bring the database to `HEAD`; says whether there was anything to do.

    Of several processes that start at once one migrates and the others wait for it: the lock belongs to the
    transaction of the migration itself, so it holds behind a transaction pooler and ends with a crash.

    Args:
        url: the database, for the driver psycopg.
        connect_timeout: seconds for opening the connection.

    Raises:
        MigrationError: another process has held the lock too long, or the database is newer than this program.
        sqlalchemy.exc.OperationalError: the database cannot be reached.
    """
    engine = sa.create_engine(
        url,
        poolclass=NullPool,
        connect_args={"connect_timeout": max(2, round(connect_timeout))},
    )
    with engine.connect() as connection:
        if current_revision(connection) == HEAD:
            return False
    return _upgrade_locked(engine)


def current_revision(connection: Connection) -> str | None:
    """The revision that the database is at, or None before the first migration."""
    if connection.scalar(sa.text("SELECT to_regclass('alembic_version')")) is None:
        return None
    revision: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return revision


def _upgrade_locked(engine: Engine) -> bool:
    # Alembic takes a third of a second to import, and most starts have nothing to migrate.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    with engine.begin() as connection:
        connection.execute(
            sa.text("SELECT set_config('lock_timeout', :limit, true)"), {"limit": f"{LOCK_TIMEOUT:g}s"}
        )
        try:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
        except sa.exc.OperationalError as error:
            raise MigrationError(
                f"another process has been migrating this database for {LOCK_TIMEOUT:g} s; "
                "see pg_stat_activity for it, or try again"
            ) from error
        before = current_revision(connection)
        if before == HEAD:  # the process that held the lock has done it
            return False
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise MigrationError(
                f"the database is at revision {before}, which this version of plyr ({HEAD}) does not know; "
                "it was probably made by a newer one: update plyr"
            ) from error
        return True
