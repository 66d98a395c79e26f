"""Reading a multipart form with one file in it, as it arrives: nothing of the file stays in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

MAX_FIELDS = 16
MAX_FIELD_BYTES = 64 * 1024
MAX_HEADER_BYTES = 4 * 1024
"""Of one header line: what takes a header apart takes longer than in proportion to its length."""

Sink = Callable[[bytes], Awaitable[None]]


class MalformedForm(ValueError):
    """The body is not the form that was asked for; the message is for the client."""


@dataclass(slots=True)
class _Part:
    name: str = ""
    is_file: bool = False
    data: bytearray = field(default_factory=bytearray)


class _Collector:
    """The parser's callbacks: text goes into `fields`, the file's bytes into `chunks` until they are fetched."""

    def __init__(self, file_field: str) -> None:
        self._file_field = file_field
        self._part = _Part()
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._parts = 0
        self.fields: dict[str, str] = {}
        self.chunks: list[bytes] = []
        self.saw_file = False
        self.ended = False

    def on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_FIELDS + 1:
            raise MalformedForm(f"the form has more than {MAX_FIELDS} fields")
        self._part = _Part()

    def on_header_begin(self) -> None:
        self._header_name.clear()
        self._header_value.clear()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]
        self._check_header()

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self._header_name) + len(self._header_value) > MAX_HEADER_BYTES:
            raise MalformedForm(f"a header in the form is longer than {MAX_HEADER_BYTES:,} bytes")

    def on_header_end(self) -> None:
        if bytes(self._header_name).lower() != b"content-disposition":
            return
        _, options = parse_options_header(self._header_value.decode("latin-1"))
        self._part.name = _text(options.get(b"name", b""), "a field's name")
        self._part.is_file = b"filename" in options

    def on_headers_finished(self) -> None:
        part = self._part
        if not part.name:
            raise MalformedForm("a part of the form has no name")
        if not part.is_file:
            return
        if part.name != self._file_field or self.saw_file:
            raise MalformedForm(f"the form may hold one file, in the field {self._file_field!r}")
        self.saw_file = True

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part.is_file:
            self.chunks.append(data[start:end])
        elif len(part.data) + end - start > MAX_FIELD_BYTES:
            raise MalformedForm(f"the field {part.name!r} is longer than {MAX_FIELD_BYTES:,} bytes")
        else:
            part.data += data[start:end]

    def on_part_end(self) -> None:
        part = self._part
        if not part.is_file:
            self.fields[part.name] = _text(bytes(part.data), f"the field {part.name!r}")

    def on_end(self) -> None:
        self.ended = True


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedForm(f"{what} is not UTF-8") from None


def _boundary(request: Request) -> bytes:
    header = request.headers.get("content-type", "")
    if len(header) > MAX_HEADER_BYTES:
        raise MalformedForm(f"the content type is longer than {MAX_HEADER_BYTES:,} bytes")
    content_type, options = parse_options_header(header)
    boundary = options.get(b"boundary")
    if content_type != b"multipart/form-data" or not boundary:
        raise MalformedForm("send a multipart/form-data body")
    return boundary


async def read_form(request: Request, file_field: str, sink: Sink) -> dict[str, str]:
    """Hand the bytes of the file to `sink` as they arrive; returns the text fields.

    Raises:
        MalformedForm: it is not such a form, is cut short, or has no such file.
    """
    collector = _Collector(file_field)
    callbacks = {
        name: getattr(collector, name)
        for name in (
            "on_part_begin",
            "on_header_begin",
            "on_header_field",
            "on_header_value",
            "on_header_end",
            "on_headers_finished",
            "on_part_data",
            "on_part_end",
            "on_end",
        )
    }
    try:
        parser = MultipartParser(_boundary(request), callbacks)  # pyright: ignore[reportArgumentType]
        async for chunk in request.stream():
            parser.write(chunk)
            for data in collector.chunks:
                await sink(data)
            collector.chunks.clear()
    except FormParserError as error:
        raise MalformedForm(f"the form cannot be read: {error}") from error
    if not collector.ended:
        raise MalformedForm("the form ends in the middle")
    if not collector.saw_file:
        raise MalformedForm(f"there is no file in the field {file_field!r}")
    return collector.fields
