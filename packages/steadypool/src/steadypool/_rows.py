"""Rows that can be read by position and by column name, for drivers that have none of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Protocol, cast


class Row(Protocol):
    """A row of `Database`: the same on every driver, and what asyncpg's `Record` is.

    It is read by position (`row[0]`, `row[-1]`, a slice gives a tuple) or by name (`row["id"]`; KeyError where no
    column has it; of several columns with one name the last). Iterating gives the values, `in` asks for names,
    `dict(row)` gives a dictionary, `get()` a default. It equals, and has the hash of, the tuple of its values.

    Example:
        >>> row = await db.fetchrow("select 7 as id, 'x' as name")
        >>> row["id"], row[1], "name" in row, list(row), dict(row)
        (7, 'x', True, [7, 'x'], {'id': 7, 'name': 'x'})
    """

    def __getitem__(self, key: Any) -> Any: ...
    def __contains__(self, name: Any) -> bool: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
    def get(self, name: str, default: Any = None) -> Any: ...
    def keys(self) -> Iterator[str]: ...
    def values(self) -> Iterator[Any]: ...
    def items(self) -> Iterator[tuple[str, Any]]: ...


class NamedRow(tuple[Any, ...]):
    """A row of psycopg's values as a `Row`; `row_type` makes the class of a result's rows."""

    __slots__ = ()
    _names: ClassVar[tuple[str, ...]] = ()
    _positions: ClassVar[Mapping[str, int]] = {}

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return super().__getitem__(self._positions[key])
        try:
            return super().__getitem__(key)
        except TypeError:
            raise KeyError(key) from None

    def __contains__(self, name: object) -> bool:
        return name in self._positions

    def __repr__(self) -> str:
        return "".join(["<Record", *(f" {name}={value!r}" for name, value in self.items()), ">"])

    def get(self, name: str, default: Any = None) -> Any:
        """The value of the column with that name, or the default."""
        position = self._positions.get(name)
        return default if position is None else super().__getitem__(position)

    def keys(self) -> Iterator[str]:
        """The column names."""
        return iter(self._names)

    def values(self) -> Iterator[Any]:
        """The values."""
        return iter(self)

    def items(self) -> Iterator[tuple[str, Any]]:
        """The column names with their values."""
        return zip(self._names, self, strict=True)


@lru_cache(maxsize=1024)
def row_type(names: tuple[str, ...]) -> type[NamedRow]:
    """The class of rows with these columns; called with the values, it makes one.

    Example:
        >>> row_type(("id", "name"))((7, "x"))["name"]
        'x'
    """
    positions = {name: position for position, name in enumerate(names)}
    return type("NamedRow", (NamedRow,), {"__slots__": (), "_names": names, "_positions": positions})


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
