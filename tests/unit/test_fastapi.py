"""The web layer by itself: a real FastAPI application over a database that only pretends."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from steadypool import errors
from steadypool.deadline import Deadline, current_deadline
from steadypool.errors import Elapsed, Holder, Phase, PoolSnapshot, Report, SteadypoolError
from steadypool.fastapi import install, lifespan, route_deadline, session_dependency
from steadypool.listener import ListenerState, ListenerStats
from steadypool.telemetry.counters import Totals

pytestmark = pytest.mark.anyio

HELD = PoolSnapshot(size=10, max_overflow=5, leased=15, waiting=3, holders=(Holder("GET /secret-path", 9.5),))


@dataclass
class Settings:
    request_deadline: float | None = 15.0


@dataclass
class Stats:
    pool: PoolSnapshot
    closed: bool = False
    listener: ListenerStats | None = None
    totals: Totals = field(default_factory=Totals)


@dataclass
class FakeDatabase:
    """Remembers what was asked of it; `probe` is what leasing a connection does."""

    settings: Settings = field(default_factory=Settings)
    snapshot: PoolSnapshot = field(default_factory=lambda: PoolSnapshot(size=10, max_overflow=5))
    closed: bool = False
    listener: ListenerStats | None = None
    totals: Totals = field(default_factory=Totals)
    probe: Callable[[], Awaitable[None]] | None = None
    log: list[str] = field(default_factory=list)

    async def open(self) -> None:
        self.log.append("open")

    async def close(self) -> None:
        self.log.append("close")

    @asynccontextmanager
    async def session(self, *, workload: str | None = None, read_only: bool = False) -> AsyncIterator[Any]:
        self.log.append(f"session workload={workload} read_only={read_only}")
        try:
            yield object()
        finally:
            self.log.append("given back")

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[None]:
        self.log.append("probe")
        if self.probe is not None:
            await self.probe()
        yield

    def stats(self) -> Stats:
        return Stats(self.snapshot, self.closed, self.listener, self.totals)


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def get(app: Any, path: str, **headers: str) -> httpx.Response:
    async with client_of(app) as client:
        return await client.get(
            path, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )


def app_raising(error: BaseException) -> FastAPI:
    app = FastAPI()
    install(app, FakeDatabase())

    @app.get("/it")
    async def it() -> None:
        raise error

    return app


# -- errors as answers -------------------------------------------------------------------------------------------

WAITING = Report(phase=Phase.WAITING, elapsed=Elapsed(waiting=10.0), retry_after=2.3, pool=HELD)
CONNECTING = Report(phase=Phase.CONNECTING)
EXECUTING = Report(phase=Phase.EXECUTING, maybe_executed=True)
SEED = "QueuePool limit of size 10 overflow 5 reached, connection timed out, timeout 10.00"

TABLE: list[tuple[SteadypoolError, str, int, str | None]] = [
    (errors.PoolTimeout(f"{SEED} ({HELD}). Do this", WAITING), "pool-timeout", 503, "3"),
    (errors.PoolQueueFull("full", WAITING), "pool-queue-full", 503, "3"),
    (errors.ConnectFailed("10.1.2.3 refused", CONNECTING), "connect-failed", 503, "1"),
    (errors.ConnectTimeout("10.1.2.3 silent", CONNECTING), "connect-timeout", 503, "1"),
    (errors.DatabaseUnavailable("10.1.2.3 down", CONNECTING), "database-unavailable", 503, "1"),
    (errors.StatementTimeout("select secret", EXECUTING), "statement-timeout", 504, None),
    (errors.DeadlineExceeded("waited", WAITING), "deadline-exceeded", 503, "3"),
    (errors.DeadlineExceeded("connected", CONNECTING), "deadline-exceeded", 503, "1"),
    (errors.DeadlineExceeded("select secret", EXECUTING), "deadline-exceeded", 504, None),
    (errors.ConnectionLost("10.1.2.3 reset", EXECUTING), "connection-lost", 503, "1"),
    (errors.HookFailed("10.1.2.3 and a secret", CONNECTING), "hook-failed", 500, None),
    (errors.PoolClosed("closed", Report(phase=Phase.CLOSING)), "pool-closed", 503, None),
    (
        errors.TransactionRolledBack("secret statement failed", EXECUTING),
        "transaction-rolled-back",
        500,
        None,
    ),
    (errors.HeartbeatMissed("10.1.2.3 silent", EXECUTING), "connection-lost", 503, "1"),
    (errors.NotificationsBlocked("10.1.2.3 swallows"), "internal", 500, None),
    (errors.NotMultiplexable("secret statement refused"), "internal", 500, None),
    (errors.ResultTooLarge("secret statement has more", EXECUTING), "internal", 500, None),
    (errors.CommitUnknown("10.1.2.3 reset", EXECUTING), "commit-unknown", 503, None),
    (errors.InvalidText("secret statement with a NUL", EXECUTING), "internal", 500, None),
    (errors.ConcurrentTransaction("secret statement", EXECUTING), "internal", 500, None),
    (errors.WrongEventLoop("another loop"), "internal", 500, None),
    (errors.ConfigurationError("password=hunter2"), "internal", 500, None),
]


@pytest.mark.parametrize(("error", "kind", "status", "retry_after"), TABLE, ids=lambda value: str(value)[:40])
async def test_each_error_has_its_answer(
    error: SteadypoolError, kind: str, status: int, retry_after: str | None
) -> None:
    response = await get(app_raising(error), "/it?token=secret")
    assert (response.status_code, response.headers.get("retry-after")) == (status, retry_after)
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["type"] == f"urn:steadypool:{kind}"
    assert (body["status"], body["instance"]) == (status, "/it")
    assert body["title"]
    assert body["detail"]
    assert (body["phase"], body["maybe_executed"]) == (error.phase.value, error.maybe_executed)
    assert body["retryable"] is error.retryable


def test_the_table_has_every_error_of_the_library() -> None:
    concrete = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, SteadypoolError) and kind is not SteadypoolError
    }
    assert {type(error) for error, *_ in TABLE} == concrete


async def test_the_exhaustion_message_is_told_and_the_holders_are_not() -> None:
    response = await get(app_raising(errors.PoolTimeout(f"{SEED} ({HELD}). Do this", WAITING)), "/it")
    assert response.json()["detail"] == f"{SEED}. Do this"


@pytest.mark.parametrize("error", [error for error, *_ in TABLE], ids=lambda error: type(error).__name__)
async def test_nothing_internal_gets_out(error: SteadypoolError) -> None:
    text = (await get(app_raising(error), "/it")).text
    assert not [word for word in ("10.1.2.3", "secret", "hunter2") if word in text]


async def test_an_error_that_cannot_go_away_is_not_retryable() -> None:
    response = await get(app_raising(errors.ConnectFailed("wrong password", CONNECTING, final=True)), "/it")
    assert (response.status_code, response.json()["retryable"]) == (503, False)


async def test_an_answered_error_is_logged_once_with_its_whole_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    await get(app_raising(errors.PoolTimeout(f"{SEED} ({HELD}).", WAITING)), "/it?token=secret")
    (record,) = [record for record in caplog.records if record.name != "httpx"]
    assert record.name == "steadypool.fastapi"
    assert record.getMessage() == (
        f"GET '/it' -> 503 PoolTimeout: {SEED} ({HELD}). [steadypool why PoolTimeout]"
    )


async def test_a_group_of_nothing_but_our_errors_is_answered_by_its_first() -> None:
    first, second = errors.PoolTimeout("one", WAITING), errors.ConnectionLost("two")
    nested = BaseExceptionGroup("tasks", [BaseExceptionGroup("inner", [first]), second])
    assert (await get(app_raising(nested), "/it")).json()["type"] == "urn:steadypool:pool-timeout"


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), TimeoutError("x"), ExceptionGroup("tasks", [errors.PoolTimeout("one"), KeyError("x")])],
    ids=repr,
)
async def test_what_is_not_ours_passes_through(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        await get(app_raising(error), "/it")
    assert caught.value is error


async def test_a_handler_of_the_application_wins() -> None:
    app = app_raising(errors.PoolTimeout("full"))

    @app.exception_handler(errors.PoolTimeout)
    async def own(_request: Any, _error: Any) -> StreamingResponse:
        return StreamingResponse(iter([b"own"]), status_code=418)

    assert (await get(app, "/it")).status_code == 418


async def test_an_error_in_the_exit_of_a_dependency_is_answered() -> None:
    app = FastAPI()
    install(app, FakeDatabase())

    async def breaks_at_exit() -> AsyncIterator[int]:
        yield 1
        raise errors.ConnectionLost("gone", EXECUTING)

    @app.get("/it")
    async def it(one: int = Depends(breaks_at_exit, scope="function")) -> int:
        return one

    assert (await get(app, "/it")).json()["type"] == "urn:steadypool:connection-lost"


async def test_an_error_in_a_middleware_that_was_added_before_is_answered() -> None:
    class Uses:
        def __init__(self, app: Any) -> None:
            pass

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            raise errors.PoolTimeout("full", WAITING)

    app = FastAPI()
    app.add_middleware(Uses)
    install(app, FakeDatabase())
    assert (await get(app, "/it")).status_code == 503


async def test_an_error_after_the_response_began_goes_to_the_server_and_not_to_our_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = FastAPI()
    install(app, FakeDatabase())
    lost = errors.ConnectionLost("gone", EXECUTING)

    @app.get("/it")
    async def it() -> StreamingResponse:
        async def rows() -> AsyncIterator[bytes]:
            yield b"one"
            raise lost

        return StreamingResponse(rows())

    with pytest.raises(errors.ConnectionLost) as caught:
        await get(app, "/it")
    assert caught.value is lost
    assert not [record for record in caplog.records if record.name == "steadypool.fastapi"]


# -- deadlines ---------------------------------------------------------------------------------------------------


def app_with_deadlines(seen: list[float | None], **arguments: Any) -> FastAPI:
    """Routes that note the deadline, in whole seconds as it was set."""
    app = FastAPI()
    install(app, FakeDatabase(), **arguments)

    def note() -> None:
        current = current_deadline()
        seen.append(None if current is None else current.seconds)

    @app.get("/plain")
    async def plain() -> None:
        note()

    @app.get("/in-thread")
    def in_thread() -> None:
        note()

    @app.get("/long", dependencies=[Depends(route_deadline(60))])
    async def long() -> None:
        note()

    @app.get("/short", dependencies=[Depends(route_deadline(2))])
    async def short() -> None:
        note()

    @app.get("/stream", dependencies=[Depends(route_deadline(None))])
    async def stream() -> StreamingResponse:
        async def events() -> AsyncIterator[bytes]:
            note()
            yield b"one"

        return StreamingResponse(events())

    @app.get("/later")
    async def later(tasks: BackgroundTasks) -> None:
        async def in_background() -> None:
            note()

        tasks.add_task(in_background)

    return app


@pytest.mark.parametrize(
    ("path", "header", "expected"),
    [
        ("/plain", None, 15.0),
        ("/plain", "3.5", 3.5),
        ("/plain", "600", 15.0),
        ("/in-thread", None, 15.0),
        ("/long", None, 60.0),
        ("/long", "30", 30.0),
        ("/long", "90", 60.0),
        ("/short", None, 2.0),
        ("/short", "1", 1.0),
        ("/stream", None, None),
        ("/stream", "30", 30.0),
        ("/later", None, None),
    ],
)
async def test_the_deadline_of_a_request(path: str, header: str | None, expected: float | None) -> None:
    seen: list[float | None] = []
    response = await get(app_with_deadlines(seen), path, **({"X_Request_Timeout": header} if header else {}))
    assert (response.status_code, seen) == (200, [expected])
    assert current_deadline() is None, "the deadline outlived its request"


@pytest.mark.parametrize(("given", "expected"), [(5.0, 5.0), (None, None)])
async def test_the_applications_own_deadline_replaces_the_settings(
    given: float | None, expected: float | None
) -> None:
    seen: list[float | None] = []
    await get(app_with_deadlines(seen, deadline=given), "/plain")
    assert seen == [expected]


async def test_a_routes_deadline_counts_from_the_arrival_of_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Clock:
        now = 100.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr("steadypool.fastapi.requests.SYSTEM_CLOCK", clock)
    ends: list[Deadline | None] = []

    async def takes_its_time() -> None:
        clock.now += 30.0

    app = FastAPI()
    install(app, FakeDatabase())

    @app.get("/it", dependencies=[Depends(takes_its_time), Depends(route_deadline(60))])
    async def it() -> None:
        ends.append(current_deadline())

    await get(app, "/it")
    assert ends == [Deadline(at=160.0, seconds=60.0)]


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf", "", "1,5"])
async def test_a_bad_timeout_header_is_refused(value: str) -> None:
    seen: list[float | None] = []
    response = await get(app_with_deadlines(seen), "/plain", X_Request_Timeout=value)
    assert (response.status_code, seen) == (400, [])
    assert response.headers["content-type"] == "application/problem+json"
    assert "X-Request-Timeout" in response.json()["detail"]


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_route_cannot_have_no_time_at_all(seconds: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        route_deadline(seconds)


async def test_a_routes_deadline_without_install_says_what_is_missing() -> None:
    app = FastAPI()

    @app.get("/it", dependencies=[Depends(route_deadline(60))])
    async def it() -> None: ...

    with pytest.raises(RuntimeError, match="install"):
        await get(app, "/it")


# -- opening, closing, sessions ----------------------------------------------------------------------------------


async def test_lifespan_opens_and_closes_also_after_a_failure() -> None:
    database = FakeDatabase()
    async with lifespan(lambda: database)(None):
        assert database.log == ["open"]
    assert database.log == ["open", "close"]
    with pytest.raises(KeyError):
        async with lifespan(database)(None):
            raise KeyError
    assert database.log == ["open", "close"] * 2


async def test_the_session_is_given_back_before_the_response_is_sent() -> None:
    database = FakeDatabase()
    app = FastAPI()
    install(app, database)
    uploads = Depends(
        session_dependency(lambda: database, workload="uploads", read_only=True), scope="function"
    )

    @app.get("/it")
    async def it(session: Any = uploads) -> None:
        database.log.append("endpoint")

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        async def note(message: Any) -> None:
            database.log.append(message["type"])
            await send(message)

        await app(scope, receive, note)

    await get(watched, "/it")
    assert database.log == [
        "session workload=uploads read_only=True",
        "endpoint",
        "given back",
        "http.response.start",
        "http.response.body",
    ]


# -- health ------------------------------------------------------------------------------------------------------


def healthy_app(database: FakeDatabase, **arguments: Any) -> FastAPI:
    async def nobody() -> None:
        raise AssertionError("health must not depend on the application's dependencies")

    app = FastAPI(dependencies=[Depends(nobody)])
    install(app, database, **arguments)
    return app


async def test_livez_never_asks_the_database() -> None:
    database = FakeDatabase(closed=True)
    response = await get(healthy_app(database), "/livez")
    assert (response.status_code, response.json(), database.log) == (200, {"status": "live"}, [])


@pytest.mark.parametrize(
    ("leased", "idle"),
    [(0, 1), (15, 0), (0, 0)],
    ids=["idle", "exhausted", "all let go, so that it may sleep"],
)
async def test_readyz_answers_from_the_state_of_the_pool(leased: int, idle: int) -> None:
    snapshot = PoolSnapshot(10, 5, leased=leased, idle=idle, waiting=leased)
    database = FakeDatabase(snapshot=snapshot, totals=Totals(connects=15))
    response = await get(healthy_app(database), "/readyz")
    assert (response.status_code, response.json(), database.log) == (200, {"status": "ready"}, [])


async def test_readyz_shows_the_listener_and_is_ready_without_it() -> None:
    deaf = ListenerStats(
        ListenerState.RECONNECTING,
        channels=("queue_changes",),
        subscribers=1,
        behind=1,
        lag=0.25,
        silent_for=9.0,
        connects=3,
        gaps=2,
        waiting=0,
        dropped=0,
        last_error="10.1.2.3 silent",
    )
    shown = {"state": "reconnecting", "lag": 0.25, "silent_for": 9.0, "behind": 1, "connects": 3, "gaps": 2}
    for closed, status in ((False, 200), (True, 503)):
        database = FakeDatabase(totals=Totals(connects=1), listener=deaf, closed=closed)
        response = await get(healthy_app(database), "/readyz")
        assert (response.status_code, response.json()["listener"]) == (status, shown)
        assert "10.1.2.3" not in response.text


async def test_readyz_asks_once_where_nothing_is_known_and_then_remembers() -> None:
    database = FakeDatabase()
    app = healthy_app(database)
    for _ in range(3):
        assert (await get(app, "/readyz")).status_code == 200
    assert database.log == ["probe"]


async def test_readyz_says_no_while_connecting_fails_and_yes_when_it_works_again() -> None:
    async def fails() -> None:
        raise errors.ConnectTimeout("10.1.2.3 silent")

    failing = PoolSnapshot(10, 5, leased=1, last_connect_failure="10.1.2.3 silent")
    database = FakeDatabase(snapshot=failing, probe=fails)
    app = healthy_app(database)
    response = await get(app, "/readyz")
    assert (response.status_code, response.json()) == (
        503,
        {"status": "not ready", "reason": "ConnectTimeout"},
    )
    database.probe = None
    assert (await get(app, "/readyz")).status_code == 200


async def test_readyz_gives_the_probe_less_than_a_second() -> None:
    limits: list[float] = []

    async def note() -> None:
        limits.append(current_deadline().seconds)  # type: ignore[union-attr]

    await get(healthy_app(FakeDatabase(probe=note)), "/readyz")
    assert limits == [0.8]


async def test_readyz_says_no_once_the_database_is_closed() -> None:
    database = FakeDatabase(closed=True)
    response = await get(healthy_app(database), "/readyz")
    assert (response.status_code, response.json()["reason"], database.log) == (503, "closed", [])


async def test_health_can_be_left_out() -> None:
    app = healthy_app(FakeDatabase(), health=False)
    assert (await get(app, "/livez")).status_code == 404
