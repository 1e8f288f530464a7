"""Any endpoint that speaks OpenAI's chat completions: OpenAI, DeepSeek, Ollama, another vLLM, a gateway."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import orjson
from anyio import CapacityLimiter, WouldBlock
from typing_extensions import Unpack

from configs.llm.config import Continuation, ProviderSettings
from configs.own_secrets import opens_graph
from contracts.deadline import Deadline
from contracts.errors import (
    DaarionError,
    Overloaded,
    UpstreamInvalidResponse,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from contracts.llm.answers import LLMResponse, StreamDelta, StreamEnd, StreamItem
from contracts.llm.messages import ChatMessage
from contracts.llm.ports import Condition
from contracts.llm.requests import ChatOptions
from contracts.llm.routing import Target
from providers.assembly import assembled
from providers.continuation import continued
from providers.errors import error_for_status, in_band_error
from providers.http_exchange import (
    AnswerCutOff,
    AnswerTooLarge,
    ConnectFailed,
    ConnectionBroken,
    ConnectTimedOut,
    Exchange,
    HttpError,
    TimedOut,
)
from providers.http_pool import HttpPool
from providers.quota import Quota, quota_of
from providers.resources import ProviderResources
from providers.shapes import StreamParser, chat_body, joined, parse_completion
from providers.sse import ErrorEvent, SSEDecoder
from providers.upstream_json import decoded

MAX_ANSWER_BYTES = 32 << 20
MAX_ERROR_BYTES = 64 << 10
MAX_JOINED_EVENTS = 16_384
"""How many lines of an event that is no JSON are read as events of their own: about 50 ms of the event loop."""
REFUSAL_S = 2.0
"""How long the body of a refusal is waited for; its status is known."""
USAGE_GRACE_S = 2.0
"""How long a stream is held open for its usage after the finish reason: not every upstream closes or says [DONE]."""
DETAILS_GRACE_S = 0.25
"""How long one is held open after a usage without details: vLLM sends the cached tokens in a second one."""

DRAIN_S = 0.05
"""How long the end of a finished stream's body is waited for, so that its connection can be used again."""
MAX_DRAINED_BYTES = 64 << 10

_DONE = b"[DONE]"
_EVENT_STREAM = (b"data:", b"event:", b":")
"""How a stream of events begins, and no JSON text."""


class Provider:
    """`POST {base_url}/chat/completions` over the replica's pooled client.

    Redirects are not followed, the environment's proxies not used, answers bounded to 32 MiB after decompression. At most
    `max_connections` calls are under way; another waits up to `connect_s` for its turn and is then refused as Overloaded, which
    says nothing against the provider.
    """

    def __init__(self, name: str, settings: ProviderSettings, resources: ProviderResources) -> None:
        self.name = name
        self._extra = settings.extra_body
        self._max_tokens_field = settings.max_tokens_field
        self._continuation: Continuation = settings.continuation or "instruct"
        self._done_completes = settings.done_completes
        self._streams_all = settings.stream_whole_answers
        self._key = resources.secret(settings.api_key_env) if settings.api_key_env else None
        self._key_fault = _key_fault(settings.api_key_env, self._key, resources.secret)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"daarion-serve ({name})",
            **settings.headers,
        }
        if self._key and not self._key_fault:
            headers["Authorization"] = f"Bearer {self._key}"
        self._pool = HttpPool(f"{settings.base_url}/chat/completions", headers)
        self._turns = resources.turns.of(name, settings.max_connections)
        self._quotas: dict[str, Quota] = {}
        self._draining: set[asyncio.Task[None]] = set()

    def unavailable_reason(self) -> str | None:
        """Names the key, if one is configured and absent, or cannot or must not be sent."""
        return self._key_fault

    def condition(self) -> Condition:
        """A remote provider is only known by calling it."""
        return Condition()

    def quota_left(self, target: Target) -> float | None:
        """What the last answer's headers said, until the limit is whole again."""
        quota = self._quotas.get(target.name)
        return None if quota is None or time.monotonic() >= quota.until else quota.share

    async def chat(
        self,
        messages: Sequence[ChatMessage],
        target: Target,
        deadline: Deadline,
        **options: Unpack[ChatOptions],
    ) -> LLMResponse:
        """Returns one whole answer. Raises leaves of UpstreamError or InvalidRequest, UpstreamTimeout, or Overloaded."""
        if self._streams_all:
            return await assembled(self.stream(messages, target, deadline, **options))
        body = self._body(messages, target, options, stream=False)
        held = await self._turn(target, deadline)
        limit = deadline.at_most(target.timeouts.whole_s())
        try:
            exchange = await self._post(held, body, target, limit)
            payload = await exchange.whole(MAX_ANSWER_BYTES)
        except HttpError as error:
            raise self._leaf(error, limit) from None
        finally:
            held.end()
        if payload[:64].lstrip().startswith(_EVENT_STREAM):
            return await assembled(self._read_back(payload))
        try:
            # Some gateways end a whole answer, too, with the mark of a stream's end.
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
        """Yields deltas, then one StreamEnd. Raises as `chat`; a stream without its end is an error."""
        body = self._body(messages, target, options, stream=True)
        held = await self._turn(target, deadline)
        try:
            clock = _StreamClock(target, deadline.sooner(target.timeouts.total_s))
            exchange = await self._post(held, body, target, clock.limit_s())
            parser = StreamParser(done_completes=self._done_completes, leaf=self._reported)
            events = _Events(exchange, parser, clock)
            while not events.ended:
                for payload in await events.next():
                    if (delta := self._delta(parser, payload)) is not None:
                        clock.content()
                        yield delta
            for item in self._ended(parser, marked=events.marked):
                if not exchange.ended and isinstance(item, StreamEnd):
                    self._drain_later(held.handed_over())
                yield item
        except HttpError as error:
            raise self._leaf(error, None) from None
        finally:
            held.end()

    def continued(
        self, messages: Sequence[ChatMessage], text: str, options: ChatOptions
    ) -> tuple[list[ChatMessage], ChatOptions] | None:
        """Returns the call that asks for the rest of an answer, in the provider's dialect."""
        return continued(self._continuation, messages, text, options)

    async def close(self) -> None:
        """Closes the connections."""
        draining = list(self._draining)
        for task in draining:
            task.cancel()
        await asyncio.gather(*draining, return_exceptions=True)
        self._pool.close()

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

    async def _turn(self, target: Target, deadline: Deadline) -> _Held:
        """Takes one of the provider's connections. Raises Overloaded, or DeadlineExceeded where that comes first."""
        turn = object()
        try:
            self._turns.acquire_on_behalf_of_nowait(turn)
        except WouldBlock:
            try:
                async with asyncio.timeout(
                    deadline.at_most(min(target.timeouts.connect_s, target.timeouts.total_s))
                ):
                    await self._turns.acquire_on_behalf_of(turn)
            except TimeoutError:
                deadline.check()
                raise Overloaded(
                    f"every connection to provider `{self.name}` is in use: retry shortly"
                ) from None
        return _Held(self._turns, turn)

    async def _post(
        self, held: _Held, body: dict[str, Any], target: Target, limit_s: float
    ) -> Exchange:
        """Returns the exchange once its head is here, a success; `held` ends it. Raises HttpError, or the leaf of a refusal."""
        exchange = held.exchange = await self._pool.post(
            orjson.dumps(body), connect_s=target.timeouts.connect_s, limit_s=limit_s
        )
        if (quota := quota_of(exchange.headers, time.monotonic())) is not None:
            self._quotas[target.name] = quota  # as many as there are models in the configuration
        if exchange.status != 200:
            raise await self._refusal(exchange)
        return exchange

    async def _refusal(self, exchange: Exchange) -> DaarionError:
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
        return error_for_status(self.name, exchange.status, exchange.headers, payload, self._key)

    def _reported(self, error: object) -> DaarionError:
        """The leaf of an error inside an answer, without our key."""
        return in_band_error(error, self._key, self.name)

    def _delta(self, parser: StreamParser, payload: bytes) -> StreamDelta | None:
        """Returns what one event adds to the answer. Raises the leaf of an error that it reports."""
        try:
            chunk = parser.texts.decoded(payload)
        except ValueError:
            if isinstance(payload, ErrorEvent):
                raise self._reported(payload.decode("utf-8", "replace")) from None
            if 0 < payload.count(b"\n") < MAX_JOINED_EVENTS:  # events whose blank lines are missing
                lines = [line for line in payload.split(b"\n") if line.strip() not in {b"", _DONE}]
                return joined([self._delta(parser, line) for line in lines])
            parser.skipped += 1
            return None
        if isinstance(payload, ErrorEvent) and isinstance(chunk, dict):
            raise self._reported(chunk.get("error") or chunk)
        return parser.feed(chunk)

    def _ended(self, parser: StreamParser, *, marked: bool) -> list[StreamItem]:
        """Returns the last items of a stream. Raises UpstreamInvalidResponse where its end is missing, or nothing of it could be read."""
        if marked:
            parser.end_marked()
        if parser.finish_reason is None or (parser.unreadable and not parser.has_content):
            unreadable = (
                f" ({parser.unreadable} of its events were unreadable)" if parser.unreadable else ""
            )
            raise UpstreamInvalidResponse(
                f"provider `{self.name}` ended its stream before the answer was complete{unreadable}"
            )
        end = StreamEnd(
            finish_reason=parser.finish_reason,
            usage=parser.final_usage(),
            unreadable=parser.unreadable or None,
        )
        last = parser.last_delta()
        return [end] if last is None else [last, end]

    async def _read_back(self, payload: bytes) -> AsyncIterator[StreamItem]:
        """Yields the items of a stream that came whole, although none was asked for."""
        parser, decoder = (
            StreamParser(done_completes=True, leaf=self._reported),
            SSEDecoder(MAX_ANSWER_BYTES),
        )
        marked = False
        for event in [*decoder.feed(payload), *decoder.finish()]:
            if marked := event.strip() == _DONE:
                break
            if (delta := self._delta(parser, event)) is not None:
                yield delta
        for item in self._ended(parser, marked=marked):
            yield item

    def _drain_later(self, held: _Held) -> None:
        """Reads a finished stream to the end of its body, out of the caller's way, and lets its connection go."""
        task = asyncio.create_task(_drain(held), name="drain")
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)

    def _leaf(self, error: HttpError, limit: float | None) -> DaarionError:
        """The one place where what went wrong on the wire becomes a leaf."""
        match error:
            case ConnectTimedOut():
                return UpstreamTimeout(f"provider `{self.name}` could not be connected to in time")
            case ConnectFailed():
                return UpstreamUnavailable(f"provider `{self.name}` cannot be reached")
            case ConnectionBroken():
                return UpstreamUnavailable(f"provider `{self.name}` broke the connection")
            case AnswerCutOff():
                cut_off = UpstreamInvalidResponse(f"provider `{self.name}` cut its answer off")
                cut_off.begun = True
                return cut_off
            case AnswerTooLarge():
                return UpstreamInvalidResponse(
                    f"the provider's answer is over {MAX_ANSWER_BYTES >> 20} MiB"
                )
            case TimedOut():
                within = f" within {limit:.3g} s" if limit else " in time"
                return UpstreamTimeout(f"provider `{self.name}` did not answer{within}")
            case _:
                return UpstreamInvalidResponse(f"provider `{self.name}` answered no valid HTTP")


class _Held:
    """What one call holds of its provider: a turn, and the exchange once it is there. `end` lets go of both, once."""

    __slots__ = ("_turn", "_turns", "exchange")

    def __init__(self, turns: CapacityLimiter, turn: object) -> None:
        self._turns: CapacityLimiter | None = turns
        self._turn = turn
        self.exchange: Exchange | None = None

    def end(self) -> None:
        if self._turns is None:
            return
        turns, self._turns = self._turns, None
        if self.exchange is not None:
            self.exchange.release()
        turns.release_on_behalf_of(self._turn)

    def handed_over(self) -> _Held:
        """Moves what this one holds to a new owner, who must end it, and returns that."""
        assert self._turns is not None
        other = _Held(self._turns, self._turn)
        other.exchange, self._turns = self.exchange, None
        return other


class _Events:
    """The events of a stream, up to `[DONE]` (it is `marked`, then), the end of the body, or the grace after the finish reason."""

    def __init__(self, exchange: Exchange, parser: StreamParser, clock: _StreamClock) -> None:
        self._exchange = exchange
        self._parser = parser
        self._clock = clock
        self._decoder = SSEDecoder()
        self._size = 0
        self._grace: Deadline | None = None
        self._counted = False
        self.ended = False
        self.marked = False

    async def next(self) -> list[bytes]:
        """Returns the payloads that came next, perhaps none. Raises HttpError where the answer is not finished."""
        if self._parser.finish_reason and self._grace is None:
            self._grace = Deadline.after(USAGE_GRACE_S)
        if self._parser.counted_at_end and not self._counted:
            self._counted, self._grace = (
                True,
                Deadline.after(0 if self._parser.has_details else DETAILS_GRACE_S),
            )
        if self._grace is not None and self._grace.remaining() <= 0:
            self.ended = True
            return []
        self._exchange.expires_at = self._clock.expires_at(self._grace)
        try:
            chunk = await self._exchange.read()
        except HttpError:
            if not self._parser.finish_reason:
                raise
            self.ended = True
            return []
        self._size += len(chunk)
        if self._size > MAX_ANSWER_BYTES:
            raise AnswerTooLarge
        self.ended = not chunk
        return self._before_done(self._decoder.feed(chunk) if chunk else self._decoder.finish())

    def _before_done(self, payloads: list[bytes]) -> list[bytes]:
        for place, payload in enumerate(payloads):
            if payload.strip() == _DONE:
                self.ended = self.marked = True
                return payloads[:place]
        return payloads


class _StreamClock:
    """Bounds each wait of a stream: to the first content token, then between tokens, always to the deadline.

    Only content moves it on, so that keep-alive frames do not keep a silent stream open.
    """

    def __init__(self, target: Target, deadline: Deadline) -> None:
        self._timeouts = target.timeouts
        self._deadline = deadline
        self._until = Deadline.after(target.timeouts.begin_s())

    def content(self) -> None:
        """Notes that content arrived."""
        self._until = Deadline.after(self._timeouts.idle_s)

    def expires_at(self, grace: Deadline | None = None) -> float:
        """Returns the end of the next wait, in monotonic seconds; `grace` stands in the place of the bound between tokens."""
        return min(self._deadline.at, (grace or self._until).at)

    def limit_s(self) -> float:
        """Seconds until then."""
        return self._deadline.at_most(self._until.remaining())


async def _drain(held: _Held) -> None:
    assert held.exchange is not None
    held.exchange.expires_at = time.monotonic() + DRAIN_S
    try:
        with contextlib.suppress(HttpError):
            size = 0
            while (chunk := await held.exchange.read()) and size <= MAX_DRAINED_BYTES:
                size += len(chunk)
    finally:
        held.end()


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
        f"{name} opens this graph: give the provider a key of its own"
        if opens_graph(key, lookup)
        else None
    )
