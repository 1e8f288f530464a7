"""HttpToolExecutor: calls a tool's URL within its deadline, egress rules and circuit.

Retries only what is safe to repeat.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import orjson

from common.http.inflate import Undecodable
from common.http.retry_after import retry_after_s
from common.retry import retry
from common.tracing import inject
from contracts.access.keys import CREDENTIAL_HEADERS
from contracts.events import EventLog
from contracts.tools.api import (
    EgressRule,
    ErrorKind,
    Execution,
    Outcome,
    SecretSource,
    SecretUse,
)
from executors.http.answers import (
    RETRYABLE_STATUSES,
    BodyTooLarge,
    describe,
    effect_excluded,
    error_kind,
    read_body,
)
from executors.http.connections import Connections, RequestTrace
from executors.http.egress import EgressDenied, EgressPolicy, HttpTarget, parse_target
from executors.http.target_circuit import ToolTargetCircuits
from executors.redaction import Redactor
from executors.results import InvalidResult, read_result
from executors.secrets import UNSENDABLE, NotCalled, find_secrets

MAX_ATTEMPTS = 3
FIRST_PAUSE_S = 0.2
MAX_ERROR_BYTES = 64 << 10
# A timeout counts as the target's failure only after this long: a caller may allow less time.
SILENCE_S = 1.0
USER_AGENT = "daarion-toolcore"
OWN_HEADERS = frozenset(
    {
        "host",
        "content-type",
        "content-length",
        "transfer-encoding",
        "connection",
        "accept-encoding",
        "idempotency-key",
        "user-agent",
    }
)


OwnHeaders = Callable[[str, Mapping[str, Any]], Mapping[str, str]]
"""The headers for a URL and the context of a call; none for other servers than our own."""


@dataclass(frozen=True)
class _Attempt:
    """One attempt. `retry`: repeating may help and is harmless.

    `target_failed` is None if the attempt says nothing about the target's health.
    """

    outcome: Outcome
    retry: bool = False
    retry_after_s: float | None = None
    target_failed: bool | None = False


class HttpToolExecutor:
    """Implements the ToolExecutor port for `executor: http`.

    `ceiling` holds the installation's egress rules, which no tool's own rules can widen.
    `own_headers` present the call's agent where the target is this graph itself.
    """

    def __init__(
        self,
        secrets: SecretSource,
        events: EventLog,
        *,
        ceiling: Sequence[EgressRule] = (),
        own_headers: OwnHeaders = lambda _url, _context: {},
        connections: Connections | None = None,
    ) -> None:
        self._secrets = secrets
        self._events = events
        self._ceiling = tuple(ceiling)
        self._own_headers = own_headers
        self._connections = connections or Connections()
        self._circuits = ToolTargetCircuits()

    async def close(self) -> None:
        """Closes every connection."""
        await self._connections.close()

    async def execute(self, execution: Execution) -> Outcome:
        """Calls the tool's target. Being cancelled closes the connection."""
        try:
            policy = EgressPolicy(tuple(execution.tool.egress), self._ceiling)
            target = parse_target(execution.tool.target)
            policy.check(target)
            request = _Request(execution, policy, target, *self._headers(execution, target))
        except EgressDenied as denied:
            return replace(self._denied(execution, denied), attempts=0)
        except NotCalled as refused:
            return refused.outcome()
        return await self._attempts(request)

    def _denied(self, execution: Execution, denied: EgressDenied) -> Outcome:
        self._events.emit(
            "tool.egress_denied", tool_id=execution.tool.id, call_id=execution.call_id
        )
        return Outcome(False, error_kind="denied", error=str(denied))

    async def _attempts(self, request: _Request) -> Outcome:
        made: list[_Attempt] = []

        async def once() -> _Attempt:
            made.append(await self._guarded(request))
            return made[-1]

        last = await retry(
            once,
            repeat=lambda attempt: attempt.retry and len(made) < MAX_ATTEMPTS,
            within_s=request.execution.deadline.remaining(),
            first_s=FIRST_PAUSE_S,
            longest_s=math.inf,
        )
        outcome = last.outcome
        return replace(outcome, attempts=len(made) if outcome.attempts else len(made) - 1)

    async def _guarded(self, request: _Request) -> _Attempt:
        """One attempt inside the target's circuit."""
        circuit = self._circuits[str(request.target.url)]
        permit = circuit.enter(time.monotonic())
        if permit is None:
            wait = circuit.wait_s(time.monotonic())
            error = "the tool's server failed repeatedly and is not called for a while: retry later"
            refused = NotCalled("unavailable", error).outcome()
            return _Attempt(replace(refused, retryable=True, details={"retry_after_s": wait}))
        failed = None
        try:
            attempt = await self._bounded(request)
            failed = attempt.target_failed
            return attempt
        finally:
            permit.finish(time.monotonic(), failed=failed)

    async def _bounded(self, request: _Request) -> _Attempt:
        trace = RequestTrace()
        started = time.monotonic()
        try:
            async with asyncio.timeout(request.execution.deadline.remaining()):
                return await self._send(request, trace)
        except TimeoutError:
            silent = time.monotonic() - started >= min(
                SILENCE_S, request.execution.tool.timeout_s / 2
            )
            outcome = request.failure(
                "timeout", "the tool did not answer in time", trace, retryable=True
            )
            return _Attempt(outcome, target_failed=silent or None)
        except EgressDenied as denied:
            return _Attempt(self._denied(request.execution, denied), target_failed=None)
        except BodyTooLarge:
            limit = request.execution.tool.max_result_bytes
            error = f"the tool's answer is over its limit of {limit} bytes"
            return _Attempt(request.failure("too_large", error, trace))
        except InvalidResult as invalid:
            return _Attempt(request.failure("invalid_result", str(invalid), trace))
        except (Undecodable, aiohttp.ContentTypeError):
            error = "the tool's answer is compressed in a way that was not requested"
            return _Attempt(request.failure("invalid_result", error, trace))
        except (aiohttp.ClientError, OSError, ValueError) as broken:
            return self._broken(request, broken, trace)

    async def _send(self, request: _Request, trace: RequestTrace) -> _Attempt:
        tool = request.execution.tool
        async with (
            self._connections.session(request.policy, careful=tool.effect == "write") as session,
            session.post(
                request.target.url,
                data=request.body,
                headers=request.headers,
                allow_redirects=False,
                trace_request_ctx=trace,
            ) as response,
        ):
            if not 200 <= response.status < 300:
                return await _refused(request, response, trace)
            body = await read_body(response, tool.max_result_bytes)
        return _Attempt(Outcome(True, result=await read_result(body, request.redactor)))

    def _broken(self, request: _Request, error: Exception, trace: RequestTrace) -> _Attempt:
        """Requests that were not sent, or are safe to repeat, may be repeated."""
        self._events.emit(
            "tool.http_broken",
            tool_id=request.execution.tool.id,
            error=type(error).__name__,
            sent=trace.sent,
        )
        if isinstance(error, aiohttp.ClientSSLError):
            text = "the tool's server has no valid certificate (TLS)"
            return _Attempt(request.failure("unavailable", text, trace), target_failed=True)
        kind: ErrorKind = "upstream" if trace.sent else "unavailable"
        text = (
            "the connection broke before the tool's answer was complete"
            if trace.sent
            else "the tool's server cannot be reached"
        )
        outcome = request.failure(kind, text, trace, retryable=True)
        reconnect = not trace.sent or isinstance(
            error, aiohttp.ClientConnectorError | aiohttp.ServerDisconnectedError
        )
        return _Attempt(outcome, retry=request.repeatable and reconnect, target_failed=True)

    def _headers(self, execution: Execution, target: HttpTarget) -> tuple[dict[str, str], Redactor]:
        tool = execution.tool
        secrets = find_secrets(
            self._secrets, tool.secrets, tool.id, str(target.url), usable=_can_be_sent
        )
        own = self._own_headers(str(target.url), execution.context)
        if own:  # a secret of the graph would open more to the call than its agent may do
            secrets = [one for one in secrets if one[0].header.lower() not in CREDENTIAL_HEADERS]
        headers = {use.header: use.prefix + value for use, value in secrets} | {
            **own,
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": USER_AGENT,
            "Idempotency-Key": execution.idempotency_key,
        }
        if own:  # a foreign server learns nothing of our traces
            inject(headers)
        return headers, Redactor([*(value for _, value in secrets), *own.values()])


def _can_be_sent(use: SecretUse, value: str) -> bool:
    is_text = bool(value) and value.isascii() and value.isprintable()
    return is_text and use.header.lower() not in OWN_HEADERS


class _Request:
    """What all attempts of one call share."""

    def __init__(
        self,
        execution: Execution,
        policy: EgressPolicy,
        target: HttpTarget,
        headers: dict[str, str],
        redactor: Redactor,
    ) -> None:
        self.execution = execution
        self.policy = policy
        self.target = target
        self.headers = headers
        self.redactor = redactor
        self.body = _encoded(execution)
        self.repeatable = execution.tool.effect != "write"

    def failure(
        self,
        kind: ErrorKind,
        error: str,
        trace: RequestTrace,
        *,
        retryable: bool = False,
        excluded: bool = False,
    ) -> Outcome:
        """Returns a failed outcome. The effect is possible if the server may have seen the call.

        `excluded`: the server says that it did nothing.
        """
        possible = trace.sent and not excluded and self.execution.tool.effect != "read"
        return Outcome(
            False,
            error_kind=kind,
            error=self.redactor.text(error),
            retryable=retryable,
            effect_possible=possible,
        )


def _encoded(execution: Execution) -> bytes:
    try:
        return orjson.dumps({"args": execution.args, "context": execution.context})
    except TypeError:
        raise NotCalled("invalid_args", UNSENDABLE) from None


async def _refused(
    request: _Request, response: aiohttp.ClientResponse, trace: RequestTrace
) -> _Attempt:
    status = response.status
    body = bytearray()
    with contextlib.suppress(BodyTooLarge, Undecodable):
        body = await read_body(response, MAX_ERROR_BYTES)
    retryable = status in RETRYABLE_STATUSES
    outcome = request.failure(
        error_kind(status),
        describe(status, body, request.redactor.text),
        trace,
        retryable=retryable,
        excluded=effect_excluded(status),
    )
    pause = retry_after_s(response.headers.get("Retry-After"))
    if pause is not None:
        outcome = replace(outcome, details={"retry_after_s": pause})
    return _Attempt(
        outcome,
        retry=retryable and request.repeatable,
        retry_after_s=pause,
        target_failed=status >= 500,
    )
