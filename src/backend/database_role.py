"""The role that the service has in the embedded Postgres: it owns its database, and is no superuser.

A superuser may run programs and read files of the server's account; the service needs neither.
"""

from __future__ import annotations

import hashlib
import hmac

import psycopg
from psycopg import Connection, sql

from backend.start_error import StartError, one_line
from steadypool.connect.dsn import parse_url

ROLE = "plyr"
LOCK_KEY = 0x726F6C65
"""Any number that nothing else locks; of several starts at once one does the work."""
LOCK_TIMEOUT = "10s"

_FOREIGN = """
    SELECT c.oid::regclass::text FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
      AND c.relowner <> %s::regrole
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                      AND d.deptype IN ('a', 'i', 'e'))
"""
"""Tables and views of another owner. Sequences of columns follow their tables."""


def ensure_role(superuser_url: str) -> str:
    """Make the role if it is not there, give it the database and what an earlier version has created in it.

    Args:
        superuser_url: of the embedded Postgres.

    Returns:
        The same URL for the role. Its password follows from the superuser's, so all processes on one server agree.

    Raises:
        StartError: the server refused; says why.
    """
    target = parse_url(superuser_url)
    if target.password is None or target.database is None:
        raise StartError("the embedded Postgres has no password or no database")
    password = hmac.new(
        target.password.get_secret_value().encode(), ROLE.encode(), hashlib.sha256
    ).hexdigest()
    try:
        with psycopg.connect(superuser_url) as connection:
            _ensure(connection, target.database, password)
    except psycopg.Error as error:
        raise StartError(
            f"the role {ROLE!r} cannot be made in the embedded Postgres: {one_line(error)}"
        ) from error
    return f"postgresql://{ROLE}:{password}@{target.where}/{target.database}"


def _ensure(connection: Connection, database: str, password: str) -> None:
    connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK_KEY])
    known = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [ROLE]).fetchone()
    role = sql.Identifier(ROLE)
    connection.execute(
        sql.SQL(
            "{} ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD {}"
        ).format(sql.SQL("CREATE" if known is None else "ALTER"), role, sql.Literal(password))
    )
    connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(sql.Identifier(database), role))
    for (table,) in connection.execute(_FOREIGN, [ROLE]).fetchall():
        connection.execute(sql.SQL("ALTER TABLE {} OWNER TO {}").format(sql.SQL(table), role))
