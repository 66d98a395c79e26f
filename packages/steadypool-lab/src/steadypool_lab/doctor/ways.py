"""A request tried out over a counted network."""

from __future__ import annotations

from urllib.parse import quote

from sqlalchemy import text

from steadypool.cli.doctor.examination import CheckContext, milliseconds_text
from steadypool.cli.doctor.finding import Finding, check, ok, warning
from steadypool.connect.dsn import ConnectTarget, Host
from steadypool.database.database import Database
from steadypool_lab.network.proxy import FaultProxy
from steadypool_lab.postgres.ports import HOST

DELAY = 0.005
"""Seconds that the counted network adds each way: what leaves together is one round trip."""
MANY_TRIPS = 6


@check("round-trips")
async def round_trips(x: CheckContext) -> list[Finding]:
    """How often a request with one statement crosses the network, counted on the socket, and what that takes."""
    each = await x.round_trip()
    host = next((host for host in x.target.hosts if not host.is_socket), Host("localhost"))
    async with FaultProxy(host.address or host.name, host.port) as network:
        settings = x.settings.replace(
            url=_by_way_of(x.target, host, network.port), pool_size=1, max_overflow=0
        )
        async with Database(settings, name="doctor") as database:
            for _ in range(2):
                await _request(database)
            network.delay = DELAY
            before = network.round_trips
            await _request(database)
            count = network.round_trips - before
    said = f"{count} a request with one SELECT, by {database.pool.dialect.driver}: {milliseconds_text(count * each)}"
    if count > MANY_TRIPS:
        why = "Every request pays for each of them."
        return [warning(said, why, "DATABASE_POOL_PRE_PING=true, or postgresql+psycopg:// in DATABASE_URL")]
    return [ok(said)]


async def _request(database: Database) -> None:
    async with database.session() as session:
        await session.execute(text("SELECT 1"))


def _by_way_of(target: ConnectTarget, host: Host, port: int) -> str:
    """The same URL by way of a port on this machine; the name stays, for certificates."""
    driver = f"+{target.driver}" if target.driver else ""
    password = "" if target.password is None else f":{quote(target.password.get_secret_value(), safe='')}"
    user = "" if target.user is None else f"{quote(target.user, safe='')}{password}@"
    options = {"hostaddr": HOST, **target.options}
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in options.items())
    name = f"[{host.name}]" if ":" in host.name else host.name
    return f"postgresql{driver}://{user}{name}:{port}/{quote(target.database or '', safe='')}?{query}"
