"""A chat model that is a Python function: an OpenAI-compatible server for tests of agents."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Thought:
    """One answer, after `delay_s` and once `until` is set. `calls` are (name, arguments) pairs;
    arguments may be any text.
    """

    text: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    status: int = 200
    delay_s: float = 0.0
    until: asyncio.Event | None = None
    reasoning: str | None = None


Mind = Callable[[dict[str, Any]], Thought]


class ScriptedModel:
    """`mind` decides about each request body; `bodies` keeps them."""

    def __init__(self, mind: Mind | None = None) -> None:
        self.mind: Mind = mind or (lambda body: Thought("Гаразд."))
        self.bodies: list[dict[str, Any]] = []
        self.base_url = ""

    @contextlib.asynccontextmanager
    async def serving(self):
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            yield self
        finally:
            await runner.cleanup()

    def script(self, *thoughts: Thought) -> None:
        """Answers with these, one after the other; the last one stays."""
        left = list(thoughts)
        self.mind = lambda body: left.pop(0) if len(left) > 1 else left[0]

    async def _chat(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        self.bodies.append(body)
        thought = self.mind(body)
        if thought.delay_s:
            await asyncio.sleep(thought.delay_s)
        if thought.until is not None:
            await thought.until.wait()
        if thought.status != 200:
            return web.json_response(
                {"error": {"message": "no", "type": "server_error", "code": None}},
                status=thought.status,
            )
        message: dict[str, Any] = {"role": "assistant", "content": thought.text or None}
        if thought.reasoning is not None:
            message["reasoning_content"] = thought.reasoning
        if thought.calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{len(self.bodies)}_{place}",
                    "type": "function",
                    "function": {"name": name, "arguments": _text(arguments)},
                }
                for place, (name, arguments) in enumerate(thought.calls)
            ]
        reason = thought.finish_reason or ("tool_calls" if thought.calls else "stop")
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return web.json_response(
            {
                "id": "c",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [choice],
                "usage": usage,
            }
        )


def _text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def shown(body: dict[str, Any]) -> str:
    """All texts of a prompt, joined."""
    return "\n".join(str(message.get("content") or "") for message in body["messages"])


def calling(mode, tool_id, args):
    """A model's call in one of the three forms."""
    if mode == "native":
        return Thought(calls=[(tool_id.replace(".", "__"), args)])
    if mode == "json":
        return Thought(json.dumps({"tool": tool_id, "args": args}))
    return Thought(f"Зараз подивлюся.\nTOOL: {tool_id} {json.dumps(args)}")
