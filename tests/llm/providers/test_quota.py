"""Quotas read from providers' rate limit headers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.quota import MAX_RESET_S, RESET_S, Quota, quota_of


def limit_headers(remaining, limit="100", reset="1s", kind="requests"):
    fields = {"remaining": remaining, "limit": limit, "reset": reset}
    return {
        f"x-ratelimit-{name}-{kind}": value for name, value in fields.items() if value is not None
    }


@pytest.mark.parametrize(
    ("headers", "share", "seconds"),
    [
        (limit_headers("25"), 0.25, 1),
        (limit_headers("25", reset="6m0s"), 0.25, 360),
        (limit_headers("25", reset="1h2m3.5s"), 0.25, 3600),
        (limit_headers("25", reset="1m30.5s"), 0.25, 90.5),
        (limit_headers("25", reset="120ms"), 0.25, 0.12),
        (limit_headers("25", reset="17"), 0.25, 17),
        (limit_headers("25", reset=None), 0.25, RESET_S),
        (limit_headers("25", reset="tomorrow"), 0.25, RESET_S),
        (limit_headers("25", reset="99999h"), 0.25, MAX_RESET_S),
        (limit_headers("25", limit=None), 1.0, 1),
        (limit_headers("0", limit=None), 0.0, 1),
        (limit_headers("0", limit="0"), 0.0, 1),
        (limit_headers("200"), 1.0, 1),
        (limit_headers("90") | limit_headers("5", kind="tokens", reset="9s"), 0.05, 9),
    ],
)
def test_the_scarcest_counts(headers, share, seconds):
    assert quota_of(headers, 1000.0) == Quota(pytest.approx(share), pytest.approx(1000 + seconds))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        limit_headers("many"),
        limit_headers("-3"),
        limit_headers(""),
        limit_headers("1e9"),
        limit_headers("1" * 40),
        {"x-ratelimit-limit-tokens": "5"},
    ],
)
def test_unreadable_quota_headers_are_ignored(headers):
    assert quota_of(headers, 0.0) is None


@given(
    st.dictionaries(
        st.sampled_from(sorted(limit_headers("1") | limit_headers("1", kind="tokens"))),
        st.text(max_size=20),
    )
)
def test_any_header_is_survived(headers):
    quota = quota_of(headers, 5.0)
    assert quota is None or (0 <= quota.share <= 1 and 5 <= quota.until <= 5 + MAX_RESET_S)
