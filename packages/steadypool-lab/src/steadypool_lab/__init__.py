"""The fault lab: a real Postgres on the desk, and a network in between that can be made to fail."""

from steadypool_lab.errors import LabError
from steadypool_lab.network.link import Direction
from steadypool_lab.network.proxy import FaultProxy, Mode
from steadypool_lab.network.relay import TlsFront
from steadypool_lab.network.stalling_pooler import StallingPooler
from steadypool_lab.postgres.certificate import Certificate, self_signed
from steadypool_lab.postgres.embedded import EmbeddedPostgres
from steadypool_lab.postgres.server import PostgresServer
from steadypool_lab.standby import StandbyPostgres
from steadypool_lab.suspending import Suspend, SuspendingPostgres, WakeMode

__all__ = [
    "Certificate",
    "Direction",
    "EmbeddedPostgres",
    "FaultProxy",
    "LabError",
    "Mode",
    "PostgresServer",
    "StallingPooler",
    "StandbyPostgres",
    "Suspend",
    "SuspendingPostgres",
    "TlsFront",
    "WakeMode",
    "self_signed",
]
