"""Whether a statement only reads: in a transaction of such statements nothing is locked that another could want.

The text decides, and where it leaves a doubt the answer is no. What a view, an operator or a policy does inside, it
does not show: a view that takes an advisory lock counts as a read. Reading a table locks it against DROP, TRUNCATE and
most of ALTER TABLE; row locks and advisory locks are what others meet (PostgreSQL manual, "Explicit Locking").
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from steadypool._sql.lexer import TextCache, first_word, is_name
from steadypool._sql.session_state import readings

LONGEST = 65_536
"""Characters of a statement that are read; a longer one is in doubt."""

_FIRST = frozenset(("select", "show", "table", "values", "with"))
_WRITES = frozenset(("delete", "insert", "into", "lock", "merge", "share", "update"))
"""Words of commands and clauses that lock rows or tables."""

_BEFORE_PARENTHESIS = frozenset(
    str.split("""
    all and any array as between by case distinct else except exists filter from group having ilike in intersect is join
    lateral like limit not offset on or over rows select sets similar some then union using values when where within
    bit char character decimal float interval numeric time timestamp timestamptz timetz varchar varying
    """)
)
"""Keywords, and types, that a parenthesis may follow."""

_FUNCTIONS = frozenset(
    str.split("""
    abs age array_agg array_length array_position array_to_string avg bool_and bool_or btrim cardinality cast ceil
    ceiling char_length coalesce concat concat_ws count cume_dist current_setting date date_part date_trunc decode
    dense_rank encode every exp extract first_value floor format generate_series greatest json_agg json_array_elements
    json_build_array json_build_object json_each json_object_agg jsonb_agg jsonb_array_elements
    jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each jsonb_each_text
    jsonb_object_agg jsonb_object_keys lag last_value lead least left length ln log lower lpad ltrim make_date
    make_interval max md5 min mod mode now nth_value ntile nullif octet_length overlay percent_rank percentile_cont
    percentile_disc pg_backend_pid pg_sleep phraseto_tsquery plainto_tsquery position power random rank regexp_match
    regexp_matches regexp_replace repeat replace reverse right round row row_number row_to_json rpad rtrim sign
    similarity split_part sqrt starts_with stddev string_agg string_to_array strpos substr substring sum timezone
    to_char to_date to_json to_jsonb to_number to_timestamp to_tsquery to_tsvector translate trim trunc ts_headline
    ts_rank ts_rank_cd unaccent unnest upper variance version websearch_to_tsquery width_bucket word_similarity
    """)
)
"""Functions of PostgreSQL's that lock nothing. What any other does inside, its name does not say."""


_MAY_BE_CALLED = _BEFORE_PARENTHESIS | _FUNCTIONS


def _only_reads(sql: str) -> bool:
    if len(sql) > LONGEST or first_word(sql) not in _FIRST:
        return False
    found = list(readings(sql))
    return bool(found) and all(map(_locks_nothing, found))


def _locks_nothing(words: Sequence[str]) -> bool:
    first = next((word for word in words if word != "("), "")
    if first not in _FIRST or not _WRITES.isdisjoint(words):
        return False
    return all(
        before in _MAY_BE_CALLED and words[at - 1 : at] != ["."]
        for at, (before, word) in enumerate(pairwise(words))
        if word == "(" and is_name(before)
    )


only_reads = TextCache(_only_reads)
"""Whether a statement takes no lock that another could meet, as far as its text says; in doubt False.

Example:
    >>> only_reads("select title from tracks where id = $1"), only_reads("select id from jobs for update")
    (True, False)
"""
