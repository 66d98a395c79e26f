"""`steadypool lab`: a Postgres on the desk, a network that fails, outages replayed, and the fault matrix."""

from __future__ import annotations

from cyclopts import App

from steadypool_lab.cli.matrix import matrix
from steadypool_lab.cli.proxy import proxy
from steadypool_lab.cli.replay import replay
from steadypool_lab.cli.serve import serve
from steadypool_lab.errors import LabError

lab = App(
    name="lab",
    help="Real Postgres servers and networks that fail, on this machine. Comes with `pip install steadypool-lab`.",
)
for command in (serve, proxy, replay, matrix):
    lab.command(command)

FAILURES = (LabError,)
"""Errors whose message is for the person at the command line."""
