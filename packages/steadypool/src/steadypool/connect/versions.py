"""The versions of the drivers, looked at when an engine is made.

An extra (`steadypool[asyncpg]`) asks for them, but a driver that was installed by itself, or by another lock file,
may be older. Older ones fail later and in ways that say nothing about their age: asyncpg 0.31 loses a place of the
pool at each connection that the server ends.
"""

from __future__ import annotations

import re
from importlib import import_module

from steadypool.errors import ConfigurationError

OLDEST = {"asyncpg": (0, 32), "psycopg": (3, 3), "sqlalchemy": (2, 0, 40)}
_INSTALL = {"psycopg": "psycopg[binary]"}


def check_versions(*libraries: str) -> None:
    """Refuse a library that is too old.

    Args:
        *libraries: names of modules that are installed.

    Raises:
        ConfigurationError: one is too old; says what to install.
        ModuleNotFoundError: one is not installed.
    """
    for library in libraries:
        oldest, found = OLDEST[library], str(getattr(import_module(library), "__version__", ""))
        numbers = tuple(map(int, re.findall(r"\d+", found)[: len(oldest)]))
        if numbers and numbers < oldest:
            wanted = ".".join(map(str, oldest))
            raise ConfigurationError(
                f"{library} {found} is installed, steadypool needs {wanted} or newer: "
                f"pip install '{_INSTALL.get(library, library)}>={wanted}'"
            )
