"""Three outages of plyr.fm, played again: a real server, real connections, requests as they came.

| module | what it knows |
| --- | --- |
| `incidents` | what happened when, and how each way of using Postgres was configured |
| `theatre` | time that runs faster, the requests, the notes of what happens |
| `notifier` | the queue's own connection for NOTIFY, as it was and as it was documented |
| `run` | every incident in every way; what came out |
| `report` | the HTML page |
"""

from steadypool_lab.replays.incidents import INCIDENTS, WAYS, Incident
from steadypool_lab.replays.report import write_report
from steadypool_lab.replays.run import Replay, contestants, run_replays

__all__ = ["INCIDENTS", "WAYS", "Incident", "Replay", "contestants", "run_replays", "write_report"]
