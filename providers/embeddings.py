"""The Embedder port over an endpoint that speaks OpenAI's `/embeddings`."""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
from collections.abc import Callable, Sequence
from typing import Any

import httpx2
import numpy as np
import numpy.typing as npt
import orjson
from anyio import CapacityLimiter

from common.http.client import open_client, read_bounded, requested
from common.http.errors import HttpError
from common.http.retry_after import retry_after_s
from configs.endpoints import opens_graph
from configs.engines.embedder import RemoteEmbedderSettings
from configs.proxies import no_proxy
from contracts.deadline import Deadline
from contracts.errors import (
    ConfigurationError,
    DaarionError,
    InvalidRequest,
    Overloaded,
    UpstreamInvalidResponse,
    UpstreamMisconfigured,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
)
from contracts.llm.embeddings import (
    FLOAT_BYTES,
    MAX_TEXTS_PER_CALL,
    EmbeddingBatch,
    EmbeddingInput,
    EmbeddingKind,
)
from providers.errors import error_for_failure, error_for_status

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
            "query": CapacityLimiter(half),
            "passage": CapacityLimiter(settings.max_concurrent - half),
        }
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
        waiting = sum(slots.statistics().tasks_waiting for slots in self._slots.values())
        if waiting >= self._settings.max_waiting:
            raise Overloaded(
                "too many calls wait for the embeddings endpoint: retry shortly", retry_after_s=1.0
            )
        limit = deadline.at_most(self._settings.timeout_s)
        try:
            async with asyncio.timeout(limit), self._slots[kind]:
                payload = await self._post({**body, **self._settings.extra_body})
        except TimeoutError:
            raise UpstreamTimeout(f"{_WHO} did not answer in time") from None
        except HttpError as error:
            raise error_for_failure(_WHO, error, MAX_ANSWER_BYTES) from None
        return self._vectors(payload, len(texts))

    async def _post(self, body: dict[str, Any]) -> object:
        sent = orjson.dumps(body)
        async with requested(
            self._client, "POST", self._url, content=sent, headers=self._headers
        ) as response:
            if response.status_code != 200:
                raise _refusal(response)
            content = await read_bounded(response, MAX_ANSWER_BYTES)
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError:
            raise UpstreamInvalidResponse(f"{_WHO} answered no valid JSON") from None

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
        values = _numbers(embedding)
        if values.shape != (self.dimension,):
            raise UpstreamMisconfigured(
                f"{_WHO} returns vectors of {values.size} numbers where embedder.dimension says "
                f"{self.dimension}: correct the configuration"
            )
        length = float(np.linalg.norm(values))
        if not math.isfinite(length) or length == 0:
            raise UpstreamInvalidResponse(f"{_WHO} answered with a vector of length zero")
        return (values / length).astype("<f4").tobytes()


def _prefixed(given: EmbeddingInput, prefix: str) -> EmbeddingInput:
    if isinstance(given, str):
        return prefix + given
    if prefix:
        raise InvalidRequest(
            "input: this model needs a prefix, which cannot be added to tokens: send texts"
        )
    return given


def _numbers(embedding: object) -> npt.NDArray[np.float64]:
    """Decodes base64 of float32, or a list of numbers from endpoints that ignore the format."""
    if isinstance(embedding, str):
        raw = base64.b64decode(embedding, validate=True)
        whole = raw[: len(raw) // FLOAT_BYTES * FLOAT_BYTES]
        return np.frombuffer(whole, "<f4").astype(np.float64)
    if not isinstance(embedding, list):
        raise TypeError
    return np.asarray(embedding, np.float64)


def _tokens(payload: Any) -> int:
    usage = payload.get("usage")
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) and tokens >= 0 else 0


def _refusal(response: httpx2.Response) -> DaarionError:
    status = response.status_code
    if 300 <= status < 400:
        return UpstreamMisconfigured(
            f"{_WHO} redirects (status {status}), which is not followed: correct embedder.base_url"
        )
    if status in {400, 413, 422}:
        return UpstreamRejected(f"{_WHO} refused the texts (status {status}): shorten them")
    if status == 503:
        return UpstreamRateLimited(
            f"{_WHO} limits our requests (status {status})",
            retry_after_s=retry_after_s(response.headers.get("Retry-After")),
        )
    return error_for_status(_WHO, status, response.headers, None)
