"""Every code block of the documents is run, as a reader would run it; see `blocks` for what a page can say about that.

The blocks of a page build upon each other. Whatever Postgres they name, they get a database of the test's own.
"""

from __future__ import annotations

import ast
import asyncio
import configparser
import contextlib
import importlib
import inspect
import io
import json
import re
import runpy
import sys
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from sqlalchemy.ext.asyncio import AsyncEngine

import steadypool
from steadypool import Database, DatabaseSettings
from steadypool.sqlalchemy import create_async_engine

from . import commands
from .blocks import Block, blocks_of, pages

pytestmark = pytest.mark.anyio

NOT_RUN: dict[str, str] = {}
"""Blocks that are only compiled, by their page and their reason."""

PATIENCE = 120.0
"""Seconds that one block may take."""

TABLES = """
    create table artists (id int primary key generated always as identity, handle text not null);
    create table tracks (id int primary key generated always as identity, title text not null, artist int);
    create table plays (track int not null, at timestamptz not null default now());
    create table accounts (id int primary key, balance int not null);
    insert into accounts values (1, 100), (2, 100);
    insert into tracks (title, artist) values ('Blue', 7), ('Green', 7);
"""

RUNBOOKS = ("docs/runbooks/", ("db", "engine"))
"""The runbooks are read in the terminal, too, and bear no marks."""


@asynccontextmanager
async def given_db(url: str) -> AsyncIterator[Database]:
    async with Database(DatabaseSettings(url=url)) as db:
        yield db


@asynccontextmanager
async def given_engine(url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(url)
    yield engine
    await engine.dispose()


@asynccontextmanager
async def given_app(_url: str) -> AsyncIterator[FastAPI]:
    yield FastAPI()


GIVEN: dict[str, Callable[[str], contextlib.AbstractAsyncContextManager[Any]]] = {
    "db": given_db,
    "engine": given_engine,
    "app": given_app,
}


class Reader:
    """Works through one page."""

    def __init__(self, url: Callable[[], str], folder: Path, stack: AsyncExitStack) -> None:
        self._url = url
        self._folder = folder
        self._stack = stack
        self._names: dict[str, Any] = {"__name__": "__page__"}
        self._printed = ""
        self._met: dict[int, Any] = {}

    async def read(self, block: Block) -> None:
        """Do what the block says."""
        for name in block.marks.get("given", "").split(", "):
            if name:
                await self.give(name)
        if "file" in block.marks:
            self._path(block.marks["file"]).write_text(self._for_us(block.code))
        elif "patch" in block.marks:
            self._patch(block)
        elif "said" in block.marks:
            self._check_said(block)
        elif "not run" in block.marks:
            assert NOT_RUN.get(block.page) == block.marks["not run"], f"{block.where} is not in NOT_RUN"
            compiled(block.code, block.where)
        else:
            await LANGUAGES[block.language](self, block)

    async def give(self, name: str) -> None:
        if name not in self._names:
            self._names[name] = await self._stack.enter_async_context(GIVEN[name](self._url()))

    def _path(self, name: str) -> Path:
        assert "/" not in name
        return self._folder / name

    def _for_us(self, code: str) -> str:
        """Every Postgres that a page names is the test's own."""

        def ours(match: re.Match[str]) -> str:
            return self._url().replace("postgresql://", f"postgresql{match[1] or ''}://")

        return re.sub(r"postgresql(\+\w+)?://[^\s\"'`]+", ours, code)

    def _patch(self, block: Block) -> None:
        path = self._path(block.marks["patch"])
        before, after = sides(block.code)
        text = path.read_text()
        assert text.count(before) == 1, f"{block.where} does not fit into {path.name}:\n{text}"
        path.write_text(text.replace(before, after))

    def _check_said(self, block: Block) -> None:
        wanted = " ".join(block.code.split())
        pattern = re.sub(r"\d+(?:\\\.\d+)?", r"\\d+(?:\\.\\d+)?", re.escape(wanted)).replace("…", ".*?")
        said = " ".join(self._printed.split())
        assert re.search(pattern, said), f"{block.where} was not said:\n{wanted}\nbut:\n{said}"

    async def python(self, block: Block) -> None:
        padding = "\n" * (block.line - 1)
        code = compiled(padding + self._for_us(block.code), block.page)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if "raises" in block.marks:
                with pytest.raises(getattr(steadypool, block.marks["raises"])) as caught:
                    await self._execute(code)
                print(caught.value)
            else:
                await self._execute(code)
        self._printed += printed.getvalue()
        self._met |= {
            id(value): value
            for value in self._names.values()
            if isinstance(value, FastAPI | Database | AsyncEngine)
        }

    async def _execute(self, code: Any) -> None:
        running = eval(code, self._names)
        if inspect.isawaitable(running):
            async with asyncio.timeout(PATIENCE):
                await running

    async def shell(self, block: Block) -> None:
        for words in commands.commands_in(block.code):
            try:
                commands.check(words, self._folder)
            except Exception as error:
                raise AssertionError(f"{block.where}: {' '.join(words)}: {error}") from error
            if words[0].endswith("python") and (self._folder / words[1]).exists():
                await self._run_program(words[1])
            if words[0].endswith("python") and words[1:3] == ["-m", "pytest"] and any(self._folder.iterdir()):
                await self._run_pytest(words[3:])

    async def _run_program(self, name: str) -> None:
        """In this process, since a new one spends seconds on imports; in a thread, since it runs an event loop."""
        before = set(sys.modules)
        printed = io.StringIO()
        importlib.invalidate_caches()
        sys.path.insert(0, str(self._folder))
        try:
            with contextlib.redirect_stdout(printed):
                await asyncio.to_thread(runpy.run_path, str(self._path(name)), run_name="__main__")
        finally:
            sys.path.remove(str(self._folder))
            for module in set(sys.modules) - before:
                if str(getattr(sys.modules[module], "__file__", "")).startswith(str(self._folder)):
                    del sys.modules[module]
        self._printed += printed.getvalue()

    async def _run_pytest(self, arguments: list[str]) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "pytest", "-p", "no:cacheprovider", *arguments),
            cwd=self._folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(PATIENCE):
                said, _ = await process.communicate()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        self._printed += said.decode()
        assert process.returncode == 0, said.decode()

    async def sql(self, block: Block) -> None:
        connection = await psycopg.AsyncConnection.connect(self._url())
        async with connection:
            await connection.execute(block.code.encode())
            await connection.rollback()

    async def diff(self, block: Block) -> None:
        """Both sides run."""
        for side in sides(block.code):
            await self.python(Block(block.page, block.line, "python", side))

    async def env(self, block: Block) -> None:
        path = self._folder / "variables.env"
        path.write_text(block.code)
        named = set(re.findall(r"^(DATABASE_\w+)=", block.code, re.MULTILINE))
        known = {f"DATABASE_{name.upper()}" for name in DatabaseSettings.model_fields}
        assert named, f"{block.where} sets nothing"
        assert named <= known, f"{block.where}: no such variable: {named - known}"
        DatabaseSettings(_env_file=path)

    async def ini(self, block: Block) -> None:
        configparser.ConfigParser().read_string(block.code)

    async def toml(self, block: Block) -> None:
        tomllib.loads(block.code)

    async def json(self, block: Block) -> None:
        json.loads(block.code)

    async def finish(self) -> None:
        """What was started is stopped, applications answer, and what was opened is closed."""
        tasks = [value for value in self._names.values() if isinstance(value, asyncio.Task)]
        for task in tasks:
            task.cancel()
        assert all(
            isinstance(end, asyncio.CancelledError)
            for end in await asyncio.gather(*tasks, return_exceptions=True)
        )
        for met in self._met.values():
            if isinstance(met, FastAPI):
                await visit(met)
        for met in self._met.values():
            if isinstance(met, Database):
                await met.close()
            elif isinstance(met, AsyncEngine):
                await met.dispose()


LANGUAGES = {
    "python": Reader.python,
    "sh": Reader.shell,
    "sql": Reader.sql,
    "diff": Reader.diff,
    "env": Reader.env,
    "ini": Reader.ini,
    "toml": Reader.toml,
    "json": Reader.json,
}


def compiled(code: str, name: str) -> Any:
    return compile(code, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def sides(diff: str) -> tuple[str, str]:
    """What a diff takes away, and what it puts there; what it leaves alone is on both sides."""
    lines = diff.splitlines(keepends=True)
    return (
        "".join(line[1:] or line for line in lines if line[0] != "+"),
        "".join(line[1:] or line for line in lines if line[0] != "-"),
    )


async def visit(app: FastAPI) -> None:
    """Every page of an application that needs no more than its address."""
    transport = httpx.ASGITransport(app=app)
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            for route in app.routes:
                if isinstance(route, APIRoute) and "GET" in (route.methods or ()) and "{" not in route.path:
                    answer = await client.get(route.path)
                    assert answer.status_code == 200, f"{route.path}: {answer.status_code} {answer.text}"


@pytest.mark.parametrize("page", [page for page in pages() if any(blocks_of(page))])
async def test_the_code_of_a_page_does_what_it_says(
    page: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocks = list(blocks_of(page))
    unknown = [
        f"{block.where}: {block.language!r}" for block in blocks if block.language not in (*LANGUAGES, "text")
    ]
    assert not unknown, unknown
    made: list[str] = []

    def url() -> str:
        if not made:
            made.append(request.getfixturevalue("database_url"))
            with psycopg.connect(made[0]) as connection:
                connection.execute(TABLES)
        return made[0]

    if {block.language for block in blocks} & {"python", "diff"}:
        monkeypatch.setenv("DATABASE_URL", url())
    async with AsyncExitStack() as stack:
        reader = Reader(url, tmp_path, stack)
        folder, names = RUNBOOKS
        for name in names if page.startswith(folder) and made else ():
            await reader.give(name)
        for block in blocks:
            if block.language == "text" and not block.marks:
                continue  # neither code nor anything that was said: a picture made of letters
            await reader.read(block)
        await reader.finish()


def test_every_block_that_is_not_run_is_on_the_list() -> None:
    found = {
        page: block.marks["not run"]
        for page in pages()
        for block in blocks_of(page)
        if "not run" in block.marks
    }
    assert found == NOT_RUN
