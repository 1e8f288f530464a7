"""The scripted upstream: an OpenAI-compatible server on 127.0.0.1 that follows its script."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from aiohttp import web

from tests.support.llm.upstream import bodies, interruptions, refusals
from tests.support.llm.upstream.answers import embedding
from tests.support.llm.upstream.behaviours import BEHAVIOURS
from tests.support.llm.upstream.exchange import Call, UpstreamExchange
from tests.support.llm.upstream.plays import OK, Play, parse_play, parse_script

__all__ = ["Call", "ScriptedUpstream", "bodies", "interruptions", "refusals"]

MAX_RECORDED = 10_000
MAX_BODY_BYTES = 64 << 20


class ScriptedUpstream:
    """Answers `/v1/chat/completions`, `/v1/embeddings` and `/v1/models`; records what came.

    What a request meets is decided by, in this order: the script of its model, the script for every
    model, its model's name (`http_500?times=2`, `silence`, `http_503,ok`), and else it is answered
    regularly.
    """

    def __init__(self, port: int = 0) -> None:
        self._port = port
        self._scripts: dict[str | None, deque[Play]] = {}
        self._uses: Counter[tuple[str, str]] = Counter()
        self._runner: web.AppRunner | None = None
        self._closing = False
        self.requests: deque[Call] = deque(maxlen=MAX_RECORDED)
        self.counts: Counter[str] = Counter()
        self.total = 0
        self.elsewhere: list[dict[str, str]] = []

    async def __aenter__(self) -> ScriptedUpstream:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/embeddings", self._embeddings)
        app.router.add_get("/v1/models", self._models)
        app.router.add_route("*", "/elsewhere/{tail:.*}", self._elsewhere)
        app.router.add_route("*", "/control", self._control)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, backlog=1024)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing = True
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def port(self) -> int:
        return self._port

    @property
    def base_url(self) -> str:
        """What a provider's `base_url` is set to."""
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def open_calls(self) -> int:
        """Recorded calls that are still being answered."""
        return sum(call.state == "open" for call in self.requests)

    @property
    def cancelled(self) -> int:
        """Recorded calls whose client left before the end."""
        return sum(call.state == "cancelled" for call in self.requests)

    def script(self, plays: Any, *more: Any, model: str | None = None) -> None:
        """Sets the behaviours of the next requests (of `model`, or of all); the last one stays."""
        first = parse_script(plays)
        self._scripts[model] = deque([*first, *(parse_play(play) for play in more)])
        for play in self._scripts[model]:
            _known(play)

    def reset(self) -> None:
        """Forgets scripts and records."""
        self._scripts.clear()
        self._uses.clear()
        self.requests.clear()
        self.counts.clear()
        self.elsewhere.clear()
        self.total = 0

    async def wait_for(
        self, *, requests: int = 0, cancelled: int = 0, timeout_s: float = 5
    ) -> None:
        """Waits until so many requests came and so many were left by their clients.

        Raises TimeoutError.
        """
        async with asyncio.timeout(timeout_s):
            while self.total < requests or self.cancelled < cancelled:
                await asyncio.sleep(0.005)

    async def wait_idle(self, timeout_s: float = 5) -> None:
        """Waits until no call is open. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while self.open_calls:
                await asyncio.sleep(0.005)

    def state(self) -> dict[str, Any]:
        """What `GET /control` shows."""
        calls = [
            {
                "number": call.number,
                "path": call.path,
                "model": call.model,
                "play": call.play,
                "state": call.state,
                "frames_sent": call.frames_sent,
            }
            for call in list(self.requests)[-1000:]
        ]
        return {
            "total": self.total,
            "counts": dict(self.counts),
            "open_calls": self.open_calls,
            "cancelled": self.cancelled,
            "elsewhere": len(self.elsewhere),
            "calls": calls,
        }

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        call = self._record(request, await request.read())
        chosen = self._choose(call.model)
        key = (call.model, chosen.name)
        use = self._uses[key]
        self._uses[key] += 1
        if use >= chosen.options.get("times", use + 1):
            chosen = OK
        call.play = chosen.name
        self.counts[chosen.name] += 1
        exchange = UpstreamExchange(request, call, chosen.options, use)
        try:
            await BEHAVIOURS[chosen.name](exchange)
            call.state = "done"
        except ConnectionError:  # the client left while we wrote
            call.state = "cancelled"
        finally:
            if call.state == "open":
                call.state = "closed" if self._closing else "cancelled"
            call.ended.set()
        return exchange.response or web.Response()

    def _record(self, request: web.Request, raw: bytes) -> Call:
        self.total += 1
        headers = {name.lower(): value for name, value in request.headers.items()}
        peer = (
            request.transport.get_extra_info("peername") if request.transport is not None else None
        )
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        call = Call(self.total, request.path, headers, body, peer_port=peer[1] if peer else 0)
        self.requests.append(call)
        return call

    def _choose(self, model: str) -> Play:
        for name in (model, None):
            script = self._scripts.get(name)
            if script:
                return script[0] if len(script) == 1 else script.popleft()
        plays = [play for play in parse_script(model) if play.name in BEHAVIOURS]
        if not plays:
            return OK
        seen = self._uses[(model, "")]
        self._uses[(model, "")] += 1
        return plays[min(seen, len(plays) - 1)]

    async def _embeddings(self, request: web.Request) -> web.Response:
        body = await request.json()
        call = self._record(request, json.dumps(body).encode())
        call.play, call.state = "embeddings", "done"
        self.counts["embeddings"] += 1
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        size = int(body.get("dimensions") or 384)
        rows = [
            {"object": "embedding", "index": index, "embedding": embedding(str(text), size)}
            for index, text in enumerate(texts)
        ]
        tokens = sum(len(str(text).split()) for text in texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return web.json_response(
            {"object": "list", "model": body.get("model"), "data": rows, "usage": usage}
        )

    async def _models(self, _request: web.Request) -> web.Response:
        rows = [
            {"id": name, "object": "model", "created": 0, "owned_by": "local"}
            for name in sorted(BEHAVIOURS)
        ]
        return web.json_response({"object": "list", "data": rows})

    async def _elsewhere(self, request: web.Request) -> web.Response:
        self.elsewhere.append({name.lower(): value for name, value in request.headers.items()})
        return web.json_response({"error": {"message": "followed a redirect"}}, status=418)

    async def _control(self, request: web.Request) -> web.Response:
        """GET shows the state, POST `{"plays": […], "model"?}` sets a script, DELETE resets all."""
        if request.method == "POST":
            order: Mapping[str, Any] = await request.json()
            try:
                self.script(order["plays"], model=order.get("model"))
            except (KeyError, ValueError) as error:
                return web.json_response({"error": str(error)}, status=400)
        elif request.method == "DELETE":
            self.reset()
        return web.json_response(self.state())


def _known(play: Play) -> None:
    if play.name not in BEHAVIOURS:
        raise ValueError(f"unknown behaviour `{play.name}`; known: {', '.join(sorted(BEHAVIOURS))}")
