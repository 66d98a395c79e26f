"""plyr behaves the same on every driver that steadypool has."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text

import steadypool
from backend.config import LimitSettings, Settings
from backend.utilities.database import UPLOADS, db_session

from .conftest import Plyr, tone

pytestmark = pytest.mark.anyio


@pytest.fixture
def plyr_settings(plyr_settings: Settings) -> Settings:
    database = plyr_settings.database.replace(statement_timeout=2.5)
    limits = LimitSettings(play_interval=None)  # every play of the same listener counts
    return plyr_settings.model_copy(update={"database": database, "limits": limits})


async def test_the_whole_of_it(plyr: Plyr, driver: str) -> None:
    assert plyr.database.engine.dialect.driver.startswith(driver)
    track_id = await plyr.upload(tone(), album="Album", tags='["a"]')
    track = (await plyr.client.get(f"/tracks/{track_id}")).json()
    path = f"/audio/{track['file_id']}"
    plays = await asyncio.gather(*(plyr.anonymous.get(path) for _ in range(30)))
    assert {answer.status_code for answer in plays} == {200}
    writers = await asyncio.gather(
        *(
            plyr.client.put(
                "/queue/",
                json={"state": {"track_ids": [track["file_id"]], "writer": writer}},
                headers={"If-Match": '"0"'},
            )
            for writer in range(10)
        )
    )
    assert sorted(answer.status_code for answer in writers) == [200] + [409] * 9
    assert (await plyr.client.post(f"/tracks/{track_id}/like")).status_code == 200
    [liked] = (await plyr.client.get("/tracks/liked")).json()["tracks"]
    assert (liked["play_count"], liked["like_count"]) == (30, 1)
    assert (await plyr.client.delete(f"/tracks/{track_id}")).status_code == 200
    assert (await plyr.client.get("/queue/")).json()["tracks"] == []


async def test_a_slow_statement_ends_by_its_workloads_limit(plyr: Plyr) -> None:
    async with db_session() as session:
        with pytest.raises(steadypool.StatementTimeout):
            await session.execute(text("SELECT pg_sleep(10)"))
    async with db_session(UPLOADS) as session:
        await session.execute(text("SELECT pg_sleep(2.8)"))
    assert plyr.held == 0
