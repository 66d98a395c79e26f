"""`steadypool why`: what an error means, how to find its cause, and what to do, in order."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from steadypool.cli.output import Output
from steadypool.cli.why.topics import Found, about, find, topics

__all__ = ["why"]


def why(
    *asked: Annotated[str, Parameter(allow_leading_hyphen=True)],
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Say what an error means, how to find its cause, and what to do about it.

    Without a question, list what there is to ask. Exit code 1 means that nothing fits.

    **Examples.**

        # The name of an error, a SQLSTATE, or a symptom:
        steadypool why PoolTimeout
        steadypool why 57014
        steadypool why cold-start
        # A line of a log, as it is:
        steadypool why "QueuePool limit of size 10 overflow 5 reached, connection timed out, timeout 10.00"

    Parameters
    ----------
    asked
        A class of errors, a SQLSTATE, a symptom, or a message.
    as_json
        Print the answer as JSON.
    """
    out = Output(as_json=as_json)
    question = " ".join(asked)
    if not question.strip():
        out.result([{"symptom": each.key, "title": each.title, "answers": each.answers} for each in topics()])
        out.show(_contents())
        return 0
    found = find(question)
    if found is None:
        out.result({"asked": question, "symptom": None})
        out.fail(f"nothing is known about {question!r}. What there is: steadypool why")
        return 1
    out.result(_as_dict(question, found))
    out.document(_as_markdown(found))
    return 0


def _contents() -> Table:
    table = Table("symptom", "what happened", "also asked for as")
    for topic in topics():
        table.add_row(topic.key, topic.title, " ".join(topic.answers))
    return table


def _as_dict(question: str, found: Found) -> dict[str, object]:
    topic = found.topic
    return {
        "asked": question,
        "symptom": topic.key,
        "title": topic.title,
        "name": found.name,
        "about": about(found.name),
        "meaning": topic.section("Meaning"),
        "diagnosis": topic.section("Diagnosis"),
        "remedies": topic.remedies,
        "also": [each.key for each in found.also],
    }


def _as_markdown(found: Found) -> str:
    own = about(found.name)
    parts = [f"# {found.topic.title}"]
    if own:
        parts.append(f"**{found.name}**: {own}")
    parts.append(found.topic.body)
    if found.also:
        parts.append("May also be: " + ", ".join(f"`steadypool why {each.key}`" for each in found.also))
    return "\n\n".join(parts)
