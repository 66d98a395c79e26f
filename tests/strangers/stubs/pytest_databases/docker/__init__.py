"""One module for each database; only Postgres' has something in it."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Service:
    """Where a database is."""

    host: str = os.environ["PGHOST"]
    port: int = int(os.environ["PGPORT"])
    user: str = os.environ["PGUSER"]
    password: str = os.environ["PGPASSWORD"]
    database: str = os.environ["PGDATABASE"]
