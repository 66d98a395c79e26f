"""Opening one connection: guards, addresses, one end of time over everything, and errors that say what happened."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psycopg
import pytest
import uvloop

from conditions import until
from steadypool.connect.abort import abort_asyncpg, abort_psycopg, socket_descriptor
from steadypool.connect.addresses import AddressBook
from steadypool.connect.asyncpg import open_asyncpg
from steadypool.connect.dsn import parse_url
from steadypool.connect.failure import ConnectFailure
from steadypool.connect.psycopg import open_psycopg
from steadypool.connect.session_settings import session_guards, socket_guards
from steadypool.errors import ConfigurationError, ConnectFailed, ConnectTimeout, Phase
from steadypool.settings import DatabaseSettings

pytestmark = pytest.mark.anyio


class Driver:
    """The same few steps for both drivers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.function = open_asyncpg if name == "asyncpg" else open_psycopg

    async def open(self, url: str, timeout: float = 10, **more: Any) -> Any:
        return await self.function(parse_url(url), timeout=timeout, **more)

    @contextlib.asynccontextmanager
    async def opened(self, url: str, **more: Any) -> AsyncIterator[Any]:
        connection = await self.open(url, **more)
        try:
            yield connection
        finally:
            (abort_asyncpg if self.name == "asyncpg" else abort_psycopg)(connection)

    async def show(self, connection: Any, setting: str) -> str:
        if self.name == "asyncpg":
            return await connection.fetchval(f"show {setting}")
        return (await (await connection.execute(f"show {setting}")).fetchone())[0]

    def socket(self, connection: Any) -> socket.socket:
        number = (
            socket_descriptor(connection._transport) if self.name == "asyncpg" else connection.pgconn.socket
        )
        return socket.socket(fileno=os.dup(number))


@pytest.fixture(params=["asyncpg", "psycopg"])
def driver(request: pytest.FixtureRequest) -> Driver:
    return Driver(request.param)


on_both_loops = pytest.mark.parametrize(
    "anyio_backend",
    ["asyncio", pytest.param(("asyncio", {"loop_factory": uvloop.new_event_loop}), id="uvloop")],
)


def changed(url: str, **parts: str) -> str:
    """The URL with another user, password, host, port, path or query."""
    old = urlsplit(url)
    user, password = parts.get("user", old.username), parts.get("password", old.password)
    host, port = parts.get("host", old.hostname), parts.get("port", old.port)
    netloc = f"{user}:{password}@{parts.get('hosts', f'{host}:{port}')}"
    return urlunsplit(
        old._replace(netloc=netloc, path=parts.get("path", old.path), query=parts.get("query", ""))
    )


def port_of(url: str) -> int:
    return urlsplit(url).port or 0


def open_sockets() -> int:
    return sum(1 for number in os.listdir("/proc/self/fd") if _is_socket(number))


def _is_socket(number: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
    except OSError:
        return False


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port on which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def silent() -> Iterator[int]:
    """A server that accepts and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def resolves() -> Callable[..., AddressBook]:
    """What knows a few names, and their addresses."""

    def known(**names: list[str]) -> AddressBook:
        def resolve(name: str, port: int) -> list[Any]:
            if name not in names:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [
                (socket.AF_INET6 if ":" in address else socket.AF_INET, (address, port))
                for address in names[name]
            ]

        return AddressBook(resolve)

    return known


# -- what a session starts with --------------------------------------------------------------------------------


@on_both_loops
async def test_the_guards_are_in_force(driver: Driver, database_url: str) -> None:
    chosen = DatabaseSettings(
        statement_timeout=2, idle_in_transaction_timeout=3, keepalive_idle=9, tcp_user_timeout=7
    )
    expected = {
        "statement_timeout": "2s",
        "idle_in_transaction_session_timeout": "3s",
        "client_connection_check_interval": "1s",
        "tcp_keepalives_idle": "9",
        "tcp_keepalives_interval": "3",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": "7000",
    }
    async with driver.opened(
        database_url, guards=session_guards(chosen), socket_options=socket_guards(chosen)
    ) as connection:
        assert {name: await driver.show(connection, name) for name in expected} == expected
        with driver.socket(connection) as own:
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 9
            assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 3
            assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
            assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000
            assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


async def test_the_urls_own_options_win_over_the_guards(driver: Driver, database_url: str) -> None:
    query = (
        "?options=-c%20statement_timeout%3D77s%20-c%20datestyle%3DISO,%5C%20DMY"
        "&application_name=tester&keepalives_idle=44&connect_timeout=9"
    )
    chosen = DatabaseSettings()
    async with driver.opened(
        database_url + query, guards=session_guards(chosen), socket_options=socket_guards(chosen)
    ) as connection:
        assert await driver.show(connection, "statement_timeout") == "77s"
        assert await driver.show(connection, "datestyle") == "ISO, DMY"
        assert await driver.show(connection, "application_name") == "tester"
        assert await driver.show(connection, "idle_in_transaction_session_timeout") == "1min"
        with driver.socket(connection) as own:
            assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 44


async def test_keepalives_can_be_switched_off(driver: Driver, database_url: str) -> None:
    async with driver.opened(
        database_url + "?keepalives=0", socket_options=socket_guards(DatabaseSettings())
    ) as connection:
        with driver.socket(connection) as own:
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


async def test_refused_guards_are_an_error_or_told(driver: Driver, database_url: str) -> None:
    guards = {"steadypool_unknown": "1"}
    with pytest.raises(ConnectFailed, match="42704"):
        await driver.open(database_url, guards=guards)
    told: list[ConnectFailure] = []
    async with driver.opened(database_url, guards=guards, on_guards_refused=told.append) as connection:
        assert await driver.show(connection, "statement_timeout") == "0"
    assert [outcome.sqlstate for outcome in told] == ["42704"]


async def test_what_the_url_asks_itself_is_not_taken_for_a_guard(driver: Driver, database_url: str) -> None:
    told: list[ConnectFailure] = []
    with pytest.raises(ConnectFailed, match="42704") as caught:
        await driver.open(
            database_url + "?options=-c%20steadypool_unknown%3D1",
            guards={"statement_timeout": "1000"},
            on_guards_refused=told.append,
        )
    assert caught.value.final
    assert told == []


async def test_arguments_of_the_drivers_pass(database_url: str) -> None:
    async with Driver("asyncpg").opened(
        database_url + "?command_timeout=7&statement_cache_size=0", max_cached_statement_lifetime=5
    ) as connection:
        assert connection._config.command_timeout == 7.0
        assert connection._config.statement_cache_size == 0
        assert connection._config.max_cached_statement_lifetime == 5
    async with Driver("psycopg").opened(
        database_url, autocommit=True, prepare_threshold=None, row_factory=psycopg.rows.dict_row
    ) as connection:
        assert connection.autocommit
        assert connection.prepare_threshold is None
        assert await (await connection.execute("select 1 as one")).fetchone() == {"one": 1}


async def test_asyncpg_says_transaction_where_it_names_one(database_url: str) -> None:
    """Its message has the name of the class, and ours is a class of its own."""
    connection = await Driver("asyncpg").open(database_url)
    transaction = connection.transaction()
    abort_asyncpg(connection)
    with pytest.raises(asyncpg.InterfaceError, match=r"^cannot call Transaction\.start\(\): the underlying"):
        await transaction.start()


@on_both_loops
async def test_an_asyncpg_connection_can_be_used_to_the_full(database_url: str) -> None:
    """It was opened through a stand-in for the loop, which must not show."""
    connection = await Driver("asyncpg").open(database_url)
    assert connection._loop is asyncio.get_running_loop()
    with pytest.raises(TimeoutError):
        await connection.execute("select pg_sleep(10)", timeout=0.1)
    assert await connection.fetchval("select 1") == 1  # after asyncpg's own cancel request
    async with connection.transaction():
        assert len([row async for row in connection.cursor("select generate_series(1, 200)")]) == 200
    heard: asyncio.Queue[str] = asyncio.Queue()
    await connection.add_listener("c", lambda *notification: heard.put_nowait(notification[3]))
    await connection.execute("notify c, 'x'")
    assert await asyncio.wait_for(heard.get(), 5) == "x"
    await connection.close()


# -- hosts -----------------------------------------------------------------------------------------------------


async def test_a_refusing_address_is_passed_over(
    driver: Driver, database_url: str, resolves: Callable[..., AddressBook]
) -> None:
    network = resolves(db=["127.0.0.3", "127.0.0.1"])
    async with driver.opened(changed(database_url, host="db"), network=network) as connection:
        assert await driver.show(connection, "server_version_num")


async def test_several_hosts_are_tried_in_turn(driver: Driver, database_url: str, nobody: int) -> None:
    hosts = f"127.0.0.1:{nobody},127.0.0.1:{port_of(database_url)}"
    async with driver.opened(changed(database_url, hosts=hosts)) as connection:
        assert await driver.show(connection, "server_version_num")


async def test_a_host_that_falls_silent_leaves_time_for_the_next(
    driver: Driver, database_url: str, silent: int
) -> None:
    hosts = f"127.0.0.1:{silent},127.0.0.1:{port_of(database_url)}"
    async with driver.opened(changed(database_url, hosts=hosts), timeout=2) as connection:
        assert await driver.show(connection, "server_version_num")


async def test_roles(driver: Driver, database_url: str) -> None:
    for role in ("any", "primary", "read-write", "prefer-standby"):
        async with driver.opened(f"{database_url}?target_session_attrs={role}") as connection:
            assert await driver.show(connection, "server_version_num")
    with pytest.raises(ConnectFailed) as caught:
        await driver.open(f"{database_url}?target_session_attrs=standby")
    assert not caught.value.final


# -- failures --------------------------------------------------------------------------------------------------


async def test_a_refused_connection_names_the_place_and_may_be_retried(
    driver: Driver, database_url: str, nobody: int
) -> None:
    with pytest.raises(ConnectFailed) as caught:
        await driver.open(changed(database_url, port=str(nobody)))
    error = caught.value
    assert f"127.0.0.1:{nobody}" in str(error)
    assert not error.final
    assert error.phase is Phase.CONNECTING
    assert error.elapsed.connecting > 0
    assert error.__cause__ is not None


async def test_an_unknown_name(driver: Driver) -> None:
    with pytest.raises(ConnectFailed, match=r"nowhere\.invalid:5432: the name cannot be resolved") as caught:
        await driver.open("postgresql://u:p@nowhere.invalid/d")
    assert not caught.value.final  # a name may appear, and a name server may come back


@on_both_loops
async def test_a_missing_socket(driver: Driver) -> None:
    with pytest.raises(ConnectFailed) as caught:
        await driver.open("postgresql://u:p@/d?host=/nowhere")
    assert not caught.value.final
    assert "/nowhere/.s.PGSQL.5432" in str(caught.value)


@on_both_loops
@pytest.mark.parametrize(
    ("change", "code"),
    [({"path": "/nowhere"}, "3D000"), ({"password": "wrong"}, "28P01"), ({"user": "x"}, "28P01")],
)
async def test_what_the_server_refuses_for_good_is_final(
    driver: Driver, database_url: str, change: dict[str, str], code: str
) -> None:
    with pytest.raises(ConnectFailed, match=f"SQLSTATE {code}") as caught:
        await driver.open(changed(database_url, **change))
    assert caught.value.final
    password = urlsplit(database_url).password or ""
    assert password not in str(caught.value)
    assert "LOCATION" not in str(caught.value)


@on_both_loops
async def test_a_silent_server_takes_one_timeout_and_the_message_says_while_what(
    driver: Driver, database_url: str, silent: int
) -> None:
    started = time.monotonic()
    with pytest.raises(ConnectTimeout) as caught:
        await driver.open(changed(database_url, port=str(silent)), timeout=1.5)
    assert time.monotonic() - started < 3.0
    assert f"within 1.5 s, while waiting for 127.0.0.1:{silent} to let us in" in str(caught.value)
    assert isinstance(caught.value, TimeoutError)
    assert not caught.value.final


async def test_the_urls_connect_timeout_counts_when_it_is_shorter(
    driver: Driver, database_url: str, silent: int
) -> None:
    started = time.monotonic()
    with pytest.raises(ConnectTimeout, match="within 1 s"):
        await driver.open(changed(database_url, port=str(silent), query="connect_timeout=1"), timeout=30)
    assert time.monotonic() - started < 5


@on_both_loops
async def test_cancelling_leaves_no_socket_behind(driver: Driver, database_url: str, silent: int) -> None:
    url = changed(database_url, port=str(silent))
    before = open_sockets()
    tasks = [asyncio.create_task(driver.open(url)) for _ in range(5)]
    await until(lambda: open_sockets() >= before + 5)
    await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    await until(lambda: open_sockets() <= before)


@on_both_loops
async def test_timing_out_leaves_no_socket_behind(driver: Driver, database_url: str, silent: int) -> None:
    before = open_sockets()
    with pytest.raises(ConnectTimeout):
        await driver.open(changed(database_url, port=str(silent)), timeout=0.2)
    await until(lambda: open_sockets() <= before)


async def test_options_are_checked_before_anything_is_opened(driver: Driver) -> None:
    with pytest.raises(ConfigurationError, match="no option"):
        await driver.open("postgresql://u:p@nowhere.invalid/d?statement_timeout=5")


# -- passwords -------------------------------------------------------------------------------------------------


async def test_a_password_function_is_asked_for_every_connect(driver: Driver, database_url: str) -> None:
    secret = urlsplit(database_url).password or ""
    asked: list[str] = []

    def token() -> str:
        asked.append("x")
        return secret

    url = changed(database_url, password="wrong")
    for _ in range(2):
        async with driver.opened(url, password=token):
            pass
    assert len(asked) == 2


async def test_a_refused_token_is_asked_for_once_more_and_no_further(
    driver: Driver, database_url: str
) -> None:
    secret = urlsplit(database_url).password or ""
    tokens = iter(["old", secret, "old", "old", secret])

    async def token() -> str:
        await asyncio.sleep(0)
        return next(tokens)

    async with driver.opened(database_url, password=token):
        pass
    with pytest.raises(ConnectFailed, match="28P01"):
        await driver.open(database_url, password=token)
    assert next(tokens) == secret


async def test_a_token_function_that_fails_or_hangs(driver: Driver, database_url: str) -> None:
    def failing() -> str:
        raise RuntimeError("the vault said s3cret")

    async def hanging() -> str:
        await asyncio.Event().wait()
        return ""

    with pytest.raises(ConnectFailed, match="asking for the password raised RuntimeError") as caught:
        await driver.open(database_url, password=failing)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ConnectTimeout, match="while asking for the password"):
        await driver.open(database_url, password=hanging, timeout=0.2)
