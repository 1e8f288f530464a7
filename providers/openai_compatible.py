"""Endpoints with OpenAI's chat completions: OpenAI, DeepSeek, Ollama, vLLM elsewhere, gateways."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import orjson
from anyio import WouldBlock
from typing_extensions import Unpack

from common.http.errors import HttpError
from common.tasks import close_if_closable
from configs.endpoints import opens_graph
from configs.llm.config import ProviderSettings
from contracts.deadline import Deadline
from contracts.errors import (
    ConfigurationError,
    DaarionError,
    Overloaded,
    UpstreamInvalidResponse,
)
from contracts.llm.answers import AnswerParts, LLMResponse, StreamDelta, StreamEnd, StreamItem
from contracts.llm.messages import ChatMessage
from contracts.llm.ports import ChatProvider
from contracts.llm.requests import ChatOptions
from contracts.llm.routing import Continuation, Target
from providers.errors import error_for_failure, error_for_status, in_band_error
from providers.event_stream import DONE, MAX_ANSWER_BYTES, EventStream, StreamClock
from providers.held_calls import Drain, HeldCall
from providers.quota import Quota, quota_of
from providers.registry import ProviderResources
from providers.shapes import StreamParser, chat_body, joined, parse_completion, whole_answer
from providers.sse import ErrorEvent, SSEDecoder
from providers.tool_fragments import parse_tool_calls
from providers.transport import HttpExchange, Transport
from providers.upstream_json import decoded

MAX_ERROR_BYTES = 64 << 10
MAX_JOINED_EVENTS = 16_384
"""Lines of one event that are parsed as events of their own when the event is no JSON: about 50 ms
of the event loop.
"""
REFUSAL_S = 2.0
"""How long the body of a refusal is awaited; its status is known."""
_EVENT_STREAM = (b"data:", b"event:", b":")
"""How an event stream begins; no JSON text does."""


class OpenAICompatibleProvider(ChatProvider):
    """`POST {base_url}/chat/completions` over pooled connections.

    Redirects are not followed; answers are bounded to 32 MiB after decompression. At most
    `max_connections` calls are in progress; another waits up to `connect_s` for a slot and is then
    refused as Overloaded, which does not count against the provider.
    """

    def __init__(self, name: str, settings: ProviderSettings, resources: ProviderResources) -> None:
        self.name = name
        self._who = f"provider `{name}`"
        self._extra = settings.extra_body
        self._max_tokens_field = settings.max_tokens_field
        self.continuation: Continuation = settings.continuation or "instruct"
        self._done_completes = settings.done_completes
        self._streams_all = settings.stream_whole_answers
        self._key = resources.secret(settings.api_key_env) if settings.api_key_env else None
        self._fault = _key_fault(settings.api_key_env, self._key, resources.secret)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"daarion-serve ({name})",
            **settings.headers,
        }
        if self._key and not self._fault:
            headers["Authorization"] = f"Bearer {self._key}"
        url = f"{settings.base_url}/chat/completions"
        try:
            proxy = settings.proxy_for(url, resources.secret, resources.proxy_for)
        except ConfigurationError as error:
            proxy, self._fault = None, str(error)
        self._transport = Transport(url, headers, proxy)
        self._slots = resources.slots.of(name, settings.max_connections)
        self._quotas: dict[str, Quota] = {}
        self._drain = Drain()

    def unavailable_reason(self) -> str | None:
        """Names a key that is missing or must not be sent, or a proxy that cannot be used."""
        return self._fault

    def quota_left(self, target: Target) -> float | None:
        """Returns the share of the rate limit that the last answer's headers gave, until it is
        reset.
        """
        quota = self._quotas.get(target.name)
        return None if quota is None or time.monotonic() >= quota.until else quota.share

    async def chat(
        self,
        messages: Sequence[ChatMessage],
        target: Target,
        deadline: Deadline,
        **options: Unpack[ChatOptions],
    ) -> LLMResponse:
        """Returns a whole answer.

        Raises UpstreamTimeout, Overloaded, or a kind of UpstreamError or InvalidRequest.
        """
        if self._streams_all:
            return await assembled(self.stream(messages, target, deadline, **options))
        body = self._body(messages, target, options, stream=False)
        held = await self._held(target, deadline)
        limit = deadline.at_most(target.timeouts.whole_s())
        try:
            exchange = await self._post(held, body, target, limit)
            payload = await exchange.whole(MAX_ANSWER_BYTES)
        except HttpError as error:
            raise error_for_failure(self._who, error, MAX_ANSWER_BYTES, limit) from None
        finally:
            held.end()
        if payload[:64].lstrip().startswith(_EVENT_STREAM):
            return await assembled(self._read_back(payload))
        try:
            # Some gateways append a stream's end mark to whole answers.
            return parse_completion(
                decoded(payload.rstrip().removesuffix(b"data: [DONE]")), self._reported
            )
        except ValueError:
            raise UpstreamInvalidResponse("the provider's answer is not valid JSON") from None

    async def stream(
        self,
        messages: Sequence[ChatMessage],
        target: Target,
        deadline: Deadline,
        **options: Unpack[ChatOptions],
    ) -> AsyncIterator[StreamItem]:
        """Yields deltas, then one StreamEnd. Raises as `chat`; a stream without its end is an
        error.
        """
        body = self._body(messages, target, options, stream=True)
        held = await self._held(target, deadline)
        try:
            clock = StreamClock(target, deadline.sooner(target.timeouts.total_s))
            exchange = await self._post(held, body, target, clock.limit_s())
            parser = StreamParser(done_completes=self._done_completes, leaf=self._reported)
            events = EventStream(exchange, parser, clock)
            while not events.ended:
                for payload in await events.next():
                    if (delta := self._delta(parser, payload)) is not None:
                        clock.content()
                        yield delta
            for item in self._ended(parser, marked=events.marked):
                if not exchange.ended and isinstance(item, StreamEnd):
                    self._drain.start(held.handed_over())
                yield item
        except HttpError as error:
            raise error_for_failure(self._who, error, MAX_ANSWER_BYTES) from None
        finally:
            held.end()

    async def close(self) -> None:
        """Closes the connections."""
        await self._drain.close()
        await self._transport.close()

    def _body(
        self, messages: Sequence[ChatMessage], target: Target, options: ChatOptions, *, stream: bool
    ) -> dict[str, Any]:
        return chat_body(
            target.name,
            messages,
            options,
            self._extra,
            stream=stream,
            max_tokens_field=self._max_tokens_field,
        )

    async def _held(self, target: Target, deadline: Deadline) -> HeldCall:
        """Takes a slot. Raises Overloaded, or DeadlineExceeded if that comes first."""
        slot = object()
        try:
            self._slots.acquire_on_behalf_of_nowait(slot)
        except WouldBlock:
            try:
                async with asyncio.timeout(
                    deadline.at_most(min(target.timeouts.connect_s, target.timeouts.total_s))
                ):
                    await self._slots.acquire_on_behalf_of(slot)
            except TimeoutError:
                deadline.check()
                raise Overloaded(
                    f"every connection to provider `{self.name}` is in use: retry shortly"
                ) from None
        return HeldCall(self._slots, slot)

    async def _post(
        self, held: HeldCall, body: dict[str, Any], target: Target, limit_s: float
    ) -> HttpExchange:
        """Returns the exchange of a success, once its head is here; `held` ends it.

        Raises HttpError, or the error for a refusal.
        """
        exchange = held.exchange = await self._transport.post(
            orjson.dumps(body), connect_s=target.timeouts.connect_s, limit_s=limit_s
        )
        if (quota := quota_of(exchange.headers, time.monotonic())) is not None:
            self._quotas[target.name] = quota  # as many as there are models in the configuration
        if exchange.status != 200:
            raise await self._refusal(exchange)
        return exchange

    async def _refusal(self, exchange: HttpExchange) -> DaarionError:
        payload: object = None
        exchange.expires_at = min(exchange.expires_at, time.monotonic() + REFUSAL_S)
        with contextlib.suppress(HttpError):
            body = await exchange.whole(MAX_ERROR_BYTES)
            try:
                payload = decoded(body)
            except ValueError:
                payload = (
                    None if body.lstrip().startswith(b"<") else body.decode("utf-8", "replace")
                )
        return error_for_status(self._who, exchange.status, exchange.headers, payload, self._key)

    def _reported(self, error: object) -> DaarionError:
        """Returns the error for one inside an answer, without our key."""
        return in_band_error(error, self._key, self._who)

    def _delta(self, parser: StreamParser, payload: bytes) -> StreamDelta | None:
        """Returns what one event adds to the answer. Raises the error that it reports."""
        try:
            chunk = parser.texts.decoded(payload)
        except ValueError:
            if isinstance(payload, ErrorEvent):
                raise self._reported(payload.decode("utf-8", "replace")) from None
            if 0 < payload.count(b"\n") < MAX_JOINED_EVENTS:  # blank lines are missing
                lines = [line for line in payload.split(b"\n") if line.strip() not in {b"", DONE}]
                return joined([self._delta(parser, line) for line in lines])
            parser.skipped += 1
            return None
        if isinstance(payload, ErrorEvent) and isinstance(chunk, dict):
            raise self._reported(chunk.get("error") or chunk)
        return parser.feed(chunk)

    def _ended(self, parser: StreamParser, *, marked: bool) -> list[StreamItem]:
        """Returns the last items of a stream.

        Raises UpstreamInvalidResponse if its end is missing, or nothing in it was readable.
        """
        if marked:
            parser.end_marked()
        if parser.finish_reason is None or (parser.unreadable and not parser.has_content):
            unreadable = (
                f" ({parser.unreadable} of its events were unreadable)" if parser.unreadable else ""
            )
            raise UpstreamInvalidResponse(
                f"{self._who} ended its stream before the answer was complete{unreadable}"
            )
        end = StreamEnd(
            finish_reason=parser.finish_reason,
            usage=parser.final_usage(),
            unreadable=parser.unreadable or None,
        )
        last = parser.last_delta()
        return [end] if last is None else [last, end]

    async def _read_back(self, payload: bytes) -> AsyncIterator[StreamItem]:
        """Yields the items of a stream that was sent where a whole answer was requested."""
        parser, decoder = (
            StreamParser(done_completes=True, leaf=self._reported),
            SSEDecoder(MAX_ANSWER_BYTES),
        )
        marked = False
        for event in [*decoder.feed(payload), *decoder.finish()]:
            if marked := event.strip() == DONE:
                break
            if (delta := self._delta(parser, event)) is not None:
                yield delta
        for item in self._ended(parser, marked=marked):
            yield item


async def assembled(items: AsyncIterator[StreamItem]) -> LLMResponse:
    """Assembles a whole answer from a stream, so that silence is noticed after first-token or idle
    time.

    Returns the answer that `items` add up to, and closes them.

    Raises:
        UpstreamInvalidResponse: tool calls are incomplete, or a value is over a bound of ours.
        DaarionError: as the stream.
    """
    parts = AnswerParts()
    end: StreamEnd | None = None
    try:
        async for item in items:
            if isinstance(item, StreamEnd):
                end = item
            else:
                parts.add(item)
    finally:
        await close_if_closable(items)
    if end is None:
        raise UpstreamInvalidResponse(
            "the provider ended its stream before the answer was complete"
        )
    fields = parts.fields(end)
    fields["tool_calls"] = parse_tool_calls(fields["tool_calls"])
    return whole_answer(**fields)


Provider = OpenAICompatibleProvider
"""The name that the registry looks up."""


def _key_fault(
    name: str | None, key: str | None, lookup: Callable[[str], str | None]
) -> str | None:
    if name is None:
        return None
    if not key:
        return f"{name} is not set"
    if not key.isprintable():
        return f"{name} holds a control character"
    return (
        f"{name} holds a secret of this graph: give the provider a key of its own"
        if opens_graph(key, lookup)
        else None
    )
