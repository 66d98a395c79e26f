"""steadypool for SQLAlchemy: change one import.

```python
from steadypool.sqlalchemy import create_async_engine   # instead of sqlalchemy.ext.asyncio
```
"""

from steadypool.sqlalchemy.engine import async_engine_from_config, create_async_engine
from steadypool.sqlalchemy.errors import (
    ConnectFailed,
    ConnectionLost,
    ConnectTimeout,
    DatabaseUnavailable,
    PoolQueueFull,
    PoolTimeout,
    StatementTimeout,
    TransactionRolledBack,
)
from steadypool.sqlalchemy.metrics_source import source_of
from steadypool.sqlalchemy.pool import SteadyPool

__all__ = [
    "ConnectFailed",
    "ConnectTimeout",
    "ConnectionLost",
    "DatabaseUnavailable",
    "PoolQueueFull",
    "PoolTimeout",
    "StatementTimeout",
    "SteadyPool",
    "TransactionRolledBack",
    "async_engine_from_config",
    "create_async_engine",
    "source_of",
]
