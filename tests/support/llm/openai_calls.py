"""One call of the OpenAI-compatible adapter and everything that came of it."""

from __future__ import annotations

import json
import pickle
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from contracts.deadline import Deadline
from contracts.errors import DaarionError
from contracts.llm.answers import LLMResponse, StreamDelta, StreamEnd
from contracts.llm.routing import Target, Timeouts
from providers.openai_compatible import OpenAICompatibleProvider
from tests.support.llm.upstream import Play, ScriptedUpstream

KEY = "sk-test-K3yTh4tMustN3verL3ak0123456789"
FAST = Timeouts(connect_s=0.3, first_token_s=0.3, idle_s=0.3, total_s=0.5)
CALM = Timeouts(connect_s=5, first_token_s=10, idle_s=10, total_s=10)
QUESTION = [
    {"role": "system", "content": "Ти помічник."},
    {"role": "user", "content": "раз два три"},
]
ANSWER = "Echo: раз два три"
SLACK_S = 5.0  # a busy machine is late, a missing bound is not late but never
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


def named(value: object) -> str | None:
    """Test ids: a behaviour by its name and options, a mode by its name."""
    if isinstance(value, bool):
        return "stream" if value else "whole"
    return f"{value.name}{dict(value.options) or ''}" if isinstance(value, Play) else ""


@dataclass
class Outcome:
    """What one call gave, streaming or not."""

    text: str = ""
    reasoning: str = ""
    fragments: list[dict] = field(default_factory=list)
    response: LLMResponse | None = None
    end: StreamEnd | None = None
    error: DaarionError | None = None
    seconds: float = 0.0

    @property
    def usage(self):
        return (self.response or self.end).usage

    @property
    def finish_reason(self):
        return (self.response or self.end).finish_reason


async def call(
    provider: OpenAICompatibleProvider,
    *,
    stream: bool,
    timeouts: Timeouts = CALM,
    deadline_s: float = 20,
    model: str = "m",
    **options: Any,
) -> Outcome:
    """Makes one call and keeps whatever came, error included.

    Anything but a leaf of the tree escapes.
    """
    outcome = Outcome()
    target, deadline, started = (
        Target("openai", model, timeouts),
        Deadline.after(deadline_s),
        time.monotonic(),
    )
    try:
        if stream:
            async for item in provider.stream(QUESTION, target, deadline, **options):
                _add(outcome, item)
        else:
            outcome.response = await provider.chat(QUESTION, target, deadline, **options)
            outcome.text, outcome.reasoning = (
                outcome.response.content,
                outcome.response.reasoning or "",
            )
    except DaarionError as error:
        outcome.error = error
    outcome.seconds = time.monotonic() - started
    return outcome


def _add(outcome: Outcome, item: StreamDelta | StreamEnd) -> None:
    assert outcome.end is None, "an item after the end"
    if isinstance(item, StreamEnd):
        outcome.end = item
        return
    outcome.text += item.content or ""
    outcome.reasoning += item.reasoning or ""
    outcome.fragments += item.tool_calls or []


def assert_leaf(
    error: DaarionError | None, kind: type[DaarionError], upstream: ScriptedUpstream | None = None
) -> None:
    """Checks the leaf: no key, address, path or class name in it, and it survives pickling."""
    assert type(error) is kind, repr(error)
    shown = json.dumps(error.envelope("r"), ensure_ascii=False) + str(error) + repr(error)
    for secret in (
        KEY,
        KEY[:12],
        "http:",
        "https:",
        "127.0.0.1",
        "/srv/",
        "aiohttp",
        "httptools",
        "Traceback",
        *([str(upstream.port)] if upstream else []),
    ):
        assert secret not in shown
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.envelope("r"), copy.retry_after_s) == (
        kind,
        error.envelope("r"),
        error.retry_after_s,
    )
