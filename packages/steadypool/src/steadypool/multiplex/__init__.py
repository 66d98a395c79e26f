"""The shared way: statements of many callers travel together over one or two connections.

Nobody holds a connection there. `way` decides what goes where, `seat` is one connection while it is shared, `call`
one statement of one caller, `pace` knows which statements are slow, `naming` names what went wrong.
"""

from steadypool.multiplex.multiplexer import Multiplexer
from steadypool.multiplex.options import MultiplexOptions, MultiplexStats

__all__ = ["MultiplexOptions", "MultiplexStats", "Multiplexer"]
