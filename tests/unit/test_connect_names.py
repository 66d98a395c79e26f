"""Names, what is remembered of addresses, and the order in which they are tried."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from typing import Any

import pytest

from steadypool.connect.addresses import HESITATION, AddressBook, Candidate
from steadypool.connect.dsn import parse_url
from steadypool.connect.happy_eyeballs import Candidates
from steadypool.connect.resolver import Address, Resolver

pytestmark = pytest.mark.anyio


class ManualClock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def v4(address: str, port: int = 5432) -> Address:
    return socket.AF_INET, (address, port)


def v6(address: str, port: int = 5432) -> Address:
    return socket.AF_INET6, (address, port, 0, 0)


# -- names -----------------------------------------------------------------------------------------------------


async def test_addresses_are_not_asked_for() -> None:
    names = Resolver(lambda _name, _port: pytest.fail("asked"))
    assert (await names.look_up("10.0.0.1", 5432)).addresses == (v4("10.0.0.1"),)
    assert (await names.look_up("::1", 5432)).addresses == (v6("::1"),)


async def test_a_name_without_an_address_and_a_resolver_that_raises_are_answers() -> None:
    empty = await Resolver(lambda _name, _port: []).look_up("db", 1)
    assert isinstance(empty.error, socket.gaierror)

    def broken(name: str, port: int) -> list[Address]:
        raise UnicodeError("label too long")

    assert isinstance((await Resolver(broken).look_up("db", 1)).error, UnicodeError)


async def test_one_look_up_at_a_time_and_each_answer_once() -> None:
    gate = threading.Event()
    asked: list[str] = []

    def resolve(name: str, port: int) -> list[Address]:
        asked.append(name)
        assert gate.wait(10)
        return [v4("10.0.0.1"), v4("10.0.0.1"), v4("10.0.0.2")]

    names = Resolver(resolve)
    futures = [names.look_up("db", 5432) for _ in range(5)]
    futures[0].cancel()  # somebody who was cancelled takes nothing from the others
    await asyncio.sleep(0)
    gate.set()
    answers = await asyncio.gather(*futures[1:])
    assert asked == ["db"]
    assert {answer.addresses for answer in answers} == {(v4("10.0.0.1"), v4("10.0.0.2"))}


async def test_an_older_answer_is_taken_when_the_new_one_is_late_and_at_once_when_it_is_known_to_be() -> None:
    clock = ManualClock()
    gate = threading.Event()
    gate.set()

    def resolve(name: str, port: int) -> list[Address]:
        assert gate.wait(10)
        return [v4("10.0.0.1")]

    names = Resolver(resolve, clock)
    await names.look_up("db", 5432)
    gate.clear()
    late = names.look_up("db", 5432, patience=0.05)
    await asyncio.sleep(0)
    assert not late.done()
    assert (await late).addresses == (v4("10.0.0.1"),)
    clock.now += 0.05
    known = names.look_up("db", 5432, patience=0.05)
    await asyncio.sleep(0.001)
    assert known.done()
    gate.set()


async def test_a_forked_child_asks_anew() -> None:
    """Its parent's threads are not there to answer. (A real fork of a process with threads is not for a test.)"""
    gate = threading.Event()
    asked: list[str] = []

    def resolve(name: str, port: int) -> list[Address]:
        asked.append(name)
        assert gate.wait(10)
        return [v4("10.0.0.1")]

    names = Resolver(resolve)
    names.look_up("db", 5432)
    names.forget_flights()
    anew = names.look_up("db", 5432)
    gate.set()
    assert (await anew).addresses == (v4("10.0.0.1"),)
    assert asked == ["db", "db"]


# -- order -----------------------------------------------------------------------------------------------------


class Board:
    """A network that knows its names by heart."""

    def __init__(self, **names: list[Address]) -> None:
        self.clock = ManualClock()
        self.network = AddressBook(lambda name, _port: names[name], self.clock, random.Random(7))

    async def order(self, url: str) -> list[str]:
        return [candidate.numeric for candidate in await self.candidates(url)]

    async def candidates(self, url: str) -> list[Candidate]:
        field = Candidates(parse_url(url), self.network, 10, lambda _where, _what: None)
        while field.unresolved:
            await asyncio.sleep(0.001)
        begun: list[Candidate] = []
        while (candidate := field.best(begun)) is not None:
            begun.append(candidate)
        return begun


async def test_families_take_turns_beginning_with_that_of_the_first() -> None:
    board = Board(db=[v6("::1"), v6("::2"), v6("::3"), v4("10.0.0.1"), v4("10.0.0.2")])
    assert await board.order("postgresql://db/x") == ["::1", "10.0.0.1", "::2", "10.0.0.2", "::3"]


async def test_hosts_take_turns_in_their_order() -> None:
    board = Board(a=[v4("10.0.0.1"), v4("10.0.0.2")], b=[v4("10.0.1.1"), v4("10.0.1.2")])
    assert await board.order("postgresql://a,b/x") == ["10.0.0.1", "10.0.1.1", "10.0.0.2", "10.0.1.2"]


async def test_what_worked_comes_first_and_what_is_in_doubt_last() -> None:
    board = Board(db=[v4("10.0.0.1"), v4("10.0.0.2"), v4("10.0.0.3")])
    target = parse_url("postgresql://db/x")
    one, two, three = await board.candidates("postgresql://db/x")
    with board.network.logging_in(target, three):
        pass
    assert await board.order("postgresql://db/x") == ["10.0.0.3", "10.0.0.1", "10.0.0.2"]
    board.network.doubt(three)
    board.network.doubt(one)
    assert await board.order("postgresql://db/x") == ["10.0.0.2", "10.0.0.3", "10.0.0.1"]
    with board.network.logging_in(target, two):
        board.clock.now += 1.1 * HESITATION  # a log-in hangs: others begin elsewhere
        assert (await board.order("postgresql://db/x"))[-1] == "10.0.0.2"
    assert (await board.order("postgresql://db/x"))[0] == "10.0.0.2"


async def test_a_log_in_that_failed_slowly_is_a_doubt_and_a_quick_refusal_is_none() -> None:
    board = Board(db=[v4("10.0.0.1"), v4("10.0.0.2")])
    target = parse_url("postgresql://db/x")
    one, _ = await board.candidates("postgresql://db/x")
    with pytest.raises(ValueError, match="no"), board.network.logging_in(target, one):
        raise ValueError("no")
    assert (await board.order("postgresql://db/x"))[0] == "10.0.0.1"
    with pytest.raises(ValueError, match="no"), board.network.logging_in(target, one):
        board.clock.now += 1.1 * HESITATION
        raise ValueError("no")
    assert (await board.order("postgresql://db/x"))[0] == "10.0.0.2"


async def test_random_hosts_are_spread_by_the_dice_that_were_handed_in() -> None:
    board = Board(**{name: [v4(f"10.0.0.{index}")] for index, name in enumerate("abcd")})
    url = "postgresql://a,b,c,d/x?load_balance_hosts=random"
    orders = [await board.order(url) for _ in range(8)]
    assert len({tuple(order) for order in orders}) > 1
    again = Board(**{name: [v4(f"10.0.0.{index}")] for index, name in enumerate("abcd")})
    assert [await again.order(url) for _ in range(8)] == orders


async def test_what_is_remembered_has_a_bound() -> None:
    network: Any = AddressBook(lambda _name, port: [v4("10.0.0.1", port)])
    for port in range(1, 700):
        (address,) = (await network.names.look_up("db", port)).addresses
        network.doubt(Candidate(parse_url(f"postgresql://db:{port}").hosts[0], address))
    assert len(network._experience) <= 512
    assert len(network.names._known) <= 256


def test_an_address_is_shown_as_it_is_written() -> None:
    host = parse_url("postgresql://db:1").hosts[0]
    assert Candidate(host, v6("::1", 1)).where == "[::1]:1"
    scoped = Candidate(host, (socket.AF_INET6, ("fe80::1", 1, 0, 3)))
    assert scoped.numeric == "fe80::1%3"
    assert Candidate(host, None).where == "db:1"
    assert Candidate(None, None).where == "the default host"
