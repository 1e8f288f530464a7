"""Any endpoint that speaks OpenAI's chat completions: OpenAI, DeepSeek, Ollama, another vLLM, a gateway."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import aiohttp
import orjson
from typing_extensions import Unpack

from configs.llm import Continuation, ProviderSettings
from contracts.deadline import Deadline
from contracts.errors import DaarionError, Overloaded, UpstreamInvalidResponse, UpstreamTimeout, UpstreamUnavailable
from contracts.llm import ChatMessage, ChatOptions, LLMResponse, StreamEnd, StreamItem
from contracts.ports import Condition
from contracts.routing import Target
from providers.assembly import assembled
from providers.continuation import continued
from providers.openai_shapes import StreamParser, chat_body, parse_completion
from providers.resources import ProviderResources
from providers.sse import SSEDecoder
from providers.upstream_errors import error_for_status

MAX_ANSWER_BYTES = 32 << 20
MAX_ERROR_BYTES = 64 << 10
USAGE_GRACE_S = 2.0
"""How long a stream is held open for its usage after the finish reason: not every upstream closes or says [DONE]."""

DRAIN_S = 0.05
"""How long the end of a finished stream's body is waited for, so that its connection can be used again."""
MAX_DRAINED_BYTES = 64 << 10

_DONE = b"[DONE]"
_BOM = b"\xef\xbb\xbf"


class Provider:
    """`POST {base_url}/chat/completions` over the replica's pooled client.

    Redirects are not followed, the environment's proxies not used, answers bounded to 32 MiB after decompression. At most
    `max_connections` calls are under way; another waits up to `connect_s` for its turn and is then refused as Overloaded, which
    says nothing against the provider.
    """

    def __init__(self, name: str, settings: ProviderSettings, resources: ProviderResources) -> None:
        self.name = name
        self._url = f"{settings.base_url}/chat/completions"
        self._extra = settings.extra_body
        self._continuation: Continuation = settings.continuation or "instruct"
        self._done_completes = settings.done_completes
        self._streams_all = settings.stream_whole_answers
        self._key_env = settings.api_key_env
        self._key = resources.secret(settings.api_key_env) if settings.api_key_env else None
        self._headers = {"Content-Type": "application/json", **settings.headers}
        if self._key:
            self._headers["Authorization"] = f"Bearer {self._key}"
        self._session = resources.session(name, settings.max_connections)
        self._turns = asyncio.Semaphore(settings.max_connections)
        self._draining: set[asyncio.Task[None]] = set()

    def unavailable_reason(self) -> str | None:
        """Names the missing key, if one is configured and absent."""
        return f"{self._key_env} is not set" if self._key_env and not self._key else None

    def condition(self) -> Condition:
        """A remote provider is only known by calling it."""
        return Condition()

    async def chat(
        self, messages: Sequence[ChatMessage], target: Target, deadline: Deadline, **options: Unpack[ChatOptions]
    ) -> LLMResponse:
        """Returns one whole answer. Raises leaves of UpstreamError or InvalidRequest, UpstreamTimeout, or Overloaded."""
        if self._streams_all:
            return await assembled(self.stream(messages, target, deadline, **options))
        body = chat_body(target.name, messages, options, self._extra, stream=False)
        async with self._turn(target, deadline):
            limit = deadline.at_most(target.timeouts.whole_s())
            with self._translated(limit):
                async with asyncio.timeout(limit), self._post(body, target) as response:
                    payload = await self._json(response, MAX_ANSWER_BYTES)
        return parse_completion(payload)

    async def stream(
        self, messages: Sequence[ChatMessage], target: Target, deadline: Deadline, **options: Unpack[ChatOptions]
    ) -> AsyncIterator[StreamItem]:
        """Yields deltas, then one StreamEnd. Raises as `chat`; a stream without its end is an error."""
        body = chat_body(target.name, messages, options, self._extra, stream=True)
        with self._translated(None):
            async with contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(self._turn(target, deadline))
                clock = _StreamClock(target, deadline.sooner(target.timeouts.total_s))
                async with clock.waiting():
                    response = await stack.enter_async_context(self._post(body, target))
                async for item in self._items(response, clock):
                    if isinstance(item, StreamEnd) and not response.content.is_eof():
                        self._drain_later(response, stack.pop_all())
                    yield item

    def continued(self, messages: Sequence[ChatMessage], text: str, options: ChatOptions) -> tuple[list[ChatMessage], ChatOptions] | None:
        """Returns the call that asks for the rest of an answer, in the provider's dialect."""
        return continued(self._continuation, messages, text, options)

    async def close(self) -> None:
        """Closes the connections."""
        draining = list(self._draining)
        for task in draining:
            task.cancel()
        await asyncio.gather(*draining, return_exceptions=True)
        await self._session.close()

    @contextlib.asynccontextmanager
    async def _turn(self, target: Target, deadline: Deadline) -> AsyncIterator[None]:
        """Holds one of the provider's connections. Raises Overloaded, or DeadlineExceeded where that comes first."""
        if self._turns.locked():
            try:
                async with asyncio.timeout(deadline.at_most(min(target.timeouts.connect_s, target.timeouts.total_s))):
                    await self._turns.acquire()
            except TimeoutError:
                deadline.check()
                raise Overloaded(f"every connection to provider `{self.name}` is in use: retry shortly") from None
        else:
            await self._turns.acquire()
        try:
            yield
        finally:
            self._turns.release()

    def _drain_later(self, response: aiohttp.ClientResponse, held: contextlib.AsyncExitStack) -> None:
        """Reads a finished stream to the end of its body, out of the caller's way, and lets its connection go."""
        task = asyncio.create_task(_drain(response, held), name="drain")
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)

    @contextlib.asynccontextmanager
    async def _post(self, body: dict[str, Any], target: Target) -> AsyncIterator[aiohttp.ClientResponse]:
        timeout = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=target.timeouts.connect_s)
        async with self._session.post(
            self._url, data=orjson.dumps(body), headers=self._headers, allow_redirects=False, timeout=timeout
        ) as response:
            if response.status != 200:
                raise await self._refusal(response)
            yield response

    async def _items(self, response: aiohttp.ClientResponse, clock: _StreamClock) -> AsyncIterator[StreamItem]:
        parser = StreamParser(done_completes=self._done_completes)
        async for payload in self._payloads(response, parser, clock):
            delta = parser.feed(_decoded(payload))
            if delta is not None:
                clock.content()
                yield delta
        if parser.finish_reason is None:
            raise UpstreamInvalidResponse(f"provider `{self.name}` ended its stream before the answer was complete")
        yield StreamEnd(finish_reason=parser.finish_reason, usage=parser.final_usage())

    async def _payloads(self, response: aiohttp.ClientResponse, parser: StreamParser, clock: _StreamClock) -> AsyncIterator[bytes]:
        """Yields event payloads up to `[DONE]`, the end of the body, or the grace after the finish reason."""
        decoder, size = SSEDecoder(), 0
        grace: Deadline | None = None
        while True:
            if parser.finish_reason and grace is None:
                grace = Deadline.after(USAGE_GRACE_S)
            if grace is not None and grace.remaining() <= 0:
                return
            try:
                async with clock.waiting(grace):
                    chunk = await response.content.readany()
            except (TimeoutError, aiohttp.ClientError):
                if parser.finish_reason:
                    return
                raise
            size += len(chunk)
            if size > MAX_ANSWER_BYTES:
                raise _oversized(MAX_ANSWER_BYTES)
            payloads = decoder.feed(chunk) if chunk else decoder.finish()
            for payload in payloads:
                if payload.strip() == _DONE:
                    parser.end_marked()
                    return
                yield payload
            if not chunk or parser.told_at_end:
                return

    async def _json(self, response: aiohttp.ClientResponse, limit: int) -> object:
        return _decoded(await _bounded_body(response, limit))

    async def _refusal(self, response: aiohttp.ClientResponse) -> DaarionError:
        payload: object = None
        with contextlib.suppress(DaarionError, aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(2):
                payload = await self._json(response, MAX_ERROR_BYTES)
        return error_for_status(self.name, response.status, response.headers, payload)

    @contextlib.contextmanager
    def _translated(self, limit: float | None) -> Iterator[None]:
        """The one place where the client library's exceptions become leaves."""
        try:
            yield
        except aiohttp.ConnectionTimeoutError:
            raise UpstreamTimeout(f"provider `{self.name}` could not be connected to in time") from None
        except TimeoutError:
            within = f" within {limit:.3g} s" if limit else " in time"
            raise UpstreamTimeout(f"provider `{self.name}` did not answer{within}") from None
        except aiohttp.ClientConnectorError:
            raise UpstreamUnavailable(f"provider `{self.name}` cannot be reached") from None
        except (aiohttp.ClientPayloadError, aiohttp.ContentTypeError):
            cut_off = UpstreamInvalidResponse(f"provider `{self.name}` cut its answer off")
            cut_off.begun = True
            raise cut_off from None
        except (aiohttp.ClientConnectionError, ConnectionError):
            raise UpstreamUnavailable(f"provider `{self.name}` broke the connection") from None
        except (aiohttp.ClientError, ValueError):
            raise UpstreamInvalidResponse(f"provider `{self.name}` answered no valid HTTP") from None


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

    def waiting(self, grace: Deadline | None = None) -> asyncio.Timeout:
        """Returns the bound of the next wait; `grace` stands in the place of the bound between tokens."""
        return asyncio.timeout(self._deadline.at_most((grace or self._until).remaining()))


async def _drain(response: aiohttp.ClientResponse, held: contextlib.AsyncExitStack) -> None:
    async with held:
        with contextlib.suppress(TimeoutError, aiohttp.ClientError, ValueError):
            async with asyncio.timeout(DRAIN_S):
                size = 0
                while (chunk := await response.content.readany()) and size <= MAX_DRAINED_BYTES:
                    size += len(chunk)


async def _bounded_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    length = response.content_length
    if length is not None and length <= limit and "Content-Encoding" not in response.headers:
        return await response.read()
    parts, size = [], 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > limit:
            raise _oversized(limit)
        parts.append(chunk)
    return b"".join(parts)


def _oversized(limit: int) -> UpstreamInvalidResponse:
    return UpstreamInvalidResponse(f"the provider's answer is over {limit >> 20} MiB")


def _decoded(payload: bytes) -> object:
    try:
        decoded: object = orjson.loads(payload.removeprefix(_BOM))
    except orjson.JSONDecodeError:
        raise UpstreamInvalidResponse("the provider's answer is not valid JSON") from None
    return decoded
