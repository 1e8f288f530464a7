"""Refusals as providers word them, with the caller's key and inner addresses echoed."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

from tests.support.llm.upstream.behaviours import BEHAVIOURS, answer, behaviour
from tests.support.llm.upstream.exchange import UpstreamExchange

_TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    403: "permission_error",
    404: "invalid_request_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_exceeded",
    529: "overloaded_error",
}


def _openai(
    message: str, kind: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _key(exchange: UpstreamExchange) -> str:
    return exchange.call.headers.get("authorization", "").removeprefix("Bearer ")


async def refuse(exchange: UpstreamExchange, status: int) -> None:
    """Refuses with `status`.

    Options: `message`, `code`, `type`, `padding` (bytes of message), `stall` (headers, then
    nothing).
    """
    inner = f"{exchange.request.url} key={_key(exchange)} at /srv/app/handler.py line 1"
    message = str(exchange.options.get("message", f"Request failed with status {status}: {inner}"))
    message += "x" * int(exchange.options.get("padding", 0))
    kind = exchange.options.get("type", _TYPES.get(status, "server_error"))
    body = _openai(message, kind, exchange.options.get("code"))
    headers = _retry_after(exchange)
    if exchange.options.get("stall"):
        await exchange.start("application/json", status=status, headers=headers)
        await exchange.hold()
    if exchange.options.get("plain"):
        await exchange.body(
            message.encode(), status=status, content_type="text/plain", headers=headers
        )
        return
    await exchange.json(body, status=status, headers=headers)


def _retry_after(exchange: UpstreamExchange) -> dict[str, str]:
    """`retry_after` is sent as it is, `retry_after_date` (seconds) as an HTTP date."""
    if "retry_after_date" in exchange.options:
        when = datetime.now(UTC) + timedelta(seconds=exchange.seconds("retry_after_date", 0))
        return {"Retry-After": format_datetime(when, usegmt=True)}
    if "retry_after" in exchange.options:
        return {"Retry-After": str(exchange.options["retry_after"])}
    return {}


def _register(status: int) -> None:
    async def refusal(exchange: UpstreamExchange) -> None:
        await refuse(exchange, status)

    BEHAVIOURS[f"http_{status}"] = refusal


for _status in (400, 402, 403, 404, 408, 409, 413, 422, 500, 502, 503, 504, 529):
    _register(_status)


@behaviour
async def http_401(exchange: UpstreamExchange) -> None:
    """Echoes the whole key, as some providers do."""
    text = (
        f"Incorrect API key provided: {_key(exchange)}. "
        "Manage your keys at https://platform.example.com/account/api-keys."
    )
    await exchange.json(_openai(text, "invalid_request_error", "invalid_api_key"), status=401)


@behaviour
async def http_429(exchange: UpstreamExchange) -> None:
    """Throttled; `retry_after` or `retry_after_date` as wished.

    `code` insufficient_quota says that waiting is no help.
    """
    text = f"Rate limit reached for requests in organization org-local on key {_key(exchange)}."
    body = _openai(text, "requests", exchange.options.get("code", "rate_limit_exceeded"))
    await exchange.json(body, status=429, headers=_retry_after(exchange))


@behaviour
async def context_length(exchange: UpstreamExchange) -> None:
    """The prompt is too long, in the `style` of openai, vllm, vllm_nested, deepseek or llama."""
    limit = 8192
    text = (
        f"This model's maximum context length is {limit} tokens. "
        "However, your messages resulted in 20000 tokens."
    )
    styles: dict[str, Any] = {
        "openai": _openai(
            f"{text} Please reduce the length of the messages.",
            "invalid_request_error",
            "context_length_exceeded",
            "messages",
        ),
        "vllm": {
            "object": "error",
            "message": f"{text} Please shorten the prompt.",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
        "vllm_nested": {
            "error": {
                "message": f"{text} Please shorten the prompt.",
                "type": "BadRequestError",
                "param": None,
                "code": 400,
            }
        },
        "deepseek": _openai(text, "invalid_request_error", "invalid_request_error"),
        "llama": _openai(
            "the request exceeds the available context size", "exceed_context_size_error"
        ),
    }
    await exchange.json(styles[exchange.options.get("style", "openai")], status=400)


@behaviour
async def content_filter(exchange: UpstreamExchange) -> None:
    """The prompt is refused by policy, in the `style` of azure, openai or deepseek."""
    azure = _openai(
        "The response was filtered due to the prompt triggering the content management policy.",
        "",
        "content_filter",
        "prompt",
    )
    azure["error"]["innererror"] = {"code": "ResponsibleAIPolicyViolation"}
    openai = _openai(
        "Invalid prompt: it was flagged as potentially violating the usage policy.",
        "invalid_request_error",
        "invalid_prompt",
    )
    deepseek = _openai("Content Exists Risk", "invalid_request_error", "invalid_request_error")
    await exchange.json(
        {"azure": azure, "openai": openai, "deepseek": deepseek}[
            exchange.options.get("style", "azure")
        ],
        status=400,
    )


@behaviour
async def content_filter_finish(exchange: UpstreamExchange) -> None:
    """The answer stops because a filter stopped it."""
    await answer(exchange, finish_reason="content_filter")


@behaviour
async def flapping(exchange: UpstreamExchange) -> None:
    """`down` (1) failures with `status` (503), then `up` (1) answers, and so on."""
    down, up = int(exchange.options.get("down", 1)), int(exchange.options.get("up", 1))
    if exchange.use % (down + up) < down:
        await refuse(exchange, int(exchange.options.get("status", 503)))
    else:
        await answer(exchange)


@behaviour
async def redirect(exchange: UpstreamExchange) -> None:
    """Redirects with `status` (307) to another host name, where this server counts callers."""
    port = exchange.request.url.port
    target = str(
        exchange.options.get("location", f"http://localhost:{port}/elsewhere/v1/chat/completions")
    )
    await exchange.body(
        b"", status=int(exchange.options.get("status", 307)), headers={"Location": target}
    )


@behaviour
async def drip_error(exchange: UpstreamExchange) -> None:
    """An error body of `status` (500), one byte every `interval_s` (0.05)."""
    data = json.dumps(_openai("The server had an error", "server_error")).encode()
    await exchange.start(
        "application/json", status=int(exchange.options.get("status", 500)), length=len(data)
    )
    for index in range(len(data)):
        await exchange.write(data[index : index + 1])
        await asyncio.sleep(exchange.seconds("interval_s", 0.05))
    await exchange.finish()
