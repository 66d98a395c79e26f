"""The shared way: statements of many callers travel together over one or two connections.

Nobody holds a connection there. `way` decides what goes where, `seat` is one connection while it is shared, `call`
one statement of one caller, `pace` knows which statements are slow, `naming` names what went wrong.
"""

from steadypool.shared.options import SharedOptions, SharedStats
from steadypool.shared.way import SharedWay

__all__ = ["SharedOptions", "SharedStats", "SharedWay"]
