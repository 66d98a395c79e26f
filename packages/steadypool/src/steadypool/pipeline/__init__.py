"""One libpq connection in pipeline mode, driven by the event loop: what is sent need not wait for what was sent before.

`connection` is the connection, `batch` what travels over it, `in_flight` a batch on its way, `statement_cache` what the
connection knows about statements that it has seen, `libpq` the library itself.
"""

from steadypool.pipeline.batch import (
    Batch,
    BatchTimeout,
    ConnectionClosed,
    PingTimeout,
    Result,
    ResultTooLarge,
    SessionModified,
    Statement,
)
from steadypool.pipeline.connection import PipelinedConnection

__all__ = [
    "Batch",
    "BatchTimeout",
    "ConnectionClosed",
    "PingTimeout",
    "PipelinedConnection",
    "Result",
    "ResultTooLarge",
    "SessionModified",
    "Statement",
]
