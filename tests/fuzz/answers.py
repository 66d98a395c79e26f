"""Answers of a server that says anything: to `postgresql+steadypool`'s connection, over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from steadypool.connect.dsn import parse_url
from steadypool.connect.psycopg import open_psycopg
from steadypool.pipeline import Batch, ConnectionClosed, PipelinedConnection, Statement


def _message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


_OIDS = (
    16,
    17,
    20,
    21,
    23,
    25,
    114,
    600,
    700,
    869,
    1007,
    1082,
    1114,
    1184,
    1186,
    1266,
    1700,
    2249,
    2950,
    3802,
    3904,
)
_TAGS = (b"SELECT 1\0", b"SET\0", b"INSERT 0 1\0", b"ROLLBACK\0", b"UPDATE x\0", b"\xff\0", b"LISTEN\0")
_LET_IN = (
    _message(b"R", struct.pack("!i", 0))
    + _message(b"S", b"server_version\x0018.0\0")
    + _message(b"S", b"client_encoding\0UTF8\0")
    + _message(b"K", struct.pack("!ii", 1, 2))
    + _message(b"Z", b"I")
)


class _Filling:
    """The bytes that fill in what a letter stands for; where they end, the rest is empty and zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, below: int) -> int:
        return (self.take(1) or b"\0")[0] % below

    def one_of(self, choices: Sequence[bytes]) -> bytes:
        return choices[self.number(len(choices))]


def _columns(filling: _Filling) -> bytes:
    oids = [_OIDS[filling.number(len(_OIDS))] for _ in range(filling.number(4))]
    fields = (struct.pack("!xihihih", 0, 0, oid, -1, -1, filling.number(2)) for oid in oids)
    return struct.pack("!h", len(oids)) + b"".join(b"c" + field for field in fields)


def _row(filling: _Filling) -> bytes:
    values = [filling.take(filling.number(24)) for _ in range(filling.number(4))]
    return struct.pack("!h", len(values)) + b"".join(
        struct.pack("!i", len(value)) + value for value in values
    )


def _words(filling: _Filling) -> bytes:
    code = filling.one_of((b"26000", b"57P01", b"0A000", b"XX000", b"42601"))
    severity = filling.one_of((b"ERROR", b"FATAL", b"PANIC"))
    return b"S" + severity + b"\0V" + severity + b"\0C" + code + b"\0M" + filling.take(8) + b"\0\0"


def _parameter(filling: _Filling) -> bytes:
    name = filling.one_of((b"TimeZone", b"DateStyle", b"client_encoding", b"is_superuser", b"IntervalStyle"))
    return (
        name + b"\0" + filling.one_of((b"UTC", b"LATIN1", b"SQL_ASCII", b"nonsense", filling.take(6))) + b"\0"
    )


def _parameters(filling: _Filling) -> bytes:
    count = filling.number(4)
    return struct.pack("!h", count) + struct.pack("!i", 25) * count


_BODIES: dict[bytes, Callable[[_Filling], bytes]] = {
    b"Z": lambda filling: filling.one_of((b"I", b"T", b"E", b"?")),
    b"T": _columns,
    b"D": _row,
    b"C": lambda filling: filling.one_of(_TAGS),
    b"E": _words,
    b"N": _words,
    b"A": lambda filling: struct.pack("!i", 7) + filling.take(4) + b"\0" + filling.take(4) + b"\0",
    b"S": _parameter,
    b"G": lambda filling: struct.pack("!bh", filling.number(2), 0),
    b"H": lambda filling: struct.pack("!bh", filling.number(2), 0),
    b"t": _parameters,
    b"d": lambda filling: filling.take(filling.number(32)),
    **dict.fromkeys((b"1", b"2", b"3", b"n", b"I", b"s", b"c"), lambda _: b""),
}
_RAW = b"\x7f"
"""Stands for a message of any kind and length."""


def messages(data: bytes) -> Iterator[bytes]:
    """Bytes as messages of a server: a letter says which, what follows fills it in as far as it needs."""
    filling = _Filling(data)
    while filling:
        kind = filling.take(1)
        if kind == _RAW:
            yield filling.take(13)
        else:
            body = _BODIES.get(kind, lambda filling: filling.take(filling.number(16)))
            yield _message(kind, body(filling))


class _Stage:
    """An event loop, and on a socket of it a server that says `script`."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(self._reported)
        self.script: list[bytes] = []
        self.reports: list[Any] = []
        self._folder = tempfile.TemporaryDirectory(prefix="steadypool-fuzz-")
        place = Path(self._folder.name, ".s.PGSQL.5432")
        self._server = self.loop.run_until_complete(asyncio.start_unix_server(self._serve, place))
        self.target = parse_url(f"postgresql://u@/d?host={self._folder.name}&gssencmode=disable")

    def _reported(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.reports.append(context)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            (size,) = struct.unpack("!i", await reader.readexactly(4))
            await reader.readexactly(size - 4)
            writer.write(_LET_IN)
            await reader.readexactly(1)  # the first statement
            for piece in self.script:
                if writer.transport.is_closing():
                    break
                writer.write(piece)
                await asyncio.sleep(0)
        writer.close()


@functools.cache
def _stage() -> _Stage:
    return _Stage()


def answers(data: bytes) -> None:
    """Whatever a server answers, every statement is settled, once, and nothing is reported as a bug."""
    stage = _stage()
    head, rest = data[:2].ljust(2, b"\0"), data[2:]
    stage.reports = []
    stage.script = list(messages(rest))
    stage.loop.run_until_complete(_ask(stage, 1 + head[0] % 3, head[1]))
    # psycopg decodes a notification in its handler; that this raised is reported, and is the server's fault
    bugs = [each for each in stage.reports if not isinstance(each.get("exception"), UnicodeDecodeError)]
    assert not bugs, bugs


async def _ask(stage: _Stage, count: int, flags: int) -> None:
    connection = PipelinedConnection(await open_psycopg(stage.target, timeout=5, autocommit=True))
    settled: list[Batch] = []
    segments = [
        Batch(
            [Statement("begin", prepare=False)] * (flags & 1) + [Statement(f"select ${1}::int", (number,))],
            prelude=flags & 1,
            ping=bool(flags & 2),
            byte_limit=100 if flags & 4 else None,
        )
        for number in range(count)
    ]
    if flags & 8:
        connection.refused_tags = frozenset({b"SET", b"LISTEN"})
    for segment in segments:
        segment.on_settled = settled.append
    try:
        futures = [connection.send(segment) for segment in segments]
        ends = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 5)
        assert sorted(map(id, settled)) == sorted(map(id, segments)), "each is settled once"
        for end in ends:
            if isinstance(end, BaseException):
                assert str(end) or not isinstance(end, ConnectionClosed), "an error of ours that says nothing"
                continue
            for result in end:
                _look_at(result)
    finally:
        connection.abort()


def _look_at(result: Any) -> None:
    """Values that are none are the server's fault, and are errors of the caller's; only a crash or a hang is ours."""
    with contextlib.suppress(Exception):
        result.rows()
    with contextlib.suppress(UnicodeDecodeError):
        assert isinstance(result.tag, str)
