"""Every oddity of `tests/support/llm/upstream/corpus`, from the provider's socket to the caller's:
our own routes, and OpenAI's with its client.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from tests.support.llm.proxy import CALLER, ingress_of, proxy_over
from tests.support.llm.proxy_http import events_of
from tests.support.llm.upstream import ScriptedUpstream
from tests.support.llm.upstream.corpus import Case, cases
from tests.support.uvicorn_server import served

CASES = cases()
MESSAGES = [{"role": "user", "content": "?"}]
OFFICIAL = "-official"
"""Each surface has a target of its own: what one call taught the circuits does not meet the other.
"""
USAGE = {"prompt": "prompt_tokens", "completion": "completion_tokens", "total": "total_tokens"}


@dataclass
class Outcome:
    """The answer or error that a caller received, on either surface."""

    content: str = ""
    reasoning: str = ""
    refusal: str = ""
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    finish: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    by: str | None = None
    status: int = 200
    error: str | None = None
    message: str = ""
    retry_after: str | None = None

    def join(self, fragments: list[dict[str, Any]] | None) -> None:
        for fragment in fragments or ():
            call = self.calls.setdefault(
                fragment["index"], {"id": fragment.get("id"), "name": "", "arguments": ""}
            )
            call["name"] += fragment["function"].get("name") or ""
            call["arguments"] += fragment["function"]["arguments"]

    def failed(self, status: int, error: dict[str, Any], kind: str) -> None:
        self.status, self.error, self.message = status, error[kind], error["message"]


@dataclass(frozen=True)
class Running:
    upstream: ScriptedUpstream
    recorder: Any
    url: str
    http: httpx.AsyncClient
    client: openai.AsyncOpenAI


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running() -> AsyncIterator[Running]:
    models = {
        name: {
            "provider": "openai",
            "name": name,
            "fallbacks": ["spare"] if case.fallback else [],
            "retry": {"attempts": 1},
            "timeouts": {"first_token_s": 8, "idle_s": 8, "total_s": 10},
        }
        for case in CASES
        for name in (case.id, f"{case.id}{OFFICIAL}")
    }
    async with (
        ScriptedUpstream() as upstream,
        proxy_over(upstream.base_url, **models) as (proxy, recorder),
    ):
        for case in CASES:
            for name in (case.id, f"{case.id}{OFFICIAL}"):
                upstream.script(case.play(), model=name)
        async with (
            served(ingress_of(proxy, recorder), root_path="/internal/llm") as url,
            httpx.AsyncClient(timeout=20) as http,
        ):
            client = openai.AsyncOpenAI(
                api_key="x", base_url=f"{url}/v1", max_retries=0, http_client=http
            )
            yield Running(upstream, recorder, url, http, client)


async def by_our_routes(running: Running, case: Case) -> Outcome:
    body = {"model": case.id, "messages": MESSAGES, "metadata": CALLER, **case.request}
    path = "/stream" if case.stream else "/proxy"
    response = await running.http.post(f"{running.url}{path}", json=body, headers=case.headers)
    found = Outcome(status=response.status_code, retry_after=response.headers.get("retry-after"))
    if response.status_code != 200:
        found.failed(response.status_code, response.json()["error"], "type")
    elif case.stream:
        for name, event in events_of(response.text):
            if name == "error":
                found.failed(200, event["error"], "type")
                break
            found.content += event.get("delta", "")
            found.reasoning += event.get("reasoning_delta", "")
            found.refusal += event.get("refusal_delta", "")
            found.join(event.get("tool_calls"))
            found.finish, found.by = event.get("finish_reason"), event.get("model_resolved")
            found.usage = event.get("usage", {})
    else:
        answer = response.json()
        found.content, found.reasoning = answer["content"], answer.get("reasoning_content", "")
        found.refusal, found.finish, found.by = (
            answer.get("refusal", ""),
            answer.get("finish_reason"),
            answer["model_resolved"],
        )
        found.usage = answer["usage"]
        found.join(
            [{"index": place, **call} for place, call in enumerate(answer.get("tool_calls") or [])]
        )
    return found


async def by_the_official_client(running: Running, case: Case) -> Outcome:
    found = Outcome()
    more = {**case.request, "metadata": case.request.get("metadata", CALLER)}
    body = {"model": f"{case.id}{OFFICIAL}", "messages": more.pop("messages", MESSAGES)}
    try:
        if case.stream:
            usage = {"stream_options": {"include_usage": True}}
            asked = running.client.chat.completions.stream(
                **body, **usage, extra_body=more, extra_headers=case.headers
            )
            async with asked as stream:
                async for event in stream:
                    if event.type == "chunk":
                        _add(found, event.chunk)
                # What the client itself made of the chunks.
                final = (await stream.get_final_completion()).choices[0].message
            assert (final.content or "") == found.content
            assert [
                (call.function.name, call.function.arguments) for call in final.tool_calls or []
            ] == [(call["name"], call["arguments"]) for _, call in sorted(found.calls.items())]
        else:
            answer = await running.client.chat.completions.create(
                **body, extra_body=more, extra_headers=case.headers
            )
            message = answer.choices[0].message
            found.content, found.refusal = message.content or "", message.refusal or ""
            found.reasoning = getattr(message, "reasoning_content", None) or ""
            found.finish, found.by = answer.choices[0].finish_reason, answer.model
            found.usage = _flat(answer.usage.model_dump(exclude_none=True))
            found.join(
                [
                    {"index": place, **call.model_dump()}
                    for place, call in enumerate(message.tool_calls or [])
                ]
            )
    except (openai.LengthFinishReasonError, openai.ContentFilterFinishReasonError):
        pass  # the client's own way to tell of them, once the chunks are read
    except openai.APIStatusError as error:
        found.failed(error.status_code, {"code": error.code, "message": error.message}, "code")
        found.retry_after = error.response.headers.get("retry-after")
    except openai.APIError as error:
        found.failed(200, {"code": error.code, "message": error.message}, "code")
    return found


def _add(found: Outcome, chunk: Any) -> None:
    if chunk.usage is not None:
        found.usage = _flat(chunk.usage.model_dump(exclude_none=True))
    for choice in chunk.choices:
        found.content += choice.delta.content or ""
        found.reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        found.refusal += choice.delta.refusal or ""
        found.join([call.model_dump() for call in choice.delta.tool_calls or []])
        found.finish, found.by = choice.finish_reason or found.finish, chunk.model


def _flat(usage: dict[str, Any]) -> dict[str, Any]:
    cached = usage.pop("prompt_tokens_details", {}).get("cached_tokens")
    reasoning = usage.pop("completion_tokens_details", {}).get("reasoning_tokens")
    return {**usage, "cached_tokens": cached, "reasoning_tokens": reasoning}


def check(case: Case, found: Outcome) -> None:
    wanted = case.expect
    error = wanted.get("error")
    if error is not None:
        status, kind = error if isinstance(error, list) else (200, error)
        assert (found.status, found.error) == (status, kind), found
        assert wanted.get("error_text", "") in found.message
    else:
        assert found.error is None, found
    if "retry_after" in wanted:
        assert found.retry_after == wanted["retry_after"]
    for name in ("content", "reasoning", "refusal", "finish", "by"):
        if name in wanted:
            assert getattr(found, name) == wanted[name], found
    if error is None:
        calls = [call for _, call in sorted(found.calls.items())]
        assert [[call["name"], call["arguments"]] for call in calls] == wanted.get("calls", [])
        assert len({call["id"] for call in calls if call["id"]}) == len(calls), (
            "each call has an id of its own"
        )
    for name, count in wanted.get("usage", {}).items():
        assert (
            found.usage.get(USAGE.get(name, name if name == "estimated" else f"{name}_tokens"))
            == count
        ), found.usage


def check_sent(case: Case, running: Running) -> None:
    sent = running.upstream.requests[-1].body
    for name, value in case.expect.get("sent", {}).items():
        assert sent.get(name) == value, sent
        assert value is not None or name not in sent, sent
    if "caller" in case.expect:
        record = running.recorder.records[-1]
        assert [record.agent_id, record.microdao_id] == case.expect["caller"]
    if "unreadable" in case.expect:
        (*_, event) = (event for event in running.recorder.events if event["event"] == "llm.call")
        assert event["unreadable_events"] == case.expect["unreadable"]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
async def test_each_case_gives_the_expected_answer_and_request(running, case):
    for ask in (by_our_routes, by_the_official_client):
        found = await ask(running, case)
        check(case, found)
        check_sent(case, running)


def test_the_corpus_is_one():
    assert len(CASES) >= 100
    assert len({case.id for case in CASES}) == len(CASES)
    assert len(
        {
            json.dumps([case.upstream, case.request, case.headers, case.stream], sort_keys=True)
            for case in CASES
        }
    ) == len(CASES)
    for case in CASES:
        assert case.source.startswith("https://github.com/"), case.id
        assert case.expect, case.id
        assert case.what.endswith("."), case.id
