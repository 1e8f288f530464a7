"""The event stream format of the HTML standard, cut anywhere."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import UpstreamInvalidResponse
from providers.sse import ErrorEvent, SSEDecoder


def payloads(raw: bytes, size: int = 1 << 20, **options) -> list[bytes]:
    decoder = SSEDecoder(**options)
    found = [
        payload
        for start in range(0, len(raw), size)
        for payload in decoder.feed(raw[start : start + size])
    ]
    return found + decoder.finish()


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_lines_end_as_the_standard_says_however_they_are_cut(end, size):
    lines = [
        "data: a",
        "",
        ": comment",
        "event: x",
        "data:b",
        "data: c",
        "id: 7",
        "",
        "data: d",
        "",
    ]
    raw = "".join(f"{line}{end}" for line in lines).encode()
    assert payloads(raw, size) == [b"a", b"b\nc", b"d"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"a", b"{}", "ї".encode()]), st.sampled_from([b"\r", b"\n", b"\r\n"])
        ),
        max_size=8,
    ),
    st.integers(1, 9),
)
def test_mixed_line_ends(parts, size):
    raw = b"".join(b"data: " + text + end + end for text, end in parts)
    assert payloads(raw, size) == [text for text, _ in parts]


def test_a_lone_cr_completes_an_event_at_once():
    decoder = SSEDecoder()
    assert decoder.feed(b"data: a\r\r") == [b"a"]
    assert decoder.feed(b"\ndata: b\r\n\r") == [b"b"], "the LF belonged to the CR before it"


@pytest.mark.parametrize("size", [1, 4, 100])
def test_a_byte_order_mark_stands_before_the_first_line_alone(size):
    assert payloads(b"\xef\xbb\xbfdata: a\n\n", size) == [b"a"]
    assert payloads(b"\n\xef\xbb\xbfdata: a\n\n", size) == []


@pytest.mark.parametrize(
    "raw",
    [
        b"data:\n\n",
        b"data: \n\n",
        b"data\n\n",
        b":\n\n",
        b"event: ping\n\n",
        b"\n\n\n",
        b"retry: 5\n\n",
    ],
)
def test_events_without_data_dispatch_nothing(raw):
    assert payloads(raw + b"data: a\n\n") == [b"a"]


@pytest.mark.parametrize(
    "raw",
    [
        b'event: error\ndata: {"a": 1}\n\n',
        b'data: {"a": 1}\nevent:error\n\n',
        b'error: {"a": 1}\n\n',
    ],
)
def test_errors_are_known_from_contents(raw):
    (found,) = payloads(raw)
    assert (type(found), found.strip()) == (ErrorEvent, b'{"a": 1}')
    assert type(payloads(raw + b"data: x\n\n")[1]) is bytes


def test_the_cost_of_a_line_in_pieces_grows_with_their_number_alone():
    decoder, begun = SSEDecoder(), time.process_time()
    for _ in range(1 << 19):
        decoder.feed(b"x")
    assert time.process_time() - begun < 6, (
        "it takes 1 s; with a copy for each piece it took over a minute"
    )


@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_the_type_of_an_event_without_data_is_not_that_of_the_next(size):
    (found,) = payloads(b'event: error\n\ndata: {"choices": []}\n\n', size)
    assert type(found) is bytes


@pytest.mark.parametrize(
    "body",
    [b'{"error": {"message": "x"}}', b'[{"error": 1}]', b'{\n "error":\n {"data: 1": 2}\n}\n'],
)
@pytest.mark.parametrize("before", [b"", b": keep-alive\n\n", b"data: a\n\n", b"\n\n"])
def test_json_in_place_of_events_is_one_payload(body, before):
    assert payloads(before + body)[-1].strip() == body.strip()


@pytest.mark.parametrize("end", ["", "\n", "\r", "\r\n", "\n\n"])
def test_the_last_event_may_lack_its_blank_line(end):
    assert payloads(f"data: a\n\ndata: b{end}".encode()) == [b"a", b"b"]


def test_an_event_over_the_bound_is_refused():
    for raw in (
        b"data: " + b"x" * 100,
        b"data: 1234567\ndata: 1234567\n\n",
        b"{" + b"x" * 100 + b"\n\n",
    ):
        with pytest.raises(UpstreamInvalidResponse):
            payloads(raw, max_event_bytes=10)
