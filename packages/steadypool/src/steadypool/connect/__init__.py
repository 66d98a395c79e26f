"""Opening one connection, for every driver, and letting go of it.

| module | what it knows |
| --- | --- |
| `dsn` | a URL, taken apart |
| `options` | each option of libpq, and what becomes of it with each driver |
| `guards` | what a session and its socket are told, so that nothing outlives its use |
| `names` | names become addresses off the event loop; the last good answer is kept |
| `network` | which address worked last, and which ones are in doubt |
| `race` | all addresses of all hosts at once, at the level of TCP; one winner |
| `sockets` | plain sockets on the event loop |
| `attempt` | one attempt's end of time, whom it lets log in, and what each address said |
| `outcome` | what a failure means |
| `log_in` | what a server may say until it lets one in |
| `inspection`, `screen` | where that is looked at: before libpq reads it, before asyncpg hears it |
| `libpq` | what libpq's failures mean, whatever its language; needs psycopg |
| `asyncpg_driver`, `psycopg_driver` | opening one connection; each needs its driver |
| `channel_binding` | the proof that asyncpg cannot give |
| `psycopg_connection` | a psycopg connection that can be let go of at once; needs psycopg |
| `leaving` | aborting, and learning when the server has let go |
"""

from steadypool.connect.abort import CloseWaiter, abort_asyncpg, abort_psycopg, take_farewell
from steadypool.connect.attempt import resolve_password
from steadypool.connect.dsn import ConnectTarget, Host, parse_url
from steadypool.connect.failure import ConnectFailure, classify_connect_error
from steadypool.connect.options import (
    HONOURED,
    Honour,
    asyncpg_arguments,
    psycopg_arguments,
    sqlalchemy_options,
)
from steadypool.connect.session_settings import session_guards, socket_guards

__all__ = [
    "HONOURED",
    "CloseWaiter",
    "ConnectFailure",
    "ConnectTarget",
    "Honour",
    "Host",
    "abort_asyncpg",
    "abort_psycopg",
    "asyncpg_arguments",
    "classify_connect_error",
    "parse_url",
    "psycopg_arguments",
    "resolve_password",
    "session_guards",
    "socket_guards",
    "sqlalchemy_options",
    "take_farewell",
]
