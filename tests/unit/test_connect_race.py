"""The race of addresses: what happens in the very moment in which somebody has won."""

from __future__ import annotations

import asyncio
import socket

import pytest

from steadypool.connect.addresses import AddressBook
from steadypool.connect.dsn import parse_url
from steadypool.connect.happy_eyeballs import Candidates, first_to_answer
from steadypool.connect.sockets import SocketDial

pytestmark = pytest.mark.anyio


async def test_a_caller_who_is_cancelled_as_somebody_wins_leaves_no_socket() -> None:
    dials: list[SocketDial] = []

    with socket.create_server(("127.0.0.1", 0)) as server:
        target = parse_url(f"postgresql://u@127.0.0.1:{server.getsockname()[1]}/d")
        field = Candidates(target, AddressBook(), 5.0, lambda where, what: None)

        class Dial(SocketDial):
            def established(self) -> None:
                super().established()
                racing.cancel()

        def begin(candidate: object) -> SocketDial:
            dials.append(Dial(candidate, {}))  # type: ignore[arg-type]
            return dials[-1]

        racing = asyncio.create_task(
            first_to_answer(
                field,
                begin,
                seconds=5.0,
                said=lambda where, what: None,
                doubt=lambda candidate: None,
                doing=lambda what: None,
            )
        )
        with pytest.raises(asyncio.CancelledError):
            await racing
    assert [dial.fileno() for dial in dials] == [-1]
