"""A segment on its way: what libpq will answer to it, in order, and what has been answered."""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import psycopg
from psycopg.abc import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import DiagnosticField, ExecStatus, abc

from steadypool.pipeline.batch import Batch, Result, ResultTooLarge, names_in
from steadypool.pipeline.libpq import libpq_function
from steadypool.pipeline.statement_cache import CachedStatement, State, StatementCache, Step

_ROWS = int(ExecStatus.TUPLES_OK)
_ABORTED = int(ExecStatus.PIPELINE_ABORTED)
_FAILED = int(ExecStatus.FATAL_ERROR)
_DONE = frozenset({_ROWS, int(ExecStatus.COMMAND_OK), int(ExecStatus.EMPTY_QUERY)})
_DEALLOCATES = frozenset({b"DEALLOCATE", b"DEALLOCATE ALL", b"DISCARD ALL"})
"""Command tags after which a prepared statement may be gone; that of one statement does not name it."""
_DEADLY = frozenset({b"FATAL", b"PANIC"})

CHUNK_ROWS = 64
"""Rows that come at a time where a result has a limit."""

_size_of = libpq_function("PQresultMemorySize", ctypes.c_size_t, ctypes.c_void_p)


def _bytes_of(result: Any) -> int:
    if _size_of is not None:
        return _size_of(result.pgresult_ptr)
    cells = itertools.product(range(result.ntuples), range(result.nfields))
    return sum(len(result.get_value(*cell) or b"") for cell in cells)


class ProtocolDesync(Exception):
    """The server's answers do not fit what was sent: nobody may trust another answer."""


class Deadly(Exception):
    """The server ended the session, and said why."""

    def __init__(self, error: psycopg.Error) -> None:
        super().__init__(str(error))
        self.error = error


class InFlightBatch:
    """What is expected for a segment, and what came of it.

    Args:
        segment: it.
        steps: what each command is for, with the statement it is about.
        named: the prepared statements that it counts on.
    """

    position = 0
    """The command that is to be answered next; after the last one comes the Sync, or its error."""
    commit_failed = False
    """Whether the Sync's own error has come: a deferred constraint, a serialization failure."""
    bytes = 0
    chunks: list[abc.PGresult] | None = None

    def __init__(
        self,
        segment: Batch,
        steps: list[tuple[Step, CachedStatement | None, int]],
        named: dict[int, CachedStatement],
    ) -> None:
        self.segment = segment
        self.limited = segment.byte_limit is not None
        """Whether the bytes of its rows are counted."""
        self.steps = steps
        self.named = named
        """The prepared statements that it counts on, by the index of the statement."""

    @property
    def wants_chunks(self) -> bool:
        """Whether the next command's rows are to come a few at a time."""
        return (
            self.limited
            and self.position < len(self.steps)
            and self.steps[self.position][0] is Step.RUN
            and self.segment.error is None
        )

    def take_chunk(self, result: abc.PGresult) -> None:
        """Some rows of the command at `position`; more come, or their end."""
        segment = self.segment
        if self.position == len(self.steps) or self.steps[self.position][0] is not Step.RUN:
            raise ProtocolDesync("rows that nobody had asked for")
        self.bytes += _bytes_of(result)
        if segment.byte_limit is None or self.bytes <= segment.byte_limit:
            if self.chunks is None:
                self.chunks = [result]
            else:
                self.chunks.append(result)
            return
        self.chunks = None
        if segment.error is None:
            segment.failed_at = len(segment.results)
            segment.error = ResultTooLarge(
                f"the result has more than {segment.byte_limit:,} bytes; what came was thrown away"
            )

    def take(
        self, result: abc.PGresult, status: int, statements: StatementCache, transformer: Transformer
    ) -> None:
        """The result of the command at `position`, or the last of its results.

        Raises:
            ProtocolDesync: it cannot be one.
            Deadly: it is the last word of the server.
        """
        if self.position == len(self.steps):
            if status != _FAILED or self.commit_failed:
                raise ProtocolDesync(f"a result ({ExecStatus(status).name}) where a Sync was due")
            self.commit_failed = True
            self._take_error(result, None, transformer)
            return
        step, known, index = self.steps[self.position]
        self.position += 1
        if status in _DONE:
            self.segment.answered = True
            if step is Step.RUN:
                self._take_last(result, status, known, index, statements, transformer)
        elif status == _FAILED:
            self._take_error(result, index, transformer)
        elif status != _ABORTED:
            raise ProtocolDesync(f"{ExecStatus(status).name} does not belong into a pipeline")
        if step is Step.PREPARE and known is not None:
            statements.prepared(known, done=status in _DONE)

    def _take_last(
        self,
        result: abc.PGresult,
        status: int,
        known: CachedStatement | None,
        index: int,
        statements: StatementCache,
        transformer: Transformer,
    ) -> None:
        """A statement has succeeded: its result, or the last chunk of it."""
        chunks, names = self.chunks, None
        self.chunks = None
        if status == _ROWS and known is not None:
            if known.binary is None:
                statements.saw(known, result)
            if known.state is State.READY and index in self.named:
                names = known.columns
                if names is None:
                    names = known.columns = names_in(result, transformer.encoding)
        elif status != _ROWS and result.command_status in _DEALLOCATES:
            statements.deallocated(one=result.command_status == b"DEALLOCATE")
        self.segment.results.append(Result(result, transformer, chunks, names))

    def _take_error(self, result: abc.PGresult, index: int | None, transformer: Transformer) -> None:
        error = error_from_result(result, encoding=transformer.encoding)
        if result.error_field(DiagnosticField.SEVERITY_NONLOCALIZED) in _DEADLY:
            raise Deadly(error)
        if result.error_field(DiagnosticField.SQLSTATE) is None:  # libpq's own words: the connection is gone
            raise Deadly(error)
        self.chunks = None
        segment = self.segment
        segment.answered = True
        segment.error, segment.failed_at = error, index
