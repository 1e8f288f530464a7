"""The Embedder port over an endpoint that speaks OpenAI's `/embeddings`."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import math
import sys
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx2
import orjson

from common.http.client import open_client, read_bounded, requested
from common.http.errors import HttpError
from common.http.retry_after import retry_after_s
from configs.engines.embedder import RemoteEmbedderSettings
from configs.own_secrets import opens_graph
from configs.proxies import no_proxy
from contracts.deadline import Deadline
from contracts.errors import (
    ConfigurationError,
    DaarionError,
    InvalidRequest,
    Overloaded,
    UpstreamAuthFailed,
    UpstreamInvalidResponse,
    UpstreamMisconfigured,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from contracts.llm.embeddings import (
    FLOAT_BYTES,
    MAX_TEXTS_PER_CALL,
    EmbeddingBatch,
    EmbeddingInput,
    EmbeddingKind,
)
from providers.errors import error_for_failure

MAX_ANSWER_BYTES = 64 << 20
PROBE_S = 10.0
_WHO = "the embeddings endpoint"


class OpenAIEmbedder:
    """Calls `POST {base_url}/embeddings` with at most `max_texts_per_request` texts each.

    Half of `max_concurrent` is reserved for queries, so that ingestion cannot delay them. Redirects
    are not followed, answers are bounded. Vectors are normalised here, since endpoints differ.
    `proxy_for` is `Environment.proxy_for`.

    Raises:
        ConfigurationError: the variable that `api_key_env` or `proxy_auth_env` names is not set, or
            holds a secret of this graph.
    """

    def __init__(
        self,
        settings: RemoteEmbedderSettings,
        secret: Callable[[str], str | None],
        proxy_for: Callable[[str], str | None] = no_proxy,
    ) -> None:
        self._settings = settings
        self._url = f"{settings.base_url}/embeddings"
        self._headers = {"Content-Type": "application/json", **settings.headers}
        if settings.api_key_env is not None:
            key = secret(settings.api_key_env)
            if key is None:
                raise ConfigurationError(
                    f"engines.yaml: embedder.api_key_env: {settings.api_key_env} is not set"
                )
            if opens_graph(key, secret):
                raise ConfigurationError(
                    f"engines.yaml: embedder.api_key_env: {settings.api_key_env} holds a secret "
                    "of this graph: give the endpoint a key of its own"
                )
            self._headers["Authorization"] = f"Bearer {key}"
        half = settings.max_concurrent // 2
        self._slots = {
            "query": asyncio.Semaphore(half),
            "passage": asyncio.Semaphore(settings.max_concurrent - half),
        }
        self._waiting = 0
        self._client = open_client(
            headers={"User-Agent": "daarion-serve (embedder)"},
            proxy=settings.proxy_for(self._url, secret, proxy_for),
            connect_s=settings.connect_timeout_s,
        )
        self.model_version = settings.version
        self.dimension = settings.dimension

    async def embed(
        self,
        texts: Sequence[EmbeddingInput],
        kind: EmbeddingKind,
        *,
        tenant: str,  # noqa: ARG002  # the endpoint's queue has no tenants
        deadline: Deadline,
    ) -> EmbeddingBatch:
        """Returns one vector per text (see TokenEmbedder); tokens are sent unchanged."""
        if not 0 < len(texts) <= MAX_TEXTS_PER_CALL:
            raise InvalidRequest(f"send from 1 to {MAX_TEXTS_PER_CALL} texts a call")
        prefix, size = self._settings.prefixes.of(kind), self._settings.max_texts_per_request
        parts = [
            [_prefixed(given, prefix) for given in texts[start : start + size]]
            for start in range(0, len(texts), size)
        ]
        answers = [await self._request(part, kind, deadline) for part in parts]
        data = b"".join(vectors for vectors, _ in answers)
        return EmbeddingBatch(
            data, self.dimension, self.model_version, sum(tokens for _, tokens in answers)
        )

    async def ping(self) -> None:
        """Embeds one word. Raises as `embed`."""
        await self.embed(["ping"], "query", tenant="", deadline=Deadline.after(PROBE_S))

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _request(
        self, texts: list[EmbeddingInput], kind: EmbeddingKind, deadline: Deadline
    ) -> tuple[bytes, int]:
        body: dict[str, Any] = {
            "model": self._settings.model,
            "input": texts,
            "encoding_format": "base64",
        }
        if self._settings.ask_dimensions:
            body["dimensions"] = self.dimension
        limit = deadline.at_most(self._settings.timeout_s)
        try:
            async with asyncio.timeout(limit), self._slot(kind):
                payload = await self._post({**body, **self._settings.extra_body})
        except TimeoutError:
            raise UpstreamTimeout(f"{_WHO} did not answer in time") from None
        except HttpError as error:
            raise error_for_failure(_WHO, error, MAX_ANSWER_BYTES) from None
        return self._vectors(payload, len(texts))

    @contextlib.asynccontextmanager
    async def _slot(self, kind: EmbeddingKind) -> AsyncIterator[None]:
        if self._waiting >= self._settings.max_waiting:
            raise Overloaded(
                "too many calls wait for the embeddings endpoint: retry shortly", retry_after_s=1.0
            )
        self._waiting += 1
        try:
            await self._slots[kind].acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._slots[kind].release()

    async def _post(self, body: dict[str, Any]) -> object:
        sent = orjson.dumps(body)
        async with requested(
            self._client, "POST", self._url, content=sent, headers=self._headers
        ) as response:
            if response.status_code != 200:
                raise _refusal(response)
            content = await read_bounded(response, MAX_ANSWER_BYTES)
        try:
            payload: object = orjson.loads(content)
        except orjson.JSONDecodeError:
            raise UpstreamInvalidResponse(f"{_WHO} answered no valid JSON") from None
        return payload

    def _vectors(self, payload: object, expected: int) -> tuple[bytes, int]:
        """Puts the rows in the order of their index and checks them."""
        try:
            data = payload["data"]  # type: ignore[index]  # checked by what follows
            rows = sorted(data, key=lambda row: row["index"])
            if [row["index"] for row in rows] != list(range(expected)):
                raise UpstreamInvalidResponse(f"{_WHO} did not answer one vector per text")
            vectors = [self._unit(row["embedding"]) for row in rows]
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise UpstreamInvalidResponse(f"{_WHO} answered another shape than OpenAI's") from None
        return b"".join(vectors), _tokens(payload)

    def _unit(self, embedding: object) -> bytes:
        values = _little_endian(embedding)
        if len(values) != self.dimension:
            raise UpstreamMisconfigured(
                f"{_WHO} returns vectors of {len(values)} numbers where embedder.dimension says "
                f"{self.dimension}: correct the configuration"
            )
        length = math.sqrt(math.fsum(value * value for value in values))
        if not math.isfinite(length) or length == 0:
            raise UpstreamInvalidResponse(f"{_WHO} answered with a vector of length zero")
        unit = array("f", (value / length for value in values))
        if sys.byteorder == "big":
            unit.byteswap()
        return unit.tobytes()


def _prefixed(given: EmbeddingInput, prefix: str) -> EmbeddingInput:
    if isinstance(given, str):
        return prefix + given
    if prefix:
        raise InvalidRequest(
            "input: this model needs a prefix, which cannot be added to tokens: send texts"
        )
    return given


def _little_endian(embedding: object) -> array[float]:
    """Decodes base64 of float32, or a list of numbers from endpoints that ignore the format."""
    values: array[float] = array("f")
    if isinstance(embedding, str):
        raw = base64.b64decode(embedding, validate=True)
        values.frombytes(raw[: len(raw) // FLOAT_BYTES * FLOAT_BYTES])
        if sys.byteorder == "big":
            values.byteswap()
    elif isinstance(embedding, list):
        values.extend(embedding)
    else:
        raise TypeError
    return values


def _tokens(payload: Any) -> int:
    usage = payload.get("usage")
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) and tokens >= 0 else 0


def _refusal(response: httpx2.Response) -> DaarionError:
    status = response.status_code
    if status in {401, 402, 403}:
        return UpstreamAuthFailed(f"{_WHO} refused the configured credentials (status {status})")
    if status == 404:
        return UpstreamMisconfigured(
            f"{_WHO} does not know the configured model or route (status 404)"
        )
    if status in {429, 503}:
        return UpstreamRateLimited(
            f"{_WHO} limits our requests (status {status})",
            retry_after_s=retry_after_s(response.headers.get("Retry-After")),
        )
    if status == 408:
        return UpstreamTimeout(f"{_WHO} reported a timeout (status 408)")
    if 400 <= status < 500:
        return UpstreamRejected(f"{_WHO} refused the texts (status {status}): shorten them")
    if 300 <= status < 400:
        return UpstreamMisconfigured(
            f"{_WHO} redirects (status {status}), which is not followed: correct embedder.base_url"
        )
    return UpstreamUnavailable(f"{_WHO} failed (status {status})")
