"""A child under supervision, and how it is kept alive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from launcher import logs
from launcher.backoff import Backoff, FailureWindow
from launcher.errors import ServiceFailed, StartRefused


class Service(Protocol):
    """A child process under supervision: `PostgresServer`, `NatsServer`, `ServeGraph`."""

    name: str

    @property
    def pid(self) -> int | None: ...

    async def start(self) -> None:
        """Starts or restarts it; raises ServiceFailed."""
        ...

    async def wait(self) -> int:
        """Returns the exit status when it has ended."""
        ...

    async def stop(self, stop_now: asyncio.Event | None = None) -> None:
        """Stops it; kills it when `stop_now` is set."""
        ...


class GaveUp(ServiceFailed):
    """A service keeps dying."""


async def keep_alive(
    service: Service,
    *,
    log: Path,
    say: Callable[[str], None],
    ended: Callable[[], None] | None = None,
    died: Callable[[int, float], Awaitable[None]] | None = None,
    started: Callable[[], None] | None = None,
    failures: FailureWindow | None = None,
    refusal: int | None = None,
) -> None:
    """Restarts `service` whenever it dies, after growing delays, until cancelled.

    Args:
        service: has been started once.
        log: its log file; its last line is quoted.
        say: shows a line to the operator.
        ended: called as soon as it has ended.
        died: called before the next start, with the exit status and the time of death.
        started: called after each restart.
        failures: gives the service up when full.
        refusal: the exit status after which a restart cannot help.

    Raises:
        GaveUp: `failures` is full.
        StartRefused: the service ended with the status `refusal`.
    """
    backoff, reason = Backoff(), ""
    while True:
        began = time.monotonic()
        status = await service.wait()
        died_at = time.time()
        if ended is not None:
            ended()
        last = await asyncio.to_thread(logs.last_line, log)
        if status == refusal:
            raise StartRefused(f"{service.name} refused to start: {last or log}")
        cause = reason or f"{service.name} {_end(status)}{f' ({last})' if last else ''}"
        if failures is not None:
            _count(failures, cause, log)
        delay = backoff.after(time.monotonic() - began)
        say(f"{cause}; starting it again in {delay:g} s")
        await asyncio.sleep(delay)
        if died is not None:
            await died(status, died_at)
        reason = await _start(service)
        if not reason and started is not None:
            started()


async def _start(service: Service) -> str:
    try:
        await service.start()
    except ServiceFailed as error:
        return error.message
    return ""


def _count(failures: FailureWindow, cause: str, log: Path) -> None:
    failures.add(time.monotonic())
    if failures.full:
        raise GaveUp(f"{cause}. That was {failures.limit} times: giving up; {log} has the reason")


def _end(status: int) -> str:
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
