"""Writes a segment as commands of libpq's pipeline: what is prepared on the way, what runs, and the Sync."""

from __future__ import annotations

import ctypes
from typing import Any

import psycopg
from psycopg.pq import Format

from steadypool.pipeline.batch import Batch
from steadypool.pipeline.in_flight import CHUNK_ROWS, InFlightBatch
from steadypool.pipeline.libpq import libpq_function
from steadypool.pipeline.parameters import Adapted
from steadypool.pipeline.statement_cache import State, StatementCache, Step

_TEXT, _BINARY = Format.TEXT, Format.BINARY
_send_sync = libpq_function("PQsendPipelineSync", ctypes.c_int, ctypes.c_void_p)


class CommandWriter:
    """Puts segments into libpq's buffer; nothing is sent before a flush.

    Args:
        pgconn: libpq's connection, in pipeline mode.
        statements: what is prepared on it.
    """

    def __init__(self, pgconn: Any, statements: StatementCache) -> None:
        self._pgconn = pgconn
        self._statements = statements

    def write(self, segment: Batch, adapted: list[Adapted], *, first: bool, roll_back: bool) -> InFlightBatch:
        """Write a segment; returns what libpq will answer to it.

        Args:
            segment: it.
            adapted: its statements, with their parameters as they travel.
            first: whether no other segment waits for its answer: then rows may be asked for in chunks at once.
            roll_back: whether a ROLLBACK goes before it.

        Raises:
            psycopg.Error: libpq refused a command; what it has of the segment already fits no answer.
        """
        flight = None
        if len(adapted) == 1 and not roll_back:
            flight = self._write_prepared(segment, adapted[0], first)
        if flight is None:
            flight = self._write_commands(segment, adapted, first, roll_back)
        return flight

    def _write_prepared(self, segment: Batch, adapted: Adapted, first: bool) -> InFlightBatch | None:
        """By far the most common case, which has to be quick: one statement, and the server knows it; None if not."""
        _sql, known, values, _types, formats = adapted
        if known is None or known.state is not State.READY or self._statements.stale_names or segment.ping:
            return None
        pgconn = self._pgconn
        pgconn.send_query_prepared(known.name, values, formats, _BINARY if known.binary else _TEXT)
        flight = InFlightBatch(segment, known.steps, known.named)
        if flight.limited and first:
            pgconn.set_chunked_rows_mode(CHUNK_ROWS)
        self._write_sync()
        return flight

    def _write_sync(self) -> None:
        pgconn = self._pgconn
        if _send_sync is None:
            pgconn.pipeline_sync()
        elif not _send_sync(pgconn.pgconn_ptr):
            raise psycopg.OperationalError(pgconn.get_error_message())

    def _write_commands(
        self, segment: Batch, adapted: list[Adapted], first: bool, roll_back: bool
    ) -> InFlightBatch:
        pgconn, flight = self._pgconn, InFlightBatch(segment, [], {})
        steps = flight.steps
        if self._statements.stale_names:
            for name in self._statements.to_close():
                pgconn.send_close_prepared(name)
                steps.append((Step.CLOSE, None, 0))
        if roll_back:
            pgconn.send_query_params(b"ROLLBACK", None)
            steps.append((Step.EXTRA, None, 0))
        for index, statement in enumerate(adapted):
            self._write_statement(flight, index, statement)
            if index == 0 and segment.ping:
                pgconn.send_flush_request()
            if flight.limited and first and len(steps) == 1 and flight.wants_chunks:
                pgconn.set_chunked_rows_mode(CHUNK_ROWS)
        self._write_sync()
        return flight

    def _write_statement(self, flight: InFlightBatch, index: int, adapted: Adapted) -> None:
        pgconn = self._pgconn
        sql, known, values, types, formats = adapted
        named = False
        if known is not None:
            named = known.state is State.READY or known.preparer is flight
            if not named and self._statements.begin(known, flight):
                pgconn.send_prepare(known.name, known.sql, types)
                flight.steps.append((Step.PREPARE, known, index))
                named = True
        result_format = _BINARY if known is not None and known.binary else _TEXT
        if known is not None and named:
            flight.named[index] = known
            pgconn.send_query_prepared(known.name, values, formats, result_format)
        else:
            pgconn.send_query_params(sql, values, types, formats, result_format)
        flight.steps.append((Step.RUN, known, index))
