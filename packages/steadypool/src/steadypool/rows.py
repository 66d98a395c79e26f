"""Rows that can be read by position and by column name, for drivers that have none of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Protocol, cast


class Row(Protocol):
    """A row: values by position or by column name."""

    def __getitem__(self, key: Any) -> Any: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
    def keys(self) -> Any: ...  # noqa: D102


class NamedRow(tuple[Any, ...]):
    """A row of psycopg's values, like asyncpg's; `row_type` makes the class of a result's rows."""

    __slots__ = ()
    _names: ClassVar[tuple[str, ...]] = ()

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(self._names.index(key) if isinstance(key, str) else key)

    def keys(self) -> tuple[str, ...]:
        """The column names."""
        return self._names


@lru_cache(maxsize=1024)
def row_type(names: tuple[str, ...]) -> type[NamedRow]:
    """The class of rows with these columns; called with the values, it makes one.

    Example:
        >>> row_type(("id", "name"))((7, "x"))["name"]
        'x'
    """
    return type("NamedRow", (NamedRow,), {"__slots__": (), "_names": names})


OTHER_SIZE = 8
"""Bytes that a value counts whose type does not say how large it is."""


def size_of(rows: Iterable[Iterable[Any]]) -> int:
    """About how many bytes the values of a result have on the network.

    Only exactly `str`, `bytes`, `list`, `tuple` and `dict` are looked into. Any other value counts `OTHER_SIZE`,
    also where it can be iterated: a network or a range may have more elements than a program can count.

    Example:
        >>> size_of([("abc", 1), (b"de", None)])
        21
    """
    size = 0
    pending: list[Any] = [value for row in rows for value in row]
    while pending:
        value = pending.pop()
        kind = cast(type[Any], type(value))  # exactly: a subclass may iterate as it likes
        if kind is str or kind is bytes:
            size += len(value)
        elif kind is list or kind is tuple:
            pending += value
        elif kind is dict:
            pending += cast("dict[Any, Any]", value).values()
        else:
            size += OTHER_SIZE
    return size


def named_rows(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[NamedRow]:
    """Rows with names, from values."""
    return list(map(row_type(tuple(names)), rows))
