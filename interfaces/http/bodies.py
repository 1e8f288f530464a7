"""Reads a request body, bounded, and fills a model from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request

from contracts.errors import InvalidRequest, PayloadTooLarge

MAX_BODY_BYTES = 8 << 20

Model = TypeVar("Model", bound=BaseModel)


async def read_model(request: Request, model: type[Model], max_bytes: int = MAX_BODY_BYTES) -> Model:
    """Returns `model` filled from the JSON body.

    Raises:
        PayloadTooLarge: over `max_bytes`, whether announced or not.
        InvalidRequest: empty, or no UTF-8.
        ValidationError: not what the model asks for; the one error mapping turns it into a 400.
    """
    body = await read_bounded(request, max_bytes)
    if not body or body.isspace():
        raise InvalidRequest("the body is empty: send a JSON object")
    return model.model_validate_json(body)


async def read_bounded(request: Request, max_bytes: int) -> bytes:
    """Returns the raw body. Raises PayloadTooLarge."""
    if _announced(request.scope["headers"]) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        parts.append(chunk)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _announced(headers: Iterable[tuple[bytes, bytes]]) -> int:
    for name, value in headers:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0


def _too_large(max_bytes: int) -> PayloadTooLarge:
    bound = f"{max_bytes >> 20} MiB" if max_bytes >= 1 << 20 else f"{max_bytes >> 10} KiB"
    return PayloadTooLarge(f"the body is over {bound}")
