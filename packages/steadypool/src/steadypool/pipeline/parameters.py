"""Statements as the server takes them: their parameters in its formats, and what is known of them."""

from __future__ import annotations

from typing import Any, TypeAlias

import psycopg
from psycopg.abc import Transformer
from psycopg.adapt import PyFormat
from psycopg.pq import Format

from steadypool._sql.texts import encoded, not_encodable
from steadypool.pipeline.batch import Statement
from steadypool.pipeline.statement_cache import CachedStatement, StatementCache

Adapted: TypeAlias = tuple[bytes, CachedStatement | None, Any, tuple[int, ...] | None, list[Format] | None]
"""A statement with its parameters as the server takes them: SQL, what is known of it, values, types, formats."""

_MOST_PARAMETERS = 65_535
"""The protocol counts them in 16 bits; libpq would take the whole connection for broken."""
_AUTOMATIC = [PyFormat.AUTO] * _MOST_PARAMETERS
"""psycopg is to choose the format of each parameter."""


def adapt(statement: Statement, transformer: Transformer, statements: StatementCache) -> Adapted:
    """A statement ready to be sent over the connection to which the transformer and the statements belong.

    Raises:
        psycopg.Error: a parameter cannot be adapted.
        errors.InvalidText: the text or a parameter cannot be encoded.
    """
    parameters = statement.parameters
    if not parameters:
        known = statements.look_up(statement.sql, None) if statement.prepare else None
        return known.sql if known else encoded(statement.sql, statements.encoding), known, None, None, None
    if len(parameters) > _MOST_PARAMETERS:
        raise psycopg.errors.ProgramLimitExceeded(
            f"a statement has at most {_MOST_PARAMETERS:,} parameters, and this has {len(parameters):,}: "
            "pass an array, or send it in parts"
        )
    try:
        values = transformer.dump_sequence(parameters, _AUTOMATIC)
    except UnicodeEncodeError as error:
        raise not_encodable(error, what="parameter") from None
    types, formats = transformer.types, transformer.formats
    known = statements.look_up(statement.sql, types) if statement.prepare else None
    return known.sql if known else encoded(statement.sql, statements.encoding), known, values, types, formats
