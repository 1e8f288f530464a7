"""Reads JSON bodies under a bound."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from contracts.errors import InvalidRequest, PayloadTooLarge, UnsupportedMediaType
from interfaces.http.base.access import Headers, header

MAX_BODY_BYTES = 8 << 20
_FORMS = frozenset({b"multipart/form-data", b"application/x-www-form-urlencoded"})
_LINES = frozenset(
    {b"application/x-ndjson", b"application/ndjson", b"application/jsonl", b"application/json"}
)

Model = TypeVar("Model", bound=BaseModel)


class JsonRequest(Request):
    """A request whose body is read and parsed by us before FastAPI asks for it."""

    _raw = b""
    _value: Any = None

    async def read(self, max_bytes: int, *, is_required: bool) -> None:
        """Reads the body.

        Raises:
            PayloadTooLarge: over `max_bytes`, whether announced or not.
            UnsupportedMediaType: there is a body, and it was not sent as JSON.
            InvalidRequest: no JSON, nested too deeply, `null`, or empty where it is required.
        """
        raw = await read_json(self, max_bytes)
        if raw and not raw.isspace():
            self._raw, self._value = raw, parse_json(raw)
            if self._value is None:  # FastAPI takes it for no body
                raise _no_object("null")
        elif is_required:
            raise _no_object("empty")

    async def body(self) -> bytes:
        """Returns what was read."""
        return self._raw

    async def json(self) -> Any:
        """Returns the value that was read."""
        return self._value


def parse_json(raw: bytes) -> Any:
    """Returns the value, as pydantic's own parser reads it. Raises InvalidRequest."""
    try:
        return from_json(raw)
    except ValueError as error:
        problem = f"not valid JSON: {error}"
        mistakes = [{"field": "", "problem": problem}]
        raise InvalidRequest(problem, details={"mistakes": mistakes}) from None


async def read_model(
    request: Request, model: type[Model], max_bytes: int = MAX_BODY_BYTES
) -> Model:
    """Returns `model` filled from the JSON body.

    Raises:
        PayloadTooLarge: over `max_bytes`, whether announced or not.
        UnsupportedMediaType: not sent as JSON.
        InvalidRequest: empty, or no UTF-8.
        ValidationError: the body does not fit the model; `errors` turns it into a 400.
    """
    body = await read_json(request, max_bytes)
    if not body or body.isspace():
        raise _no_object("empty")
    if body == b"null":
        raise _no_object("null")
    return model.model_validate_json(body)


async def read_json(request: Request, max_bytes: int) -> bytes:
    """Returns the raw body, which may be empty.

    Raises:
        PayloadTooLarge: over `max_bytes`, whether announced or not.
        UnsupportedMediaType: there is a body, and it was not sent as JSON.
    """
    raw = await read_raw(request, max_bytes)
    if raw:
        require_json(request.scope["headers"])
    return raw


async def read_raw(request: Request, max_bytes: int) -> bytes:
    """Returns a body of any type, which may be empty.

    Raises PayloadTooLarge over `max_bytes`, whether announced or not.
    """
    announced = header(request.scope["headers"], b"content-length")
    if announced.isdigit() and int(announced) > max_bytes:
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


def require_json(headers: Headers) -> None:
    """Raises UnsupportedMediaType unless the body was sent as JSON.

    A browser sends forms for a page of any site; for JSON it needs a permission, never given here.
    """
    media_type = _media_type(headers)
    if media_type != b"application/json" and not (
        media_type.startswith(b"application/") and media_type.endswith(b"+json")
    ):
        raise UnsupportedMediaType("send JSON with `Content-Type: application/json`")


def require_lines(headers: Headers) -> None:
    """Raises UnsupportedMediaType unless the body was sent as lines of JSON."""
    if _media_type(headers) not in _LINES:
        raise UnsupportedMediaType("send lines of JSON with `Content-Type: application/x-ndjson`")


def refuse_forms(headers: Headers) -> None:
    """Raises UnsupportedMediaType for a form: its fields would be stored as the file's contents."""
    if _media_type(headers) in _FORMS:
        raise UnsupportedMediaType(
            "send the file itself, not a form, with `Content-Type: application/octet-stream` "
            "(curl: --upload-file FILE)"
        )


def _media_type(headers: Headers) -> bytes:
    return header(headers, b"content-type").partition(b";")[0].strip().lower()


def _no_object(found: str) -> InvalidRequest:
    return InvalidRequest(f"the body is {found}: send a JSON object")


def _too_large(max_bytes: int) -> PayloadTooLarge:
    bound = f"{max_bytes >> 20} MiB" if max_bytes >= 1 << 20 else f"{max_bytes >> 10} KiB"
    return PayloadTooLarge(f"the body is over {bound}")
