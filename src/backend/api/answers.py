"""What routes answer beside their result, for the description in /openapi.json."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

_DETAIL = {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}
_PROBLEM = {
    "type": "object",
    "description": "RFC 9457",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
    },
}

Responses = dict[int | str, dict[str, Any]]


def answers(*statuses: int) -> Responses:
    """These errors, each with a `detail` as JSON."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {"application/json": {"schema": _DETAIL}},
        }
        for status in statuses
    }


def _problem(description: str, *more: str) -> dict[str, Any]:
    content: dict[str, Any] = {kind: {} for kind in more}
    return {
        "description": description,
        "content": content | {"application/problem+json": {"schema": _PROBLEM}},
    }


EVERYWHERE: Responses = {
    400: _problem(
        "X-Request-Timeout is no number of seconds, or the request is malformed", "application/json"
    ),
    408: {"description": "The request did not arrive in time", "content": {"text/plain": {}}},
    **answers(413),
    422: {
        "description": HTTPStatus.UNPROCESSABLE_ENTITY.phrase,
        "content": {"application/json": {"schema": {"type": "object"}}},
    },
    429: _problem("One client or artist asks for too much; see Retry-After"),
    431: {"description": "The head of the request is too large", "content": {"text/plain": {}}},
    500: _problem("Internal Server Error", "text/plain"),
    503: _problem(
        "The database is away or busy, or there are too many connections; see Retry-After", "text/plain"
    ),
    504: _problem("A query took too long"),
}
"""Of every route: the server's own answers, and those of the database's failures."""

AUDIO: Responses = {
    200: {"description": "The whole file", "content": {"audio/*": {}}},
    206: {"description": "The part that Range asks for", "content": {"audio/*": {}}},
    304: {"description": "The client has it (If-None-Match)"},
    **answers(401, 403, 404, 416),
}
