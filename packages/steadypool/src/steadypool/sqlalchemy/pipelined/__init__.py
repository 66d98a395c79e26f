"""`postgresql+steadypool://` for SQLAlchemy: its psycopg dialect's types, over a pipelined connection.

What SQLAlchemy sends by itself costs no round trip of its own: BEGIN, and what is to be set in the transaction, travel
with the first statement; ROLLBACK is not waited for where everything had succeeded; `executemany` is one flight.

| module | what it is |
| --- | --- |
| `dialect` | the dialect |
| `dbapi` | what SQLAlchemy takes for the driver's module |
| `connection` | SQLAlchemy's view of one connection: transactions |
| `cursor` | statements and their rows |
"""

from steadypool.sqlalchemy.pipelined.dialect import SteadypoolDialect

__all__ = ["SteadypoolDialect"]
