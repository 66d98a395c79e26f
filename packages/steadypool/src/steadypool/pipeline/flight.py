"""A segment on its way: what libpq will answer to it, in order, and what has been answered."""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import psycopg
from psycopg.abc import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import DiagnosticField, ExecStatus, abc

from steadypool.pipeline.library import libpq_function
from steadypool.pipeline.segment import Result, ResultTooLarge, Segment, names_in
from steadypool.pipeline.statements import Known, State, Statements, Step

_ROWS = int(ExecStatus.TUPLES_OK)
_CHUNK = int(ExecStatus.TUPLES_CHUNK)
_ABORTED = int(ExecStatus.PIPELINE_ABORTED)
_FAILED = int(ExecStatus.FATAL_ERROR)
_DONE = frozenset({_ROWS, int(ExecStatus.COMMAND_OK), int(ExecStatus.EMPTY_QUERY)})
_DEADLY = frozenset({b"FATAL", b"PANIC"})

CHUNK_ROWS = 64
"""Rows that come at a time where a result has a limit."""

_size_of = libpq_function("PQresultMemorySize", ctypes.c_size_t, ctypes.c_void_p)


def _bytes_of(result: Any) -> int:
    if _size_of is not None:
        return _size_of(result.pgresult_ptr)
    cells = itertools.product(range(result.ntuples), range(result.nfields))
    return sum(len(result.get_value(*cell) or b"") for cell in cells)


class OutOfStep(Exception):
    """The server's answers do not fit what was sent: nobody may trust another answer."""


class Deadly(Exception):
    """The server ended the session, and said why."""

    def __init__(self, error: psycopg.Error) -> None:
        super().__init__(str(error))
        self.error = error


class Flight:
    """What is expected for a segment, and what came of it."""

    __slots__ = ("bytes", "chunks", "limited", "named", "position", "segment", "spoke", "steps")

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.limited = segment.byte_limit is not None
        """Whether the bytes of its rows are counted."""
        self.steps: list[tuple[Step, Known | None, int]] = []
        self.position = 0
        self.spoke = False
        """Whether the command at `position` has answered; then its end comes next."""
        self.chunks: list[abc.PGresult] = []
        self.bytes = 0
        self.named: dict[int, Known] = {}
        """The prepared statements that it counts on, by the index of the statement."""

    @property
    def is_over(self) -> bool:
        """Whether all its commands have answered, so that the Sync comes next, or its error."""
        return self.position == len(self.steps)

    @property
    def wants_chunks(self) -> bool:
        """Whether the next command's rows are to come a few at a time."""
        return (
            self.limited
            and self.position < len(self.steps)
            and self.steps[self.position][0] is Step.RUN
            and self.segment.error is None
        )

    def command_over(self) -> None:
        """The end of a command. Raises OutOfStep where it has not answered."""
        if not self.spoke:
            raise OutOfStep("a command ended without an answer")
        self.spoke = False
        if self.position < len(self.steps):
            self.position += 1

    def take(
        self, result: abc.PGresult, status: int, statements: Statements, transformer: Transformer
    ) -> None:
        """One result of the command at `position`.

        Raises:
            OutOfStep: it cannot be one.
            Deadly: it is the last word of the server.
        """
        if self.position == len(self.steps):
            if status != _FAILED or self.spoke:
                raise OutOfStep(f"a result ({ExecStatus(status).name}) where a Sync was due")
            self.spoke = True  # the commit that a Sync is: a deferred constraint, a serialization failure
            self._take_error(result, None, transformer)
            return
        step, known, index = self.steps[self.position]
        if status == _CHUNK and step is Step.RUN:
            self._take_chunk(result)
            return
        if self.spoke:
            raise OutOfStep(f"two answers to one command ({ExecStatus(status).name})")
        self.spoke = True
        segment = self.segment
        if status in _DONE:
            segment.answered = True
            if step is Step.RUN:
                self._take_last(result, status, known, index, statements, transformer)
        elif status == _FAILED:
            self._take_error(result, index, transformer)
        elif status != _ABORTED:
            raise OutOfStep(f"{ExecStatus(status).name} does not belong into a pipeline")
        if step is Step.PREPARE and known is not None:
            statements.prepared(known, done=status in _DONE)

    def _take_last(
        self,
        result: abc.PGresult,
        status: int,
        known: Known | None,
        index: int,
        statements: Statements,
        transformer: Transformer,
    ) -> None:
        """A statement has succeeded: its result, or the last chunk of it."""
        chunks, names = self.chunks, None
        if chunks:
            self.chunks = []
        if status == _ROWS and known is not None:
            if known.binary is None:
                statements.saw(known, result)
            if known.state is State.READY and index in self.named:
                names = known.columns
                if names is None:
                    names = known.columns = names_in(result, transformer.encoding)
        self.segment.results.append(Result(result, transformer, chunks or None, names))

    def _take_chunk(self, result: abc.PGresult) -> None:
        segment = self.segment
        self.bytes += _bytes_of(result)
        if segment.byte_limit is None or self.bytes <= segment.byte_limit:
            self.chunks.append(result)
            return
        self.chunks.clear()
        if segment.error is None:
            segment.failed_at = len(segment.results)
            segment.error = ResultTooLarge(
                f"the result has more than {segment.byte_limit:,} bytes; what came was thrown away"
            )

    def _take_error(self, result: abc.PGresult, index: int | None, transformer: Transformer) -> None:
        error = error_from_result(result, encoding=transformer.encoding)
        if result.error_field(DiagnosticField.SEVERITY_NONLOCALIZED) in _DEADLY:
            raise Deadly(error)
        if result.error_field(DiagnosticField.SQLSTATE) is None:  # libpq's own words: the connection is gone
            raise Deadly(error)
        self.chunks.clear()
        segment = self.segment
        segment.answered = True
        segment.error, segment.failed_at = error, index
