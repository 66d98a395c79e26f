"""The fault matrix: every peer through every fault, measured on this machine.

| module | what it knows |
| --- | --- |
| `stage` | the server, the network before it, the database that sleeps; one set for all rows |
| `scenarios` | what happens in each row |
| `elsewhere` | what happens where a pool is let go of from another event loop, thread or process |
| `rows` | the rows: what is promised, and how it is judged |
| `run` | every peer through every row; the raw figures |
| `picture` | the figures as a picture |
"""

from steadypool_lab.matrix.rows import SCENARIOS, Scenario
from steadypool_lab.matrix.run import Cell, Matrix, run_matrix

__all__ = ["SCENARIOS", "Cell", "Matrix", "Scenario", "run_matrix"]
