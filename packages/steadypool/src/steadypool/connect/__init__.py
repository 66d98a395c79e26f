"""Opening one connection, for every driver, and letting go of it.

| module | what it knows |
| --- | --- |
| `dsn` | a URL, taken apart |
| `options` | each option of libpq, and what becomes of it with each driver |
| `session_settings` | what a session and its socket are told, so that nothing outlives its use |
| `resolver` | names become addresses off the event loop; the last good answer is kept |
| `addresses` | which address worked last, and which ones are in doubt |
| `happy_eyeballs` | all addresses of all hosts at once, at the level of TCP; one winner |
| `sockets` | plain sockets on the event loop |
| `attempt` | one attempt's end of time, whom it lets log in, and what each address said |
| `failure` | what a failure means |
| `log_in` | what a server may say until it lets one in |
| `inspection`, `screen` | where that is looked at: before libpq reads it, before asyncpg hears it |
| `libpq_errors` | what libpq's failures mean, whatever its language; needs psycopg |
| `asyncpg`, `psycopg` | opening one connection; each needs its driver |
| `channel_binding` | the proof that asyncpg cannot give |
| `psycopg_connection` | a psycopg connection that can be let go of at once; needs psycopg |
| `abort` | aborting, and learning when the server has let go |
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
