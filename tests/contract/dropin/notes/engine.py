"""The engine and the session of a request. The first import is all that a change of the pool changes."""

import os
from collections.abc import AsyncIterator

from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker  # isort: skip

engine = create_async_engine(
    os.environ["NOTES_DATABASE_URL"],
    pool_size=2,
    max_overflow=1,
    pool_timeout=1,
    pool_recycle=3600,
    pool_pre_ping=True,
)
sessions = async_sessionmaker(engine, expire_on_commit=False)


async def get_session() -> AsyncIterator[AsyncSession]:
    async with sessions() as session:
        yield session
