"""Bringing a database up to date, safely when several processes start at once."""

from __future__ import annotations

HEAD = "0001"
"""The newest revision. A test holds it to what Alembic finds, so that a start need not load Alembic to know."""

# Any number will do as long as nothing else in this database uses it: "plyr" in ASCII.
LOCK_KEY = 0x706C7972
LOCK_TIMEOUT = 60.0
"""Seconds to wait for another process that is migrating."""
