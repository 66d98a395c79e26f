"""What the pool did: a bounded memory of it, and the document that this becomes.

`recording` defines the document and the file, `recorder` fills the memory from events and from a look at the pool
once a second. Memory is bounded by time and number: an hour of seconds, a day of minutes, so many entries of each list.
"""

from __future__ import annotations

from steadypool.telemetry.recorder.recorder import Recorder
from steadypool.telemetry.recorder.recording import Arrival, Note, Recording, Row
from steadypool.telemetry.recorder.verdict import Verdict, verdict
from steadypool.telemetry.recorder.view import View, WorkloadFacts

__all__ = ["Arrival", "Note", "Recorder", "Recording", "Row", "Verdict", "View", "WorkloadFacts", "verdict"]
