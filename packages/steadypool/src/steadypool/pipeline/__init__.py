"""One libpq connection in pipeline mode, driven by the event loop: what is sent need not wait for what was sent before.

`connection` is the connection, `segment` what travels over it, `statements` what it knows about statements that it
has seen, `guards` what must not travel over a connection that strangers share, `library` libpq itself.
"""

from steadypool.pipeline.connection import PipelinedConnection
from steadypool.pipeline.segment import (
    ConnectionGone,
    Overdue,
    Result,
    ResultTooLarge,
    Segment,
    Statement,
    Unclean,
)

__all__ = [
    "ConnectionGone",
    "Overdue",
    "PipelinedConnection",
    "Result",
    "ResultTooLarge",
    "Segment",
    "Statement",
    "Unclean",
]
