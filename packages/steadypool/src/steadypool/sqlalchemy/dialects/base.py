"""What both of our dialects add to SQLAlchemy's: bounds. Nothing they await outlives its limit.

A statement is ended at its limit or at the caller's deadline, whichever is first; rollback and commit likewise;
termination cuts the socket at once instead of talking to a server that may not answer.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, cast

from sqlalchemy import URL, Connection, exc

from steadypool import errors
from steadypool._clock import SYSTEM_CLOCK, Clock
from steadypool._sql.session_state import touches
from steadypool._sql.texts import check_nul
from steadypool.connect.abort import disown, hang_up
from steadypool.connect.addresses import NETWORK, AddressBook
from steadypool.connect.dsn import DEFAULT_PORT, ConnectTarget, Host, parse_url
from steadypool.connect.failure import classify_connect_error
from steadypool.connect.options import with_environment
from steadypool.deadline import CLIENT_GRACE, Deadline, TimeLimit, nearest_end
from steadypool.errors import causes
from steadypool.pool.rejections import hook_failed
from steadypool.settings.database import ConnectRetry, Password, Pooler
from steadypool.sqlalchemy.dialects.bounded_cursor import BoundedCursor
from steadypool.sqlalchemy.errors import raise_as_sqlalchemy, sqlstate_of
from steadypool.sqlalchemy.instrumentation import COMMIT, fairy_of, lease_of, mark_commit, tell_statement
from steadypool.sqlalchemy.pgbouncer import PoolerDetector

GOODBYE = 0.25
"""Seconds that asyncpg waits, after its goodbye was sent, for the server to close; then its end is cut off."""

TIMEOUT_OPTION = "steadypool_statement_timeout"
"""Execution option: seconds that a statement may run, 0 for no limit; the engine's own limit if absent."""

TAKES_NO_WRITES = ("in_hot_standby", "default_transaction_read_only")
"""Reported at the start and whenever it changes, since PostgreSQL 14 (manual: Asynchronous Operations)."""


@dataclass
class Guards:
    """What an engine's dialect enforces. Seconds; None for no limit.

    `server_settings` are what the server enforces itself, even when this process has gone; start-up options, or,
    where a pooler does not let them pass, set in each transaction. `on_guards_lost` is told so, once.
    """

    statement_timeout: float | None = None
    connect_timeout: float = 30.0
    connect_retry: ConnectRetry | None = None
    leave_timeout: float = 2.0
    password: Password | None = None
    server_settings: Mapping[str, str] = field(default_factory=dict[str, str])
    socket_options: Mapping[str, str] = field(default_factory=dict[str, str])
    pooler: Pooler = Pooler.AUTO
    on_guards_lost: Callable[[str], None] | None = None
    network: AddressBook = NETWORK
    clock: Clock = SYSTEM_CLOCK


class LimitReached(TimeoutError):
    """A statement was given up by the client. Becomes StatementTimeout or DeadlineExceeded."""

    def __init__(self, seconds: float, deadline: float | None) -> None:
        super().__init__(f"no answer within {seconds:.2f}s")
        self.seconds = seconds
        self.deadline = deadline


class BoundedDialect:
    """What both dialects have in common. Mixed in before SQLAlchemy's class."""

    driver: str
    library: str
    """What opens the connections: asyncpg or psycopg."""
    loaded_dbapi: Any
    begins_by_itself = False
    """Whether the driver begins transactions by itself, unless it is told to leave that."""

    def __init__(self, steadypool_guards: Guards | None = None, **kw: Any) -> None:
        super().__init__(**kw)
        self.guards = steadypool_guards or Guards()
        self._proven: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
        self._limits: weakref.WeakKeyDictionary[Any, float | None] = weakref.WeakKeyDictionary()
        self.has_connected = False
        """Whether any connect has succeeded; for good."""
        self.pooler_watch = PoolerDetector(
            self.guards.pooler, self.guards.server_settings, self.guards.on_guards_lost
        )

    # -- bounds ------------------------------------------------------------------------------------------------

    def bounded(self, own: float | None, call: Callable[..., Any], *args: Any) -> Any:
        """Call something that awaits in the greenlet, for at most `own` seconds and not beyond the deadline."""
        limit, deadline = nearest_end(own, self.guards.clock.monotonic())
        return self.within(limit, deadline, call, *args)

    def within(
        self, limit: float | None, deadline: Deadline | None, call: Callable[..., Any], *args: Any
    ) -> Any:
        """Call something that awaits in the greenlet, for at most `limit` seconds; `deadline` is what set them."""
        timer = TimeLimit(limit)
        try:
            with timer:
                return call(*args)
        except TimeoutError as error:
            if not timer.expired or limit is None:
                raise
            raise LimitReached(limit, None if deadline is None else deadline.seconds) from error

    def _execute_bounded(
        self, call: Callable[..., Any], cursor: Any, args: tuple[Any, ...], context: Any
    ) -> None:
        check_nul(args[0])
        server = self.statement_timeout(context)
        self.remember_limit(cursor, server)
        started = self.guards.clock.monotonic()
        if context is not None:
            context.steadypool_started, context.steadypool_told = started, False
        lease = None if context is None else lease_of(fairy_of(context))
        if lease is not None:
            lease.running = args[0], started
            if touches(args[0]) and lease.active:
                lease.connection.changes.add(args[0])
        try:
            self.bounded_statement(server, connection_of(cursor), call, cursor, *args, context)
        finally:
            if lease is not None:
                lease.running = None
        seconds = self.guards.clock.monotonic() - started
        if isinstance(cursor, BoundedCursor):
            cursor.executed(seconds)
        elif context is not None:
            context.steadypool_told = True
            tell_statement(fairy_of(context), args[0], seconds=seconds, rows=cursor.rowcount)

    def remember_limit(self, cursor: Any, server: float | None) -> None:
        """For the COMMIT; where it is the engine's own there is nothing to remember."""
        if server != self.guards.statement_timeout:
            self._limits[connection_of(cursor)] = server
        elif self._limits:
            self._limits.pop(connection_of(cursor), None)

    def bounded_statement(
        self, server: float | None, driver_connection: Any, call: Callable[..., Any], *args: Any
    ) -> Any:
        """Call something that the server may work on for `server` seconds: it is given a little longer here."""
        result = self.bounded(None if server is None else server + CLIENT_GRACE, call, *args)
        self.spoke(driver_connection)
        return result

    def driver_limit(
        self, driver_connection: Any, seconds: float | None
    ) -> contextlib.AbstractContextManager[None]:
        """Inside, the driver's own limit of a statement, if it has one, fits a limit of `seconds` on the server."""
        return contextlib.nullcontext()

    def bounded_cursor(self, cursor: Any, context: Any) -> BoundedCursor:
        """A server-side cursor, bounded like what is executed here."""
        return BoundedCursor(cursor, self, context, connection_of(cursor))

    def statement_timeout(self, context: Any) -> float | None:
        """Seconds that this statement may run on the server, or None."""
        options: Mapping[str, Any] = context.execution_options if context is not None else {}
        return options.get(TIMEOUT_OPTION, self.guards.statement_timeout) or None

    def do_execute(self, cursor: Any, statement: Any, parameters: Any, context: Any = None) -> None:
        """As SQLAlchemy's, bounded."""
        self._execute_bounded(super().do_execute, cursor, (statement, parameters), context)  # type: ignore[misc]

    def do_execute_no_params(self, cursor: Any, statement: Any, context: Any = None) -> None:
        """As SQLAlchemy's, bounded."""
        self._execute_bounded(super().do_execute_no_params, cursor, (statement,), context)  # type: ignore[misc]

    def do_executemany(self, cursor: Any, statement: Any, parameters: Any, context: Any = None) -> None:
        """As SQLAlchemy's, bounded."""
        self._execute_bounded(super().do_executemany, cursor, (statement, parameters), context)  # type: ignore[misc]

    def do_begin(self, dbapi_connection: Any) -> None:
        """As SQLAlchemy's; behind a pooler the guards travel with the BEGIN."""
        super().do_begin(dbapi_connection)  # type: ignore[misc]
        if self.pooler_watch.per_transaction:
            server = self.guards.statement_timeout
            adapter = getattr(dbapi_connection, "dbapi_connection", dbapi_connection)
            self.bounded(
                None if server is None else server + CLIENT_GRACE,
                self.pooler_watch.begin,
                self.driver,
                adapter,
            )
            self.spoke(adapter.driver_connection)

    def do_rollback(self, dbapi_connection: Any) -> None:
        """As SQLAlchemy's, bounded; where it takes too long, the connection is cut off.

        A connection that is gone, or is cut off here, is no error: the server undoes what was not committed, and
        that is what was asked for. An error here would replace the one that the caller has to see.
        """
        roll_back = cast(Callable[[Any], None], super().do_rollback)  # type: ignore[misc]
        self._leave(roll_back, dbapi_connection, self.guards.leave_timeout, keeps=True)

    def do_commit(self, dbapi_connection: Any) -> None:
        """As SQLAlchemy's, within the limit of the transaction's statements and the deadline."""
        if not self.in_transaction(driver_connection_of(dbapi_connection)):
            super().do_commit(dbapi_connection)  # type: ignore[misc] - which sends nothing
            return
        clock = self.guards.clock
        started = clock.monotonic()
        try:
            self.commit_bounded(dbapi_connection, started)
        except BaseException as error:
            mark_commit(error, clock.monotonic() - started)
            raise
        tell_statement(dbapi_connection, COMMIT, seconds=clock.monotonic() - started)

    def commit_bounded(self, dbapi_connection: Any, started: float) -> None:
        """Commit a transaction, from `started` on within the limit of its last statement and the deadline."""
        connection = driver_connection_of(dbapi_connection)
        server = self._limits.get(connection, self.guards.statement_timeout)
        self.bounded_statement(server, connection, super().do_commit, dbapi_connection)  # type: ignore[misc]

    def do_close(self, dbapi_connection: Any) -> None:
        """As SQLAlchemy's, bounded; where it takes too long, the connection is cut off, which ends it as well."""
        # Earlier than the pool's own bound on closing: SQLAlchemy would log that cancellation as an error.
        limit = min(GOODBYE, 0.8 * self.guards.leave_timeout)
        self._leave(super().do_close, dbapi_connection, limit)  # type: ignore[misc]

    def _leave(
        self, call: Callable[[Any], None], dbapi_connection: Any, limit: float, *, keeps: bool = False
    ) -> None:
        """`keeps` says whether an error of the driver's on a living connection leaves the connection alive."""
        driver_connection = driver_connection_of(dbapi_connection)
        try:
            self.bounded(limit, call, dbapi_connection)
        except BaseException as error:
            # asyncpg's own limit, where it is the shorter one, is as good a reason as ours.
            lost = isinstance(error, TimeoutError) or not self.is_open(driver_connection)
            if lost or not keeps or not isinstance(error, Exception):
                self.cut(driver_connection)
            if not (lost and isinstance(error, Exception)):
                raise
        else:
            self.spoke(driver_connection)

    def _reset_characteristics(self, characteristics: Any, dbapi_connection: Any) -> None:
        """As SQLAlchemy's, when a connection comes back that had an isolation level of its own.

        A connection that is gone has none; one on which this fails is not for the next user.
        """
        driver_connection = driver_connection_of(dbapi_connection)
        if not self.is_open(driver_connection):
            return
        try:
            super()._reset_characteristics(characteristics, dbapi_connection)  # type: ignore[misc]
        except BaseException:
            self.cut(driver_connection)
            raise

    def do_terminate(self, dbapi_connection: Any) -> None:
        """Cut the socket off. Never waits, so it works in the garbage collector too."""
        self.cut(driver_connection_of(dbapi_connection))

    def proven_at(self, driver_connection: Any) -> float | None:
        """When the server last answered on this connection, if it did."""
        return None if driver_connection is None else self._proven.get(driver_connection)

    def spoke(self, driver_connection: Any) -> None:
        """The server answered on this connection just now."""
        self._proven[driver_connection] = self.guards.clock.monotonic()

    def ping_failed(self, error: Exception, dbapi_connection: Any) -> None:
        """Call the handlers of `handle_error` for a failed ping. Whatever they say, the connection is replaced."""
        handle: Callable[..., NoReturn] = Connection._handle_dbapi_exception_noconnection  # pyright: ignore[reportPrivateUsage]
        try:
            if hasattr(
                dbapi_connection, "_handle_exception"
            ):  # which gives it the name that SQLAlchemy has for it
                dbapi_connection._handle_exception(error)
            raise error
        except self.loaded_dbapi.Error as named:
            with contextlib.suppress(Exception):
                handle(
                    named,
                    self,
                    is_disconnect=True,
                    invalidate_pool_on_disconnect=False,
                    is_pre_ping=True,
                )
        except Exception:  # noqa: BLE001 - not the driver's: SQLAlchemy calls no handlers for it
            return

    # -- what differs between drivers --------------------------------------------------------------------------

    def connect_error(self, error: Exception) -> errors.SteadypoolError:
        """The name of an exception in a connect that is not steadypool's own: from an event handler or a creator."""
        outcome = classify_connect_error(error)
        report = errors.Report(phase=errors.Phase.CONNECTING)
        if outcome.answers_application:
            return errors.HookFailed(hook_failed(error), report)
        if isinstance(error, TimeoutError):
            limit = self.guards.connect_timeout
            return errors.ConnectTimeout(f"not connected within {limit:g} s: {outcome.summary}", report)
        if (
            isinstance(error, OSError | EOFError | exc.DBAPIError | self.loaded_dbapi.Error)
            or type(error).__module__.partition(".")[0] == self.driver
        ):
            return errors.ConnectFailed(f"cannot connect: {outcome.summary}", report, final=outcome.final)
        # What neither the network nor the driver says is a mistake in a handler: trying again would repeat it.
        return errors.HookFailed(hook_failed(error), report)

    def create_connect_args(self, url: URL) -> tuple[list[Any], dict[str, Any]]:
        """The driver's arguments for a URL. libpq's options in it are carried out, or refused, by either driver."""
        target = parse_url(url.set(drivername="postgresql").render_as_string(hide_password=False))
        self._target = with_environment(target, self.library)
        self._adapter_arguments = self.adapter_arguments(self._target)
        self._url_arguments = self.driver_arguments(self._target)
        return [], self._url_arguments | self._adapter_arguments

    def check_connect_args(self, given: Iterable[str]) -> None:
        """Refuse what the driver's connect does not know.

        Raises:
            ConfigurationError: such a name is among those `given`.
        """
        known = self.driver_parameters() | self.adapter_names
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f": did you mean {near[0]}?" if near else ""
                raise errors.ConfigurationError(
                    f"connect_args: {self.library} has no argument {name!r}{hint}"
                )

    def driver_parameters(self) -> frozenset[str]:
        """The names of all arguments of the driver's connect."""
        raise NotImplementedError

    def connect(self, *cargs: Any, **cparams: Any) -> Any:
        """As SQLAlchemy's, bounded as a whole; what connect_args and `do_connect` handlers changed wins."""
        connect: Callable[..., Any] = super().connect  # type: ignore[misc]
        if not cargs and "async_creator_fn" not in cparams:
            adapter = {name: cparams.pop(name) for name in self.adapter_names if name in cparams}
            changed = {
                name: value
                for name, value in cparams.items()
                if name not in self._url_arguments or self._url_arguments[name] != value
            }
            self.check_connect_args(changed)
            cparams = {"async_creator_fn": functools.partial(self._open, changed), **adapter}
        try:
            return self.bounded(self.guards.connect_timeout, functools.partial(connect, *cargs, **cparams))
        except (
            errors.SteadypoolError
        ) as error:  # to be caught as SQLAlchemy's, also from a pool of the caller's
            raise_as_sqlalchemy(error)

    async def _open(self, changed: dict[str, Any]) -> Any:
        target = self._target
        password: Password | None = changed.pop("password", self.guards.password)
        target = replace(target, hosts=_changed_hosts(target, changed))
        if "user" in changed:
            target = replace(target, user=changed.pop("user"))
        prepares = _says_of_prepared(changed)
        own = [target.options.get("options"), changed.get("options"), changed.get("server_settings")]
        try:
            opened = await self.open_raw(target, password, changed)
        except errors.ConnectFailed as error:
            if (
                self.guards.connect_retry is None
                and not self.has_connected
                and _refused_locally(target, error)
            ):
                error.final = True
                error.message += (
                    ". No server listens there: check host and port, or wait for one that starts later with "
                    "connect_retry='wake'"
                )
            raise
        self.has_connected = True
        try:
            await self.pooler_watch.look(self.library, opened, str(own))
            return self.adopted(opened, prepares=prepares)
        except BaseException:  # also when cancelled: nobody else knows this connection
            self.cut(opened)
            raise

    def adopted(self, opened: Any, *, prepares: bool | None) -> Any:
        """The connection as this dialect uses it; `prepares` is what the caller says about prepared statements."""
        return opened

    adapter_names: frozenset[str]

    def adapter_arguments(self, target: ConnectTarget) -> dict[str, Any]:
        """What the URL says to SQLAlchemy's adapter of the driver."""
        raise NotImplementedError

    def driver_arguments(self, target: ConnectTarget) -> dict[str, Any]:
        """What the URL says to the driver. Raises ConfigurationError where it cannot do what is asked."""
        raise NotImplementedError

    @property
    def opening(self) -> dict[str, Any]:
        """What `connect` is told whichever driver it is for."""
        return {
            "timeout": self.guards.connect_timeout,
            "guards": self.pooler_watch.at_start,
            "socket_options": self.guards.socket_options,
            "on_guards_refused": self.pooler_watch.refused,
            "network": self.guards.network,
        }

    async def open_raw(
        self, target: ConnectTarget, password: Password | None, changed: dict[str, Any]
    ) -> Any:
        """Open the driver's own connection."""
        raise NotImplementedError

    def cut(self, driver_connection: Any) -> None:
        """Close the socket now. Never waits; on the connection's event loop, or where that does not run any more."""
        raise NotImplementedError

    def hang_up(self, driver_connection: Any) -> None:
        """End it for the server, from another thread than its own."""
        hang_up(driver_connection)

    def disown(self, driver_connection: Any) -> None:
        """It is the parent process's: close the descriptor, and send nothing."""
        disown(driver_connection)

    def is_confused(self, error: BaseException) -> bool:
        """Whether the driver says by this error that it has lost the thread of its talk with the server."""
        return False

    def last_words(self, driver_connection: Any, error: BaseException) -> tuple[str | None, str]:
        """The SQLSTATE and the message of the server in an error, or what it said before it ended the connection."""
        state = sqlstate_of(error)
        words = getattr(error, "words", None) or getattr(
            getattr(error, "diag", None), "message_primary", None
        )
        return state, words or ""

    def takes_no_writes(self, driver_connection: Any) -> bool:
        """Whether the server said last that it is a standby, or read-only (PostgreSQL 14 and newer tell it unasked)."""
        raise NotImplementedError

    def is_open(self, driver_connection: Any) -> bool:
        """Whether the socket is open as far as can be told without asking the server."""
        raise NotImplementedError

    def when_lost(self, driver_connection: Any, tell: Callable[[], None]) -> None:
        """Call `tell` when the connection ends, if the driver notices that by itself."""

    def rest(self, driver_connection: Any, tell: Callable[[], None]) -> None:
        """From now on nobody uses the connection: call `tell` when it ends, where the driver would not notice."""

    def in_transaction(self, driver_connection: Any) -> bool:
        """Whether the server has a transaction open on it."""
        raise NotImplementedError

    async def prove(self, driver_connection: Any, *, select: bool) -> None:
        """One round trip, or an exception."""
        raise NotImplementedError

    async def roll_back(self, driver_connection: Any) -> None:
        """End whatever transaction there is."""
        raise NotImplementedError

    async def set_autocommit(self, driver_connection: Any, value: bool) -> None:
        """Let a driver that begins transactions by itself leave that."""


def _refused_locally(target: ConnectTarget, error: BaseException) -> bool:
    """Whether a connect failed because there is no server where it would be on this machine."""
    if not any(isinstance(cause, ConnectionRefusedError | FileNotFoundError) for cause in causes(error)):
        return False
    if not target.hosts:
        return "PGHOST" not in os.environ
    return all(host.is_local for host in target.hosts)


def _says_of_prepared(changed: Mapping[str, Any]) -> bool | None:
    """What `connect_args` say about prepared statements, in either driver's words; None if nothing."""
    if "prepare_threshold" in changed:
        return changed["prepare_threshold"] is not None
    if "statement_cache_size" in changed:
        return bool(changed["statement_cache_size"])
    return None


def _changed_hosts(target: ConnectTarget, changed: dict[str, Any]) -> tuple[Host, ...]:
    """The target's hosts, with what `connect_args` say about them: each a value, a list, or as libpq writes lists."""
    if not {"host", "hostaddr", "port"} & changed.keys():
        return target.hosts
    known = target.hosts or (Host("localhost"),)
    names, addresses, ports = (_listed(changed.pop(name, None)) for name in ("host", "hostaddr", "port"))
    names = names or addresses or [host.name for host in known]
    ports = ports or (
        [str(host.port) for host in known] if len(known) == len(names) else [str(known[0].port)]
    )
    ports = ports * len(names) if len(ports) == 1 else ports
    addresses = addresses or [""] * len(names)
    if not len(names) == len(addresses) == len(ports):
        raise errors.ConfigurationError(
            f"connect_args: {len(names)} hosts, {len(addresses)} hostaddr, {len(ports)} ports: as many of each are "
            "needed, or one port for all"
        )
    return tuple(
        Host(name, _port(port), address or None)
        for name, address, port in zip(names, addresses, ports, strict=True)
    )


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [str(one) for one in cast(Sequence[object], value)]
    return str(value).split(",")


def _port(text: str) -> int:
    try:
        return int(text or DEFAULT_PORT)
    except ValueError:
        raise errors.ConfigurationError(f"connect_args: port={text!r}: allowed: a number") from None


def connection_of(cursor: Any) -> Any:
    """The driver's connection under a cursor of SQLAlchemy's; that of 2.0 for psycopg does not know it itself."""
    known = getattr(cursor, "_connection", None)
    return cursor._cursor.connection if known is None else known


def driver_connection_of(dbapi_connection: Any) -> Any:
    """The driver's own connection. SQLAlchemy passes its adapter, or a pool's proxy, which, detached, has lost it."""
    return getattr(dbapi_connection, "dbapi_connection", dbapi_connection).driver_connection
