"""steadypool in a FastAPI application: opening and closing, a deadline for each request, errors as answers, health.

Example:
    database = Database(DatabaseSettings())
    app = FastAPI(lifespan=lifespan(database))
    install(app, database)
    Session = Annotated[AsyncSession, Depends(session_dependency(database), scope="function")]

    @app.get("/tracks/{id}")
    async def track(id: int, session: Session) -> Track: ...

    @app.post("/tracks", dependencies=[Depends(route_deadline(60))])
    async def upload(file: UploadFile, session: Session) -> Track: ...

What a client is told about an error is its kind, whether to come back and when. Addresses, statements, and who holds
which connection go to the log `steadypool.fastapi`, once.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette

from steadypool.fastapi.health import Health
from steadypool.fastapi.managed import DatabaseOrGetter, EngineOrGetter, resolve, served
from steadypool.fastapi.problems import ProblemMiddleware
from steadypool.fastapi.requests import FROM_SETTINGS, DeadlineMiddleware, FromSettings, route_deadline

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

__all__ = ["FROM_SETTINGS", "install", "lifespan", "route_deadline", "session_dependency"]


def lifespan(database: DatabaseOrGetter) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """Open the database when the application starts and close it, with its grace time, when it ends.

    Starting needs no database to be there: requests that come before it is reachable get a 503 each.

    Args:
        database: a `Database`, or a function that returns one; the function is called once, at the start.

    Example:
        >>> app = FastAPI(lifespan=lifespan(database))

        With something of one's own beside it:

        >>> @asynccontextmanager
        ... async def everything(app):
        ...     async with lifespan(database)(app), other_resource():
        ...         yield
    """

    @asynccontextmanager
    async def opened(_app: Any) -> AsyncGenerator[None]:
        managed = resolve(database)
        await managed.open()
        try:
            yield
        finally:
            await managed.close()

    return opened


def install(
    app: Starlette,
    database: DatabaseOrGetter | EngineOrGetter,
    *,
    deadline: float | FromSettings | None = FROM_SETTINGS,
    health: bool = True,
) -> None:
    """Give every request a deadline, turn steadypool's errors into `application/problem+json`, add `/livez`, `/readyz`.

    Call it before the application starts, after `add_middleware` of what uses the database (its errors are answered
    and its time counts too) and before CORS, whose headers belong on error answers as well.

    Handlers that the application registers itself (`@app.exception_handler(PoolTimeout)`) win.

    Args:
        app: a FastAPI or Starlette application.
        database: a `Database`, or an engine that `steadypool.sqlalchemy.create_async_engine` has made, or a function
            that returns one of them; the function is called for each use.
        deadline: seconds that a request may take where its route (`route_deadline`) or its client
            (`X-Request-Timeout`) says nothing else; None for no deadline; left out: `DATABASE_REQUEST_DEADLINE`, and
            none with an engine, which reads no settings.
        health: whether to add the health routes. `/livez` never touches the database. `/readyz` answers from the
            pool's state; only where that says nothing (no connection was ever open, or the last attempt failed)
            it asks the pool for a connection, for at most 0.8 s.

    Raises:
        errors.ConfigurationError: `database` is an engine that steadypool did not make.
    """
    if not callable(database):
        served(database)  # refuses what cannot be answered now, and not at the first request
    if health:
        answers = Health(database)
        app.add_route("/livez", answers.live, methods=["GET", "HEAD"], include_in_schema=False)
        app.add_route("/readyz", answers.ready, methods=["GET", "HEAD"], include_in_schema=False)
    # What is added later stands outside: errors of the deadline are answered, too.
    app.add_middleware(DeadlineMiddleware, database=database, seconds=deadline)
    app.add_middleware(ProblemMiddleware)


def session_dependency(
    database: DatabaseOrGetter, *, workload: str | None = None, read_only: bool = False
) -> Callable[[], AsyncIterator[AsyncSession]]:
    """A dependency that yields a session of the database, for `Depends(…, scope="function")`.

    With that scope the connection is back in the pool before the response is sent, so that a slow client does not
    hold one. Without it FastAPI gives it back after the last byte. Needs FastAPI 0.121 or newer.

    The session is rolled back at the end: what is to stay is committed by the endpoint.

    Args:
        database: a `Database`, or a function that returns one; the function is called for each request.
        workload: the class of work that the session belongs to, as declared by `database.workload()`.
        read_only: whether its transactions only read.

    Example:
        >>> Session = Annotated[AsyncSession, Depends(session_dependency(database), scope="function")]
    """

    async def session() -> AsyncIterator[AsyncSession]:
        async with resolve(database).session(workload=workload, read_only=read_only) as opened:
            yield opened

    return session
