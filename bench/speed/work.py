"""The work that is measured: one function a kind of request, in the words of each library.

Every kind reads and writes one table of `ROWS` rows. A write goes to a row of the caller's own, so that no one waits
for a row lock and only the connection layer is compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import ClassVar

ROWS = 10_000
BIG = 5_000_000
"""Bytes that the large result of the mixed load has."""

SET_UP = f"""
create table item (id int primary key, name text not null, value int not null, made timestamptz not null default now());
insert into item (id, name, value) select i, 'item ' || i, i from generate_series(1, {ROWS}) i;
create table note (id bigint generated always as identity primary key, item int not null, body text not null);
create table big (body text not null);
insert into big select string_agg(md5(i::text), '') from generate_series(1, {BIG // 32}) i;
alter table big alter body set storage external;
vacuum analyze
"""

READ = "select id, name, value, made from item where id = {}"
READ_100 = "select id, name, value, made from item where id between {0} and {0} + 99"
UPDATE = "update item set value = value + 1 where id = {}"
INSERT = "insert into note (item, body) values ({}, {})"
SLOW = "select pg_sleep(0.5)"
LARGE = "select body from big"


class Kind(StrEnum):
    """What one request does."""

    READ = "single read"
    READ_TRANSACTION = "read transaction"
    WRITE_TRANSACTION = "write transaction"
    WRITE = "single-row write"
    INSERT_100 = "insert of 100 rows"
    READ_100 = "100-row result"
    MIXED = "mixed"


METHODS = {
    Kind.READ: "read",
    Kind.READ_TRANSACTION: "read_transaction",
    Kind.WRITE_TRANSACTION: "write_transaction",
    Kind.WRITE: "write",
    Kind.INSERT_100: "insert_100",
    Kind.READ_100: "read_100",
}
"""The methods of a contestant, each a `Request`; it has those that its way can do."""

Request = Callable[[int], Awaitable[object]]
"""One request; the number is a row that no other caller writes to."""


class Contestant(ABC):
    """One library by one way, used as its documentation says.

    Attributes:
        name: what tables and plots call it.
        size: the most connections that it may hold.
        slow: the slow statement of the mixed load; who takes no part in that has neither this nor the next.
        large: the large result of the mixed load.
    """

    name: ClassVar[str]
    size: int = 15
    slow: Request
    large: Request

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    async def open(self) -> None:
        """Make the pool or the connection."""

    @abstractmethod
    async def close(self) -> None:
        """Close it."""

    def requests(self) -> dict[Kind, Request]:
        """What it can do, by kind; of the mixed load the quick part."""
        found: dict[Kind, Request] = {
            kind: getattr(self, name) for kind, name in METHODS.items() if hasattr(self, name)
        }
        if hasattr(self, "slow"):
            found[Kind.MIXED] = found[Kind.READ]
        return found
