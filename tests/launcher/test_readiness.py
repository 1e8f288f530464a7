"""The lines that the launcher prints while the graph starts."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from launcher import readiness


def test_names_what_is_awaited():
    body = {
        "status": "starting",
        "checks": {
            "database": {"state": "ready", "age_s": 1},
            "local_llm": {"state": "starting", "age_s": 0, "reason": "loading\nweights"},
            "nats": {"state": "unavailable"},
        },
    }
    assert readiness.describe(body) == "local_llm (starting: loading weights), nats (unavailable)"


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_answer_gives_one_short_line(body):
    for each in (body, {"checks": body}):
        line = readiness.describe(each)
        assert line
        assert len(line.splitlines()) == 1
        assert len(line) < 260


async def test_waits_until_every_part_is_ready_and_says_what_changes():
    said = await said_of(
        b"503 x\r\n\r\n{}",
        b'503 x\r\n\r\n{"checks":{"a":{"state":"starting"}}}',
        b'200 OK\r\n\r\n{"status":"degraded","checks":{"b":{"state":"starting"}}}',
        b'200 OK\r\n\r\n{"status":"ready"}',
    )
    assert said == [
        "waiting for the applications (not deployed yet)",
        "waiting for a (starting)",
        "waiting for b (starting)",
    ]


async def test_presents_the_secret_because_the_parts_are_shown_to_callers_with_a_credential():
    heads: list[bytes] = []
    await said_of(b'200 OK\r\n\r\n{"status":"ready"}', heads=heads)
    assert b"\r\nx-internal-secret: s3cret\r\n" in heads[0].lower()


async def test_optional_parts_are_not_awaited_for_long():
    degraded = b'200 OK\r\n\r\n{"status":"degraded","checks":{"b":{"state":"unavailable"}}}'
    said = await said_of(degraded, degraded, grace_s=0.4)
    assert said == ["waiting for b (unavailable)", "continuing without b (unavailable)"]


async def said_of(
    *given: bytes, grace_s: float = 60, heads: list[bytes] | None = None
) -> list[str]:
    answers = iter(given)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if heads is not None:
            heads.append(head)
        writer.write(b"HTTP/1.1 " + next(answers))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/health"
        said: list[str] = []
        await asyncio.wait_for(readiness.until_ready(url, "s3cret", said.append, grace_s), 10)
    assert await readiness.is_ready(url, None) == "the ingress (no answer yet)"
    return said
