"""What the pool did: a bounded memory of it, and the document that this becomes.

`recording` defines the document and the file, `recorder` fills the memory from events and from a look at the pool
once a second. Memory is bounded by time and number: an hour of seconds, a day of minutes, so many entries of each list.
"""

from __future__ import annotations

from steadypool.monitor.diagnosis import Verdict, verdict
from steadypool.monitor.recorder import Recorder
from steadypool.monitor.recording import Arrival, Note, RecordedSecond, Recording
from steadypool.monitor.view import PoolView, WorkloadInfo

__all__ = [
    "Arrival",
    "Note",
    "PoolView",
    "RecordedSecond",
    "Recorder",
    "Recording",
    "Verdict",
    "WorkloadInfo",
    "verdict",
]
