"""Accounting of one call: usage of each attempt, estimates, the settlement."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.llm.answers import StreamDelta, TokenUsage
from contracts.llm.limits import Caller, Spent
from contracts.llm.requests import ProxyRequest
from contracts.llm.routing import Route, Spill, Target, Timeouts
from services.llm.accounting import CallAccount, total_cost, total_usage
from services.llm.estimates import DEFAULT_COMPLETION_TOKENS, CallEstimate, prompt_tokens
from tests.support.llm.prices import NoPrices

TIMEOUTS = Timeouts(1, 1, 1, 1)
FIRST, SECOND, DEAR = (Target("openai", name, TIMEOUTS) for name in ("first", "second", "dear"))
ROUTE = Route("plain", (FIRST, SECOND))
USAGE = TokenUsage(
    prompt_tokens=10, completion_tokens=5, total_tokens=15, cached_tokens=4, reasoning_tokens=2
)
PIECE = StreamDelta(content="так")


class Pricelist:
    """A dollar a token at `dear`, a cent elsewhere; nothing is known of `second`."""

    def cost(self, target, usage):
        if target.name == "second":
            return None
        return usage.total_tokens * (Decimal(1) if target.name == "dear" else Decimal("0.01"))


class Book:
    """Event log, sink, limiter and reservation in one."""

    def __init__(self):
        self.events, self.records, self.settled, self.asked, self.begun = [], [], [], [], []

    def emit(self, event, **fields):
        self.events.append(fields)

    def begin(self, call):
        self.begun.append(call)
        return len(self.begun)

    def record(self, record, ticket=None):
        assert ticket == len(self.begun)
        assert record.id == self.begun[-1].id
        self.records.append(record)

    async def reserve(self, caller, estimate):
        self.asked.append((caller, estimate))
        return self

    def settle(self, spent):
        self.settled.append(spent)


def request(text="Hello", **fields):
    messages = [{"role": "user", "content": text}]
    return ProxyRequest.model_validate(
        {
            "model": "plain",
            "messages": messages,
            "metadata": {"agent_id": "a", "microdao_id": "m"},
            **fields,
        }
    )


def opened(book, asked=None, route=ROUTE, prices=None, *, streamed=True):
    return CallAccount(
        asked or request(),
        route,
        "r-1",
        "anonymous",
        streamed=streamed,
        events=book,
        sink=book,
        prices=prices or Pricelist(),
    )


async def test_each_attempt_has_its_own_usage_and_the_call_is_their_sum():
    book = Book()
    account = opened(book)
    await account.reserve(book)
    account.attempt(FIRST)
    account.attempt_ended("upstream_unavailable", USAGE)
    account.attempt(DEAR)
    account.attempt_ended("ok", USAGE)
    account.settle("ok")
    (record,) = book.records
    assert [
        (tried.physical_model, tried.total_tokens, tried.cost_usd) for tried in record.tries
    ] == [
        ("first", 15, Decimal("0.15")),
        ("dear", 15, Decimal(15)),
    ]
    assert (
        record.total_tokens,
        record.cached_tokens,
        record.reasoning_tokens,
        record.attempts,
    ) == (30, 8, 4, 2)
    assert record.cost_usd == Decimal("15.15")
    assert book.settled == [Spent(requests=1, tokens=30, nano_usd=15_150_000_000)]
    assert book.asked[0][0] == Caller("a", "m", "anonymous")


def test_streamed_tokens_are_counted_by_pieces_or_by_size():
    for content, pieces, completion in (("a", 10, 10), ("так", 10, 15), ("x" * 400, 2, 200)):
        book = Book()
        account = opened(book)
        account.attempt(FIRST)
        for _ in range(pieces):
            account.delta(StreamDelta(content=content))
        account.settle("cancelled")
        assert book.records[0].completion_tokens == completion


@pytest.mark.parametrize(
    ("outcome", "pieces", "prompt", "completion"),
    [
        ("cancelled", 0, True, 1),
        ("cancelled", 3, True, 5),
        ("upstream_timeout", 0, True, 1),
        ("deadline_exceeded", 0, True, 1),
        ("upstream_invalid_response", 2, True, 3),
        ("upstream_unavailable", 0, False, 0),
        ("upstream_rate_limited", 0, False, 0),
        ("context_length_exceeded", 0, False, 0),
    ],
)
def test_an_attempt_without_a_report_is_estimated_if_the_provider_may_have_worked(
    outcome, pieces, prompt, completion
):
    book = Book()
    account = opened(book)
    account.attempt(FIRST)
    for _ in range(pieces):
        account.delta(PIECE)
    account.settle(outcome)
    (record,) = book.records
    assert (record.prompt_tokens > 0, record.completion_tokens, record.estimated) == (
        prompt,
        completion,
        prompt,
    )
    assert record.tries[0].outcome == record.outcome == outcome
    assert (record.ttft_ms is not None) == (pieces > 0)


@pytest.mark.parametrize(
    ("outcome", "worked", "seconds", "max_tokens", "completion"),
    [
        ("cancelled", False, 4, None, 200),
        ("cancelled", False, 4, 20, 20),
        ("cancelled", False, 600, None, DEFAULT_COMPLETION_TOKENS),
        ("upstream_timeout", False, 4, None, 200),
        ("upstream_invalid_response", True, 4, None, 200),
        ("upstream_invalid_response", False, 4, None, 0),
        ("upstream_unavailable", False, 4, None, 0),
    ],
)
def test_a_whole_answer_that_was_cancelled_is_charged_by_its_time(
    monkeypatch, outcome, worked, seconds, max_tokens, completion
):
    book, now = Book(), [1000.0]
    monkeypatch.setattr("services.llm.accounting.time.monotonic", lambda: now[0])
    account = opened(book, request(max_tokens=max_tokens), streamed=False)
    account.attempt(FIRST)
    now[0] += seconds
    account.attempt_ended(outcome, worked=worked)
    account.settle(outcome)
    (record,) = book.records
    assert (record.completion_tokens, record.prompt_tokens > 0, record.estimated) == (
        completion,
        completion > 0,
        completion > 0,
    )


def test_a_broken_stream_has_the_usage_of_its_last_piece():
    book = Book()
    account = opened(book)
    account.attempt(FIRST)
    for tokens in range(1, 4):
        reported = TokenUsage(prompt_tokens=10, completion_tokens=tokens, total_tokens=10 + tokens)
        account.delta(PIECE.model_copy(update={"usage": reported}))
    account.delta(PIECE)
    account.settle("cancelled")
    (record,) = book.records
    assert (record.prompt_tokens, record.completion_tokens, record.estimated) == (10, 3, False)


def test_an_answer_without_usage_is_accounted_with_its_prompt():
    book = Book()
    account = opened(book)
    account.attempt(FIRST)
    account.attempt_ended("ok", TokenUsage(completion_tokens=5, total_tokens=5, estimated=True))
    account.settle("ok")
    (record,) = book.records
    assert record.prompt_tokens == prompt_tokens(request())
    assert (record.total_tokens, record.estimated) == (record.prompt_tokens + 5, True)


async def test_a_call_without_attempts_has_an_event_and_returns_its_reservation():
    book = Book()
    account = opened(book)
    await account.reserve(book)
    account.skipped(FIRST, "model_unavailable")
    account.settle("model_unavailable")
    assert (len(book.events), book.records, book.settled) == (1, [], [Spent(requests=0)])


async def test_settling_twice_is_settling_once():
    book = Book()
    account = opened(book)
    await account.reserve(book)
    account.attempt(FIRST)
    account.attempt_ended("ok", USAGE)
    for outcome in ("ok", "cancelled"):
        account.settle(outcome)
        account.attempt_ended("ok", USAGE)
    assert (len(book.events), len(book.records), len(book.settled)) == (1, 1, 1)


async def test_a_defect_in_the_prices_keeps_no_reservation():
    class Broken(Pricelist):
        def cost(self, target, usage):
            if usage == USAGE:
                raise ArithmeticError
            return

    book = Book()
    account = opened(book, prices=Broken())
    await account.reserve(book)
    account.attempt(FIRST)
    with pytest.raises(ArithmeticError):
        account.attempt_ended("ok", USAGE)
    account.settle("internal")
    assert book.settled == [Spent(requests=1, tokens=15)]

    class Breaking(Pricelist):
        def cost(self, target, usage):
            if usage.estimated:
                raise ArithmeticError
            return

    account = opened(book, prices=Breaking())
    await account.reserve(book)
    account.attempt(FIRST)
    with pytest.raises(ArithmeticError):
        account.settle("cancelled")
    assert len(book.settled) == 2


def test_a_cost_is_known_when_that_of_every_token_is():
    none = TokenUsage()
    assert total_cost([(USAGE, Decimal(1)), (USAGE, Decimal(2))]) == 3
    assert total_cost([(USAGE, Decimal(1)), (USAGE, None)]) is None
    assert total_cost([(none, None), (USAGE, Decimal(1))]) == 1
    assert total_cost([(none, None)]) is None
    assert total_cost([]) is None


def test_sums_of_usage_hold_the_known_counts():
    plain = TokenUsage(prompt_tokens=1, completion_tokens=1, total_tokens=2)
    assert total_usage([]) == TokenUsage()
    assert total_usage([TokenUsage(), USAGE]) == USAGE
    assert total_usage([plain, USAGE]).cached_tokens == 4
    assert total_usage([plain, plain]).cached_tokens is None
    assert total_usage([plain, plain.model_copy(update={"estimated": True})]).estimated


@pytest.mark.parametrize(
    ("asked", "completion"),
    [(request(max_tokens=7), 7), (request(), DEFAULT_COMPLETION_TOKENS)],
    ids=["max_tokens", "default"],
)
def test_an_estimate_is_prompt_and_longest_answer_at_the_dearest_target(asked, completion):
    assert CallEstimate(asked, ROUTE, NoPrices()).nano_usd == 0
    found = CallEstimate(asked, ROUTE, Pricelist())
    assert found.tokens == prompt_tokens(asked) + completion
    assert found.nano_usd == found.tokens * 10_000_000
    spilling = Route("plain", (FIRST,), spill=Spill((DEAR,), 1, 0))
    assert CallEstimate(asked, spilling, Pricelist()).nano_usd == found.tokens * 1_000_000_000


async def test_nothing_is_estimated_for_a_call_whose_limits_do_not_ask(monkeypatch):
    def asked(_):
        raise AssertionError("nobody wants to know")

    monkeypatch.setattr("services.llm.estimates.prompt_tokens", asked)
    book = Book()
    account = opened(book)
    await account.reserve(book)
    account.attempt(FIRST)
    account.attempt_ended("ok", USAGE)
    account.settle("ok")
    assert book.settled == [Spent(requests=1, tokens=15, nano_usd=150_000_000)]


@given(st.text(max_size=300))
def test_a_prompt_has_a_token_for_three_bytes(text):
    texts = text.encode("utf-8", "replace").decode()
    assert prompt_tokens(request(texts)) >= len(texts.encode()) / 3


def test_tools_parts_and_former_calls_count_as_prompt():
    tool = {
        "type": "function",
        "function": {"name": "find", "parameters": {"type": "object", "description": "x" * 300}},
    }
    assert prompt_tokens(request(tools=[tool])) > prompt_tokens(request()) + 100
    parts = ProxyRequest.model_validate(
        {
            "model": "plain",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "x" * 300},
                        {"type": "image_url", "image_url": {"url": "u"}},
                    ],
                },
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "1",
                            "type": "function",
                            "function": {"name": "find", "arguments": "y" * 300},
                        }
                    ],
                },
            ],
            "metadata": {"agent_id": "a", "microdao_id": "m"},
        }
    )
    assert prompt_tokens(parts) >= 200
