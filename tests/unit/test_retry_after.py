from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.upstream_errors import MAX_RETRY_AFTER_S, retry_after_s


@pytest.mark.parametrize(
    ("value", "milliseconds", "expected"),
    [
        (None, None, None),
        ("7", None, 7),
        ("0.5", None, 0.5),
        ("0", None, 0),
        ("1e9", None, MAX_RETRY_AFTER_S),
        ("-1", None, None),
        ("inf", None, None),
        ("nan", None, None),
        ("soon", None, None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None, 0),
        ("7", "250", 0.25),
        ("7", "soon", 7),
        ("7", "-1", 7),
        (None, "1500", 1.5),
    ],
)
def test_seconds(value, milliseconds, expected):
    assert retry_after_s(value, milliseconds) == expected


def test_a_date_is_the_time_until_then():
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 30 < retry_after_s(moment) <= 100


@given(st.none() | st.text(), st.none() | st.text())
def test_whatever_is_sent_gives_a_bounded_number_or_none(value, milliseconds):
    found = retry_after_s(value, milliseconds)
    assert found is None or 0 <= found <= MAX_RETRY_AFTER_S
