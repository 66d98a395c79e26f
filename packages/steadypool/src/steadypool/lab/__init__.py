"""The fault lab: a real Postgres on the desk, and a network in between that can be made to fail."""

from steadypool.lab.errors import LabError
from steadypool.lab.postgres import EmbeddedPostgres
from steadypool.lab.proxy import FaultProxy, Mode
from steadypool.lab.server import PostgresServer

__all__ = ["EmbeddedPostgres", "FaultProxy", "LabError", "Mode", "PostgresServer"]
