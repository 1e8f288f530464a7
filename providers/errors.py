"""Turns upstreams' failures into our errors; nothing else reads an upstream's status. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from common.http.errors import (
    AnswerCutOff,
    AnswerTooLarge,
    ConnectFailed,
    ConnectionBroken,
    ConnectTimedOut,
    HttpError,
    ProxyRefused,
    ProxyUnreachable,
    TimedOut,
)
from common.http.retry_after import retry_after_s
from contracts.errors import (
    ContentFiltered,
    ContextLengthExceeded,
    DaarionError,
    UpstreamAuthFailed,
    UpstreamInvalidResponse,
    UpstreamMisconfigured,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)

_MAX_SHOWN = 300
_CONTEXT = re.compile(
    r"context[ _-]?(length|window|size|limit)|maximum context|too many (input )?tokens(?! per)"
    r"|(prompt|input|request|messages?) (is|are) too long|maximum (prompt|input|sequence) length"
    r"|prompt exceeds max|tokens` must be <=|range of input length"
    r"|exceed\w* (the )?(model('s)? )?(token limit|max\w* (number of )?(input )?tokens)"
    r"|(token count|number of tokens)\b[^.]{0,40}\bexceeds|reduce the length of",
    re.IGNORECASE,
)
_CONTEXT_CODE = re.compile(r"context_(length|window|size)")
_FILTER = re.compile(
    r"content[ _](filter|policy|management)|content exists risk|invalid_prompt|usage policy"
    r"|flagged (as|by|for)|input was flagged",
    re.IGNORECASE,
)
_ACCOUNT = re.compile(
    r"\b(account|organi[sz]ation|project|api[ _-]?key|credential|subscription|plan|tier|region"
    r"|country)",
    re.IGNORECASE,
)
"""Words of a 403 that refuses our account rather than this request."""
_KEY_PREFIX = 8
"""Characters of the key after which the rest of a word is taken as key, too."""
_TRACEBACK = re.compile(r'Traceback \(most recent call last\)|File \\?"')
_PRIVATE = (
    (re.compile(r"\b[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE), "[url]"),
    (
        re.compile(r"\b(?:sk|pk|rk|key|token|gsk|xai|ghp)[-_][A-Za-z0-9_*.-]{4,}", re.IGNORECASE),
        "[key]",
    ),
    (re.compile(r"\bBearer\s+\S+", re.IGNORECASE), "[key]"),
    (re.compile(r"\b[A-Za-z0-9_-]{32,}\b"), "[redacted]"),
    (
        re.compile(
            r"""(?:\b[a-z]:[\\/]|\\\\)[^\s"'<>|]*(?: [^\s"'<>|]*\\[^\s"'<>|]*)*""", re.IGNORECASE
        ),
        "[path]",
    ),
    (re.compile(r"(?<![\w/])(?:/[\w.@-]+){2,}/?"), "[path]"),
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"), "[address]"),
    (re.compile(r"\[[0-9a-f:.]*:[0-9a-f:.]*\]:\d{2,5}\b", re.IGNORECASE), "[address]"),
    (
        re.compile(
            r"\b(?:localhost|[a-z]\w*(?:[.-]\w+)+):\d{2,5}\b|\b[a-z][a-z0-9]*:\d{4,5}\b",
            re.IGNORECASE,
        ),
        "[address]",
    ),
)


_BY_STATUS: Mapping[int, tuple[type[DaarionError], str]] = {
    401: (UpstreamAuthFailed, "refused the configured credentials"),
    402: (UpstreamAuthFailed, "requires payment for the configured credentials"),
    403: (UpstreamAuthFailed, "refused the configured credentials"),
    404: (UpstreamMisconfigured, "does not know the configured model or route"),
    408: (UpstreamTimeout, "reported a timeout"),
    429: (UpstreamRateLimited, "limits our requests"),
}


def error_for_status(
    who: str, status: int, headers: Mapping[str, str], payload: object, key: str | None = None
) -> DaarionError:
    """Returns the error for a non-200 answer of `who`.

    `headers` are looked up in lower case; `payload` is the decoded JSON body, or None. Provider
    texts are shown only for refusals that the caller can act on, without keys (`key` is the one we
    sent), addresses and paths.
    """
    code, text = _code_and_text(payload)
    retry_after = retry_after_s(headers.get("retry-after"), headers.get("retry-after-ms"))
    if status == 403 and (refusal := _moderation(who, code, text, key)) is not None:
        return refusal
    if status == 429 and "insufficient_quota" in code:
        return UpstreamAuthFailed(f"{who} says that the account's quota is used up (status 429)")
    if (known := _BY_STATUS.get(status)) is not None:
        leaf, words = known
        return leaf(
            f"{who} {words} (status {status})", retry_after_s=retry_after if status == 429 else None
        )
    if 400 <= status < 500:
        code = "context_length" if status == 413 else code
        return _content_refusal(who, code, text, key) or UpstreamRejected(
            f"{who} refused the request (status {status}){_tail(text, key)}"
        )
    if status >= 500:
        return UpstreamUnavailable(f"{who} failed (status {status})", retry_after_s=retry_after)
    return UpstreamInvalidResponse(f"{who} answered with unexpected status {status}")


def error_for_failure(
    who: str, error: HttpError, max_bytes: int, limit_s: float | None = None
) -> DaarionError:
    """Returns the error for a call to `who` that failed below HTTP.

    `max_bytes` is the bound on its answer; `limit_s` how long it was awaited, to be shown.
    """
    match error:
        case ConnectTimedOut():
            return UpstreamTimeout(f"{who} could not be connected to in time")
        case ProxyRefused(status=int() as status) if 400 <= status < 500:
            return UpstreamMisconfigured(
                f"{who} cannot be reached: the forward proxy refused to connect (status {status}): "
                "check its address, its credentials and its rules"
            )
        case ProxyRefused() | ProxyUnreachable():
            return UpstreamUnavailable(f"{who} cannot be reached through the forward proxy")
        case ConnectFailed():
            return UpstreamUnavailable(f"{who} cannot be reached")
        case ConnectionBroken():
            return UpstreamUnavailable(f"{who} broke the connection")
        case AnswerCutOff():
            cut_off = UpstreamInvalidResponse(f"{who} cut its answer off")
            cut_off.begun = True
            return cut_off
        case AnswerTooLarge():
            return UpstreamInvalidResponse(f"the answer of {who} is over {max_bytes >> 20} MiB")
        case TimedOut():
            within = f"within {limit_s:.3g} s" if limit_s else "in time"
            return UpstreamTimeout(f"{who} did not answer {within}")
        case _:
            return UpstreamInvalidResponse(f"{who} answered no valid HTTP")


def reported_error(answer: Mapping[str, Any]) -> object:
    """Returns the error that a 200 answer, or an event of a stream, holds instead of content; else
    None.

    Besides OpenAI's `error` these are the flat objects of vLLM, web frameworks and gateways.
    """
    if error := answer.get("error"):
        return error
    if answer.get("choices") or answer.get("usage"):
        return None
    base = answer.get("base_resp")  # MiniMax
    if isinstance(base, dict) and base.get("status_code"):
        return {"code": base["status_code"], "message": base.get("status_msg")}
    text = next(
        (
            answer[name]
            for name in ("message", "msg", "detail")
            if isinstance(answer.get(name), str)
        ),
        None,
    )
    if answer.get("object") == "error" or (
        text is not None and any(answer.get(name) for name in ("code", "type", "status", "detail"))
    ):
        return {**answer, "message": text}
    return None


def in_band_error(error: object, key: str | None = None, who: str = "the provider") -> DaarionError:
    """Returns the error for an error object that came with status 200 or inside a stream.

    Its status is inferred from `code` or `type`, and without either from the wording.
    """
    payload = {"error": error}
    code, text = _code_and_text(payload)
    if (refusal := _content_refusal(who, code, text, key)) is not None:
        return refusal
    status = _status_of(error, code, text)
    if status is None:
        return UpstreamInvalidResponse(f"{who} reported an error inside its answer")
    return error_for_status(who, status, {}, payload, key)


_STATUS_BY_WORD = (
    (re.compile(r"insufficient.?(quota|balance|credit)|billing|payment"), 402),
    (re.compile(r"rate.?limit|too.?many|resource.?exhausted|throttl|quota"), 429),
    (re.compile(r"api.?key|authenticat|unauthori[sz]ed|permission"), 401),
    (re.compile(r"not.?found"), 404),
    (re.compile(r"time.?out"), 408),
    (re.compile(r"overloaded|unavailable|server.?error|internal"), 503),
    (
        re.compile(
            r"invalid.?(request|arg|param|prompt|input|type|value)|bad.?request"
            r"|validation|unprocessable"
        ),
        400,
    ),
)

_KNOWN_BY_WORDING = frozenset({408, 429, 503})
"""A text alone never blames the caller or our credentials."""


def _status_of(error: object, code: str, text: str) -> int | None:
    """Returns the status that an error inside an answer stands for."""
    if isinstance(error, dict):
        for name in ("code", "status", "status_code"):
            digits = str(error.get(name))
            if digits.isdecimal() and len(digits) == 3 and 400 <= int(digits) < 600:
                return int(digits)
    words = code if code.strip() else text.lower()
    status = next((status for pattern, status in _STATUS_BY_WORD if pattern.search(words)), None)
    return status if code.strip() or status in _KNOWN_BY_WORDING else None


def _moderation(who: str, code: str, text: str, key: str | None) -> DaarionError | None:
    """Returns the error for a 403 about this request's content, which must not count against the
    provider.
    """
    if _ACCOUNT.search(text):
        return None
    refusal = _content_refusal(who, code, text, key)
    return refusal if isinstance(refusal, ContentFiltered) else None


def _content_refusal(who: str, code: str, text: str, key: str | None) -> DaarionError | None:
    """Returns the error for content that is too long or unwanted, by code or wording; else None."""
    tail = _tail(text, key)
    if _CONTEXT_CODE.search(code) or ("rate_limit" not in code and _CONTEXT.search(text)):
        return ContextLengthExceeded(
            "the request does not fit the model's context: "
            f"shorten the messages or lower max_tokens{tail}"
        )
    if _FILTER.search(code) or _FILTER.search(text):
        return ContentFiltered(f"{who} refused the content by its policy{tail}")
    return None


def _tail(text: str, key: str | None) -> str:
    shown = clean(text, key)
    return f": {shown}" if shown else ""


def clean(text: str, key: str | None = None) -> str:
    """Returns `text` on one line, bounded, without URLs, keys, addresses, paths or tracebacks.

    `key` is masked wherever it occurs: whole, URL-encoded, or cut short.
    """
    if _TRACEBACK.search(text):
        return "the provider reported an internal failure"
    line = " ".join(_without_key(text, key).split())[: _MAX_SHOWN * 4]
    for pattern, mark in _PRIVATE:
        line = pattern.sub(mark, line)
    return line if len(line) <= _MAX_SHOWN else f"{line[:_MAX_SHOWN]}…"


def _without_key(text: str, key: str | None) -> str:
    if not key:
        return text
    for form in (key, quote(key, safe="")):
        shortened = rf"|{re.escape(form[:_KEY_PREFIX])}\S*" if len(form) > _KEY_PREFIX else ""
        text = re.sub(re.escape(form) + shortened, "[key]", text, flags=re.IGNORECASE)
    return text


def _code_and_text(payload: object) -> tuple[str, str]:
    """Returns the code and text of an error.

    Reads OpenAI's `{"error": {…}}`, vLLM's flat `{"message", "type"}`, a web framework's `detail`,
    a list of one of them, or a text.
    """
    if isinstance(payload, list) and len(payload) == 1:
        payload = payload[0]
    error: Any = payload.get("error", payload) if isinstance(payload, dict) else payload
    if isinstance(error, str):
        return "", error
    if not isinstance(error, dict):
        return "", ""
    words = [error[name] for name in ("code", "type", "status") if isinstance(error.get(name), str)]
    detail = error.get("detail")
    if isinstance(detail, list) and detail and isinstance(detail[0], dict):
        error = {**detail[0], **error}  # web frameworks list each mistake
    text = next(
        (error[name] for name in ("message", "msg", "detail") if isinstance(error.get(name), str)),
        "",
    )
    return " ".join(words).lower(), text
