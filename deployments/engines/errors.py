"""vLLM's failures as leaves of the error tree; no other module knows vLLM's exceptions."""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus

from pydantic import ValidationError
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMError
from vllm.v1.engine.exceptions import EngineDeadError

from contracts.errors import (
    ContextLengthExceeded,
    DaarionError,
    EngineUnavailable,
    Internal,
    InvalidRequest,
    Overloaded,
)

MAX_REASON = 300
RETRY_AFTER_BUSY_S = 1.0
RETRY_AFTER_DEAD_S = 10.0

_TOO_LONG_TEXT = ("maximum context length", "max_model_len")
# Parts of a foreign message that a caller must not see: source positions, URLs, absolute paths,
# addresses, vLLM's notes on its own fields.
_PRIVATE = re.compile(
    r"\[[\d:]+\] \S+:\d+: |https?://\S+|(?:/[\w.@-]+){2,}|0x[0-9a-fA-F]+"
    r"| ?\((?:parameter|value)=.*\)$",
    re.DOTALL,
)
_FIELD = re.compile(r"[a-z_]+")


def translated(error: BaseException, *, structured: bool) -> DaarionError:
    """Returns the leaf for an exception of vLLM; a leaf is returned unchanged.

    With `structured` a grammar shaped the answer: an internal failure then means that the schema
    cannot be compiled.
    """
    if isinstance(error, DaarionError):
        return error
    if isinstance(error, GracefulHTTPError):
        return _overloaded()
    if isinstance(error, EngineDeadError):
        return engine_gone()
    if isinstance(error, ValidationError):
        return InvalidRequest(f"the engine does not accept the request: {_fields(error)}")
    if isinstance(
        error, VLLMClientError | ValueError | TypeError | OverflowError
    ) or _is_template_error(error):
        return (
            _too_long(str(error))
            if _says_too_long(str(error))
            else InvalidRequest(_reason(str(error)))
        )
    if isinstance(error, VLLMError):
        return _failed(structured=structured)
    return Internal("the engine failed in an unexpected way")


def translated_response(response: ErrorResponse, *, structured: bool) -> DaarionError:
    """Returns the leaf for an error object that vLLM answers or streams; `structured` as above."""
    error = response.error
    if error.message == "Client disconnected":
        raise asyncio.CancelledError  # vLLM swallows the cancellation of its own task
    if _says_too_long(error.message):
        return _too_long(error.message)
    if error.code == HTTPStatus.SERVICE_UNAVAILABLE:
        return _overloaded()
    if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _failed(structured=structured)
    return InvalidRequest(_reason(error.message))


def engine_gone() -> EngineUnavailable:
    """The error after the engine's process died; the failed health check replaces the replica."""
    return EngineUnavailable(
        "the local engine has stopped and is being restarted", retry_after_s=RETRY_AFTER_DEAD_S
    )


def _overloaded() -> Overloaded:
    return Overloaded(
        "the local engine's queue is full: send fewer requests at once, or retry later",
        retry_after_s=RETRY_AFTER_BUSY_S,
    )


def _failed(*, structured: bool) -> DaarionError:
    if structured:
        return InvalidRequest("the engine does not support this JSON schema: simplify it")
    return EngineUnavailable(
        "the local engine failed on this request: retry", retry_after_s=RETRY_AFTER_BUSY_S
    )


def _says_too_long(message: str) -> bool:
    return any(text in message for text in _TOO_LONG_TEXT)


def _too_long(message: str) -> ContextLengthExceeded:
    numbers = {
        name: int(found[1])
        for name, pattern in _NUMBERS.items()
        if (found := re.search(pattern, message))
    }
    context = numbers.get("max_context_tokens")
    limit = f" of {context} tokens" if context is not None else ""
    return ContextLengthExceeded(
        f"the messages and the requested answer do not fit the model's context{limit}: "
        "shorten `messages` or lower `max_tokens`",
        details=numbers or None,
    )


_NUMBERS = {
    "max_context_tokens": (
        r"(?:maximum context length is |max_model_len=(?:max_total_tokens=)?"
        r"|maximum context length \()(\d+)"
    ),
    "prompt_tokens": r"(?:contains (?:at least )?|Input length \()(\d+)(?: input tokens|\))",
    "prompt_characters": r"contains (\d+) characters",
    "requested_tokens": r"(?:requested |max_tokens=|max_completion_tokens=)(\d+)",
}


def _reason(message: str) -> str:
    """Returns the first line of a foreign message, without its private parts."""
    lines = _PRIVATE.sub("", message.strip()).strip().splitlines()
    return (lines[0] if lines else "the engine does not accept the request")[:MAX_REASON]


def _fields(error: ValidationError) -> str:
    """`field: reason` of up to three mistakes, without the variants of a union that were tried."""
    mistakes = error.errors(include_url=False, include_input=False, include_context=False)
    named = (
        f"{'.'.join(str(part) for part in mistake['loc'] if _is_field(part))}: {mistake['msg']}"
        for mistake in mistakes
    )
    return _reason("; ".join(list(dict.fromkeys(named))[:3]))


def _is_field(part: int | str) -> bool:
    return isinstance(part, int) or _FIELD.fullmatch(part) is not None


def _is_template_error(error: BaseException) -> bool:
    return any(cls.__name__ == "TemplateError" for cls in type(error).__mro__)
