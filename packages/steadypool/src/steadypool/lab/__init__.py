"""The fault lab: a real Postgres on the desk, and a network in between that can be made to fail."""

from steadypool.lab.certificate import Certificate, self_signed
from steadypool.lab.direction import Direction
from steadypool.lab.errors import LabError
from steadypool.lab.pooler import WedgingPooler
from steadypool.lab.postgres import EmbeddedPostgres
from steadypool.lab.proxy import FaultProxy, Mode
from steadypool.lab.relay import TlsFront
from steadypool.lab.server import PostgresServer
from steadypool.lab.sleepy import SleepyPostgres, Suspend, WakeMode
from steadypool.lab.standby import StandbyPostgres

__all__ = [
    "Certificate",
    "Direction",
    "EmbeddedPostgres",
    "FaultProxy",
    "LabError",
    "Mode",
    "PostgresServer",
    "SleepyPostgres",
    "StandbyPostgres",
    "Suspend",
    "TlsFront",
    "WakeMode",
    "WedgingPooler",
    "self_signed",
]
