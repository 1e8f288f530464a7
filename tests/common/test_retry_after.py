from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.http.retry_after import MAX_RETRY_AFTER_S, retry_after_s


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
        ("Fri, 31 Dec 9999 23:59:59 GMT", None, MAX_RETRY_AFTER_S),
        ("Fri, 31 Dec 9999 23:59:59 -2359", None, MAX_RETRY_AFTER_S),
        ("Mon, 01 Jan 0001 00:00:00 +2359", None, 0),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None, None),
        ("Wed, 21 Oct 2015 07:28:00 +99999999999999999999", None, None),
        ("Wed, 99 Oct 2015 99:99:99 GMT", None, None),
        ("9" * 100_000, None, None),
        ("7", "9" * 100_000, 7),
    ],
)
def test_seconds(value, milliseconds, expected):
    assert retry_after_s(value, milliseconds) == expected


def test_a_date_is_the_time_until_then():
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 30 < retry_after_s(moment) <= 100


_DIGITS = st.integers(-(10**30), 10**30).map(str)
_DATES = st.builds(
    "{}, {} {} {} {}:{}:{} {}".format,
    st.text(max_size=4),
    _DIGITS,
    st.sampled_from(["Oct", "oct", "10", ""]),
    *[_DIGITS] * 5,
)


@given(st.none() | st.text() | _DIGITS | _DATES, st.none() | st.text() | _DIGITS)
def test_whatever_is_sent_gives_a_bounded_number_or_none(value, milliseconds):
    found = retry_after_s(value, milliseconds)
    assert found is None or 0 <= found <= MAX_RETRY_AFTER_S
