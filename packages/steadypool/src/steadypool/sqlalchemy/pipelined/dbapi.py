"""What SQLAlchemy takes for the driver's module: psycopg's names, and a `connect` that makes our connections."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
from sqlalchemy.util import await_only

from steadypool.errors import ConfigurationError
from steadypool.pipeline import PipelinedConnection
from steadypool.sqlalchemy.pipelined.connection import Connection
from steadypool.sqlalchemy.pipelined.context import AdapterContext


class SteadypoolDBAPI:
    """A module of PEP 249, as an object. The exceptions are psycopg's own."""

    paramstyle = "numeric_dollar"

    def __init__(self) -> None:
        for name, value in vars(psycopg).items():
            if name not in ("connect", "paramstyle"):
                setattr(self, name, value)
        self.psycopg = psycopg
        self.driver = psycopg
        self.dbapi_module = None
        self.exceptions_module = psycopg

    def connect(
        self,
        *args: Any,
        async_creator_fn: Callable[..., Awaitable[Any]] | None = None,
        surroundings: AdapterContext | None = None,
        **arguments: Any,
    ) -> Connection:
        """Open a connection; `async_creator_fn` gives the pipelined connection to be adapted.

        Without it the arguments are for psycopg, as a handler of `do_connect` has them that connects itself.
        """
        opened = await_only((async_creator_fn or _open)(*args, **arguments))
        if not isinstance(opened, PipelinedConnection):
            raise ConfigurationError(
                f"async_creator gave a {type(opened).__name__}; postgresql+steadypool:// needs a "
                "steadypool.pipeline.PipelinedConnection"
            )
        return Connection(self, opened, surroundings or AdapterContext())


async def _open(*args: Any, **arguments: Any) -> PipelinedConnection:
    arguments["autocommit"] = True  # transactions are the adapted connection's to begin
    return PipelinedConnection(await psycopg.AsyncConnection.connect(*args, **arguments))
