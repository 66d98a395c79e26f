"""`Database`: sessions, connections, multiplexed statements, notifications and what is known of them, in one object."""

from steadypool.database.database import Database, DatabaseStats

__all__ = ["Database", "DatabaseStats"]
