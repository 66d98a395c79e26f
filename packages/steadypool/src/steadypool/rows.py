"""Rows that can be read by position and by column name, for drivers that have none of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def size_of(value: Any) -> int:
    """About how many bytes a value, a row or a whole result has on the network.

    Example:
        >>> size_of([("abc", 1), (b"de", None)])
        21
    """
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(size_of, cast("Mapping[Any, Any]", value).values()))
    if isinstance(value, Iterable):
        return sum(map(size_of, cast("Iterable[Any]", value)))
    return 8


def named_rows(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[NamedRow]:
    """Rows with names, from values."""
    return list(map(row_type(tuple(names)), rows))
