"""libpq itself, for the few functions that psycopg does not pass on."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

from psycopg import pq

from steadypool.errors import ConfigurationError

OLDEST = 170000
"""The libpq that has chunks of rows, cancelling over TLS, and a Sync that is not sent at once."""


def check_libpq() -> None:
    """Refuse a libpq that has not what a pipelined connection needs.

    Raises:
        ConfigurationError: it is older than 17; says what to install.
    """
    found = pq.version()
    if found < OLDEST:
        raise ConfigurationError(
            f"libpq {found // 10000}.{found % 10000} is installed, postgresql+steadypool:// needs 17 or newer: "
            "pip install 'psycopg[binary]>=3.3', or upgrade libpq"
        )


@functools.cache
def libpq_function(name: str, result: Any, *arguments: Any) -> Any:
    """A function of the very libpq that psycopg has loaded, or None where it cannot be found.

    It is called with the interpreter's lock held: for what returns at once.

    Args:
        name: as in libpq's documentation.
        result: the C type of what it returns.
        *arguments: the C types of what it takes.

    Example:
        >>> version = libpq_function("PQlibVersion", ctypes.c_int)
        >>> version() == pq.version()
        True
    """
    for path in _candidates():
        try:
            # RTLD_NOLOAD: a second libpq, however similar, must not touch the first one's connections
            library = ctypes.PyDLL(path, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
            function = getattr(library, name)
        except (OSError, AttributeError):
            continue
        function.argtypes, function.restype = list(arguments), result
        return function
    return None


def _candidates() -> list[str]:
    if pq.__impl__ == "binary":
        import psycopg_binary

        package = Path(psycopg_binary.__file__).parent
        folders = (package.parent / "psycopg_binary.libs", package / ".dylibs")
        return [str(path) for folder in folders for path in sorted(folder.glob("libpq*"))]
    from psycopg.pq.misc import find_libpq_full_path

    found = find_libpq_full_path()
    return [] if found is None else [found]
