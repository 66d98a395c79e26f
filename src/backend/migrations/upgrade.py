"""Run the migrations, over a plain synchronous connection of its own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.pq import Conninfo
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from backend.migrations import HEAD, LOCK_KEY, LOCK_TIMEOUT
from steadypool import DatabaseSettings
from steadypool.connect.dsn import parse_url


class MigrationError(RuntimeError):
    """The database could not be brought up to date."""


def upgrade(settings: DatabaseSettings) -> bool:
    """Bring the database to `HEAD`; says whether there was anything to do.

    Of several processes that start at once one migrates and the others wait for it: the lock belongs to the
    transaction of the migration itself, so it holds behind a transaction pooler and ends with a crash.

    Args:
        settings: where the database is; a direct address is preferred to that of a pooler.

    Raises:
        MigrationError: another process has held the lock too long, or the database is newer than this program.
        psycopg.Error: the database cannot be reached, or refuses; from SQLAlchemy as sqlalchemy.exc.DBAPIError.
    """
    arguments = _libpq_arguments(settings)
    # Most starts end here, so they pay for nothing more than one connection.
    with psycopg.connect(**arguments) as connection:
        if _revision(connection) == HEAD:
            return False
    engine = sa.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(**arguments), poolclass=NullPool
    )
    return _upgrade_locked(engine)


def _libpq_arguments(settings: DatabaseSettings) -> dict[str, Any]:
    """How libpq connects to the same database, whichever driver the service itself uses."""
    target = parse_url(settings.require_direct_url())
    known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    arguments: dict[str, Any] = {name: value for name, value in target.options.items() if name in known}
    if "ssl" in target.options:  # asyncpg's word for it
        arguments.setdefault("sslmode", target.options["ssl"])
    if target.hosts:
        arguments["host"] = ",".join(host.name for host in target.hosts)
        arguments["port"] = ",".join(str(host.port) for host in target.hosts)
    if target.password is not None:
        arguments["password"] = target.password.get_secret_value()
    arguments |= {"user": target.user, "dbname": target.database}
    arguments["connect_timeout"] = max(2, math.ceil(settings.connection_timeout))  # libpq's own least is 2
    return arguments


def _revision(connection: psycopg.Connection[Any]) -> str | None:
    """The revision that the database is at, or None before the first migration."""
    if connection.execute("SELECT to_regclass('alembic_version')").fetchone() == (None,):
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else row[0]


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
        except OperationalError as error:
            raise MigrationError(
                f"another process has been migrating this database for {LOCK_TIMEOUT:g} s; "
                "see pg_stat_activity for it, or try again"
            ) from error
        driver_connection = connection.connection.driver_connection
        assert isinstance(driver_connection, psycopg.Connection)
        before = _revision(driver_connection)
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
