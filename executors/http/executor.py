"""HttpToolExecutor: one call within one deadline, its egress rules and its circuit, with retries where they are safe."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import orjson

from common.inflate import Undecodable
from common.retry_after import retry_after_s
from contracts.events import EventLog
from contracts.tools.api import EgressRule, Execution, Outcome, SecretSource, SecretWithheld
from executors.http.answers import RETRYABLE_STATUSES, describe, effect_excluded, error_kind
from executors.http.body import BodyTooLarge, read_body
from executors.http.circuit import Circuits
from executors.http.connections import Connections, Exchange
from executors.http.egress import EgressDenied, EgressPolicy, Target, parse_target
from executors.redaction import Redactor
from executors.results import InvalidResult, parse_result

MAX_ATTEMPTS = 3
FIRST_PAUSE_S = 0.1
MAX_ERROR_BYTES = 64 << 10
PARSE_IN_THREAD_BYTES = 256 << 10
# A caller's own short deadline says nothing about the target's health; silence for this long does.
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


@dataclass(frozen=True)
class _Attempt:
    """One try. `pause_s` is what the server asked to wait; `again` says that repeating could help and does no harm.

    `target_failed` is None when nothing was learned about the target.
    """

    outcome: Outcome
    again: bool = False
    pause_s: float | None = None
    target_failed: bool | None = False


class HttpToolExecutor:
    """Implements the ToolExecutor port for `executor: http`.

    `ceiling` are the installation's egress rules, which no tool's own rules can widen.
    """

    def __init__(
        self,
        secrets: SecretSource,
        events: EventLog,
        *,
        ceiling: Sequence[EgressRule] = (),
        connections: Connections | None = None,
        circuits: Circuits | None = None,
    ) -> None:
        self._secrets = secrets
        self._events = events
        self._ceiling = tuple(ceiling)
        self._connections = connections or Connections()
        self._circuits = circuits or Circuits()

    async def execute(self, execution: Execution) -> Outcome:
        """Calls the tool's target. Being cancelled closes the connection."""
        started = time.monotonic()
        outcome = await self._execute(execution)
        return replace(outcome, duration_ms=(time.monotonic() - started) * 1000)

    async def close(self) -> None:
        """Closes every connection."""
        await self._connections.close()

    async def _execute(self, execution: Execution) -> Outcome:
        try:
            policy = EgressPolicy(tuple(execution.tool.egress), self._ceiling)
            target = parse_target(execution.tool.target)
            policy.check(target)
            request = _Request(execution, policy, target, *self._headers(execution, target))
        except EgressDenied as error:
            self._events.emit(
                "tool.egress_denied", tool_id=execution.tool.id, call_id=execution.call_id
            )
            return Outcome(False, error_kind="denied", error=str(error), attempts=0)
        except SecretWithheld as error:
            return Outcome(False, error_kind="denied", error=str(error), attempts=0)
        except _SecretMissing as error:
            return Outcome(False, error_kind="unavailable", error=str(error), attempts=0)
        except _ArgsUnsendable as error:
            return Outcome(False, error_kind="invalid_args", error=str(error), attempts=0)
        return await self._attempts(request)

    async def _attempts(self, request: _Request) -> Outcome:
        deadline, attempts = request.execution.deadline, 0
        while True:
            attempt = await self._guarded(request)
            attempts += 1
            outcome = replace(
                attempt.outcome, attempts=attempts if attempt.outcome.attempts else attempts - 1
            )
            pause = (
                attempt.pause_s
                if attempt.pause_s is not None
                else FIRST_PAUSE_S * 2**attempts * random.uniform(0.5, 1.0)  # noqa: S311
            )
            if not attempt.again or attempts >= MAX_ATTEMPTS or pause >= deadline.remaining():
                return outcome
            await asyncio.sleep(pause)

    async def _guarded(self, request: _Request) -> _Attempt:
        """One attempt inside the target's circuit."""
        key = str(request.target.url)
        wait = self._circuits.refused_for_s(key)
        if wait is not None:
            error = "the tool's server failed repeatedly and is left alone for a while: retry later"
            details = {"retry_after_s": wait}
            return _Attempt(
                Outcome(
                    False,
                    error_kind="unavailable",
                    error=error,
                    retryable=True,
                    attempts=0,
                    details=details,
                )
            )
        try:
            attempt = await self._bounded(request)
        except BaseException:
            self._circuits.forget(key)
            raise
        if attempt.target_failed is None:
            self._circuits.forget(key)
        else:
            self._circuits.report(key, failed=attempt.target_failed)
        return attempt

    async def _bounded(self, request: _Request) -> _Attempt:
        exchange = Exchange()
        started = time.monotonic()
        try:
            async with asyncio.timeout(request.execution.deadline.remaining()):
                return await self._send(request, exchange)
        except TimeoutError:
            silent = time.monotonic() - started >= min(
                SILENCE_S, request.execution.tool.timeout_s / 2
            )
            outcome = request.failure(
                "timeout", "the tool did not answer in time", exchange, retryable=True
            )
            return _Attempt(outcome, target_failed=silent or None)
        except EgressDenied as denied:
            self._events.emit(
                "tool.egress_denied",
                tool_id=request.execution.tool.id,
                call_id=request.execution.call_id,
            )
            return _Attempt(
                Outcome(False, error_kind="denied", error=str(denied)), target_failed=None
            )
        except BodyTooLarge:
            error = f"the tool's answer is over its limit of {request.execution.tool.max_result_bytes} bytes"
            return _Attempt(request.failure("too_large", error, exchange))
        except (Undecodable, aiohttp.ContentTypeError):
            return _Attempt(
                request.failure(
                    "invalid_result",
                    "the tool's answer is compressed in a way that was not asked for",
                    exchange,
                )
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return self._broken(request, error, exchange)

    async def _send(self, request: _Request, exchange: Exchange) -> _Attempt:
        tool = request.execution.tool
        async with (
            self._connections.session(request.policy, careful=tool.effect == "write") as session,
            session.post(
                request.target.url,
                data=request.body,
                headers=request.headers,
                allow_redirects=False,
                trace_request_ctx=exchange,
            ) as response,
        ):
            if not 200 <= response.status < 300:
                return await _refused(request, response, exchange)
            body = await read_body(response, tool.max_result_bytes)
        return await _answered(request, body, exchange)

    def _broken(self, request: _Request, error: Exception, exchange: Exchange) -> _Attempt:
        """The connection could not be made, or broke. Only what was never sent, or does no harm twice, is tried again."""
        self._events.emit(
            "tool.http_broken",
            tool_id=request.execution.tool.id,
            error=type(error).__name__,
            sent=exchange.sent,
        )
        if isinstance(error, aiohttp.ClientSSLError):
            return _Attempt(
                request.failure(
                    "unavailable", "the tool's server cannot prove who it is (TLS)", exchange
                ),
                target_failed=True,
            )
        if not exchange.sent:
            outcome = request.failure(
                "unavailable", "the tool's server cannot be reached", exchange, retryable=True
            )
        else:
            outcome = request.failure(
                "upstream",
                "the connection broke before the tool's answer was complete",
                exchange,
                retryable=True,
            )
        reconnect = (
            isinstance(error, aiohttp.ClientConnectorError | aiohttp.ServerDisconnectedError)
            or not exchange.sent
        )
        return _Attempt(outcome, again=request.repeatable and reconnect, target_failed=True)

    def _headers(self, execution: Execution, target: Target) -> tuple[dict[str, str], Redactor]:
        headers: dict[str, str] = {}
        values = []
        for use in execution.tool.secrets:
            value = self._secrets.value(use.name, execution.tool.id, str(target.url))
            if value is None and not use.required:
                continue
            if value is None or not _can_be_sent(value) or use.header.lower() in OWN_HEADERS:
                raise _SecretMissing(
                    f"the tool needs the secret `{use.name}`, which is not configured or cannot be sent"
                )
            values.append(value)
            headers[use.header] = use.prefix + value
        headers |= {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": USER_AGENT,
            "Idempotency-Key": execution.idempotency_key,
        }
        return headers, Redactor(values)


def _can_be_sent(secret: str) -> bool:
    return bool(secret) and secret.isascii() and secret.isprintable()


class _SecretMissing(Exception):
    """The text names the secret."""


class _ArgsUnsendable(Exception):
    """The arguments have no JSON form."""


class _Request:
    """What every attempt of one call shares."""

    def __init__(
        self,
        execution: Execution,
        policy: EgressPolicy,
        target: Target,
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
        kind: Any,
        error: str,
        exchange: Exchange,
        *,
        retryable: bool = False,
        excluded: bool = False,
    ) -> Outcome:
        """Returns a failed outcome; its effect is possible when the server may have seen a call that has one."""
        possible = exchange.sent and not excluded and self.execution.tool.effect != "read"
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
        raise _ArgsUnsendable(
            "the arguments cannot be sent: too deep, numbers beyond 64 bits, or lone surrogates"
        ) from None


async def _refused(
    request: _Request, response: aiohttp.ClientResponse, exchange: Exchange
) -> _Attempt:
    status = response.status
    try:
        body = await read_body(response, MAX_ERROR_BYTES)
    except (BodyTooLarge, Undecodable):
        body = bytearray()
    again = status in RETRYABLE_STATUSES
    outcome = request.failure(
        error_kind(status),
        describe(status, body, request.redactor.text),
        exchange,
        retryable=again,
        excluded=effect_excluded(status),
    )
    pause = retry_after_s(response.headers.get("Retry-After"))
    if pause is not None:
        outcome = replace(outcome, details={"retry_after_s": pause})
    return _Attempt(
        outcome, again=again and request.repeatable, pause_s=pause, target_failed=status >= 500
    )


async def _answered(request: _Request, body: bytearray, exchange: Exchange) -> _Attempt:
    def read() -> Any:
        return request.redactor.json(parse_result(body))

    try:
        result = await asyncio.to_thread(read) if len(body) > PARSE_IN_THREAD_BYTES else read()
    except InvalidResult as error:
        return _Attempt(request.failure("invalid_result", str(error), exchange))
    return _Attempt(Outcome(True, result=result))
