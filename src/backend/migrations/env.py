"""Alembic's entry: runs on the connection that `upgrade` made and locked; `alembic` alone is not supported."""

from __future__ import annotations

from alembic import context

from backend.models import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata)
# No begin_transaction() that commits: the transaction, and with it the lock, belongs to the caller.
context.run_migrations()
