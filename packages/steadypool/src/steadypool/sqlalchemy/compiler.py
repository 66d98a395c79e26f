"""SQLAlchemy's statements for the ways that take text: SQL with `$1` placeholders, and values as a session has them.

A statement is compiled once for each shape, as SQLAlchemy's engines do: the same query with other values is found
again by its cache key. Values pass the processors of their types in both directions, so that an enum, a
TypeDecorator or JSON is the same here and in a session, on every driver.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Executable, Float
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine

from steadypool._rows import Row, row_type
from steadypool.errors import ConfigurationError

REMEMBERED = 500
"""Shapes that are kept; as many as an engine of SQLAlchemy's keeps."""

_FLOAT8, _NUMERIC = 701, 1700
"""Types by the server's numbers for them; SQLAlchemy's numeric types want to know."""

_Process = Callable[[Any], Any] | None


@dataclass(frozen=True, slots=True)
class _Shape:
    """A statement without its values."""

    sql: str
    compiled: SQLCompiler
    binds: tuple[tuple[str, _Process], ...]
    columns: tuple[_Process, ...]
    """How each column's values become Python's; empty where all of them are already."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A statement, ready to be sent."""

    sql: str
    args: tuple[Any, ...]
    columns: tuple[_Process, ...]

    def rows(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Rows with the values that a session would have."""
        if not self.columns or not rows:
            return rows
        make = row_type(tuple(rows[0].keys()))
        return [
            make(
                value if process is None else process(value)
                for process, value in zip(self.columns, row, strict=True)
            )
            for row in rows
        ]


class Compiler:
    """Compiles for one engine's dialect.

    Args:
        dialect: the engine's.

    Example:
        >>> compile = Compiler(engine.dialect)
        >>> compile(select(Track.title).where(Track.id == 7)).sql
        'SELECT tracks.title \\nFROM tracks \\nWHERE tracks.id = $1::BIGINT'
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = _numbered(dialect)
        self._shapes: OrderedDict[Any, _Shape] = OrderedDict()

    def __call__(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> Compiled:
        """SQL and values of a statement.

        Args:
            statement: one of SQLAlchemy's.
            parameters: values for its `bindparam()`s.

        Raises:
            errors.ConfigurationError: it cannot be sent as it is.
            sqlalchemy.exc.StatementError: a value is missing.
        """
        anything: Any = statement
        # SQLAlchemy has no public name for it; its own engines and dogpile's recipes find statements again by it.
        key = anything._generate_cache_key()
        shape = None if key is None else self._shapes.get(key.key)
        if shape is None:
            shape = self._compile(anything, key)
        elif key is not None:
            self._shapes.move_to_end(key.key)
        given = None if parameters is None else dict(parameters)
        extracted = None if key is None else key.bindparams
        values = shape.compiled.construct_params(given, extracted_parameters=extracted, escape_names=False)
        args = tuple(
            values[name] if process is None else process(values[name]) for name, process in shape.binds
        )
        return Compiled(shape.sql, args, shape.columns)

    def _compile(self, statement: Any, key: Any) -> _Shape:
        dialect = self._dialect
        compiled = statement.compile(dialect=dialect, cache_key=key)
        _refuse(compiled)
        binds = tuple(
            (name, compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect))
            for name in compiled.positiontup or ()
        )
        columns = tuple(
            _reading(column.type, dialect) for column in getattr(statement, "exported_columns", ())
        )
        shape = _Shape(
            compiled.string, compiled, binds, columns if any(each is not None for each in columns) else ()
        )
        if key is not None:
            self._shapes[key.key] = shape
            if len(self._shapes) > REMEMBERED:
                self._shapes.popitem(last=False)
        return shape


def _numbered(dialect: Dialect) -> Dialect:
    """The dialect as it would be with `$1` placeholders."""
    if dialect.paramstyle == "numeric_dollar":
        return dialect
    numbered: Any = copy.copy(dialect)
    numbered.paramstyle, numbered.positional = "numeric_dollar", True
    numbered.identifier_preparer = numbered.preparer(numbered)  # which decides whether % is written twice
    return numbered


def _refuse(compiled: SQLCompiler) -> None:
    """What a session's execution adds to the text, or computes for each row, has no place here."""
    if compiled.post_compile_params or compiled.literal_execute_params:
        raise ConfigurationError(
            "in_() with a list has a text for each length; write column == any_(literal(values, ARRAY(type)))"
        )
    if compiled.prefetch:
        names = ", ".join(column.name for column in compiled.prefetch)
        raise ConfigurationError(f"Python computes the default of {names}: give values, or use db.session()")


def _reading(kind: TypeEngine[Any], dialect: Dialect) -> _Process:
    """What makes Python's value of a column's; the server's type is taken to be the one that was declared."""
    inner = getattr(kind, "item_type", kind)
    oid = _FLOAT8 if isinstance(inner, Float) else _NUMERIC
    return kind.dialect_impl(dialect).result_processor(dialect, oid)
