"""The table of fates, line by line."""

from __future__ import annotations

import pytest

from steadypool import _sqlstate
from steadypool._sqlstate import QUERY_CANCELED, Disposition, fate_of, is_final_at_connect


@pytest.mark.parametrize(
    ("code", "fate"),
    [
        ("57P01", Disposition.EVICT_AND_PROVE),  # admin_shutdown
        ("57P02", Disposition.EVICT_AND_PROVE),  # crash_shutdown
        ("08006", Disposition.EVICT_AND_PROVE),  # connection_failure
        ("08003", Disposition.EVICT_AND_PROVE),  # connection_does_not_exist
        (None, Disposition.EVICT_AND_PROVE),  # end of file without a word
        ("57P05", Disposition.EVICT),  # idle_session_timeout
        ("25P03", Disposition.EVICT),  # idle_in_transaction_session_timeout
        ("57P03", Disposition.BACK_OFF),  # cannot_connect_now
        ("53300", Disposition.BACK_OFF),  # too_many_connections
        (QUERY_CANCELED, Disposition.KEEP),
        ("40001", Disposition.KEEP),  # serialization_failure
        ("40P01", Disposition.KEEP),  # deadlock_detected
        ("23505", Disposition.KEEP),  # unique_violation
        ("XX000", Disposition.KEEP),  # internal_error
        ("25006", Disposition.DRAIN_HOST),  # read_only_sql_transaction
        ("26000", Disposition.FORGET_STATEMENT),  # invalid_sql_statement_name
        ("0A000", Disposition.FORGET_STATEMENT),  # feature_not_supported
    ],
)
def test_the_fate_of_a_connection(code: str | None, fate: Disposition) -> None:
    assert fate_of(code) is fate
    assert code is None or fate is Disposition.KEEP or code in (_sqlstate.__doc__ or "")


def test_a_pooler_that_asks_for_patience_is_known_by_its_words() -> None:
    assert fate_of("08P01", words="query_wait_timeout") is Disposition.BACK_OFF
    assert (
        fate_of("08P01", words="FATAL: query_wait_timeout\nserver closed the connection")
        is Disposition.BACK_OFF
    )
    assert fate_of("08P01", words="no such prepared statement") is Disposition.KEEP
    assert fate_of("23505", words="query_wait_timeout") is Disposition.KEEP


def test_read_only_is_no_surprise_where_we_asked_for_it() -> None:
    assert fate_of("25006", read_only=True) is Disposition.KEEP
    assert fate_of("57P01", read_only=True) is Disposition.EVICT_AND_PROVE


@pytest.mark.parametrize("code", ["28P01", "28000", "3D000", "42501"])
def test_trying_again_cannot_help_until_somebody_changes_something(code: str) -> None:
    assert is_final_at_connect(code)
    assert code in (_sqlstate.__doc__ or "")


@pytest.mark.parametrize("code", ["57P03", "53300", "08006", "57P01", None])
def test_trying_again_may_help(code: str | None) -> None:
    assert not is_final_at_connect(code)
