"""PythonToolExecutor: one call of a registered function in a child process, in the strongest tier this host offers."""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from contracts.events import EventLog
from contracts.tools.api import (
    ErrorKind,
    Execution,
    IsolationTier,
    Outcome,
    SecretSource,
    SecretWithheld,
)
from executors.python.launch import Limits, plan
from executors.python.packages import FunctionTarget, NotRegistered, Packages
from executors.python.process import (
    CallUnsendable,
    ChildProcess,
    Died,
    Frame,
    OutputFlood,
    ScratchFull,
)
from executors.python.scratch import make_scratch, remove_scratch, sweep_scratch
from executors.python.texts import told_by_tool
from executors.python.tiers import HostTiers, at_least
from executors.redaction import Redactor
from executors.results import InvalidResult, parse_result

FRAME_OVERHEAD_BYTES = 64 << 10
PARSE_IN_THREAD_BYTES = 256 << 10
_TOLD: frozenset[str] = frozenset(
    {"invalid_args", "upstream", "invalid_result", "too_large", "unavailable"}
)


@dataclass(frozen=True)
class PythonLimits:
    """What a call may take where its tool does not say, and the most that any tool may ask for."""

    cpu_s: float = 30.0
    memory_mb: int = 512
    open_files: int = 64
    disk_mb: int = 16
    most_memory_mb: int = 2_048
    most_disk_mb: int = 256
    most_open_files: int = 256
    max_concurrent: int = 4


class PythonToolExecutor:
    """Implements the ToolExecutor port for `executor: python`.

    At most `limits.max_concurrent` children run at once; others wait within their deadline.
    """

    def __init__(
        self,
        packages: Packages,
        tiers: HostTiers,
        secrets: SecretSource,
        events: EventLog,
        *,
        limits: PythonLimits | None = None,
        libraries: Sequence[str] = (),
        floor: IsolationTier = "landlock",
        slots: asyncio.Semaphore | None = None,
    ) -> None:
        """`libraries` are folders that every tool may import from beside the standard library and its own package.

        No tool runs in a tier below `floor`, whatever it accepts. `slots` bound the calls of several executors together.
        """
        self._packages = packages
        self._tiers = tiers
        self._secrets = secrets
        self._events = events
        self._limits = limits or PythonLimits()
        self._libraries = list(libraries)
        self._floor = floor
        self._slots = slots or asyncio.Semaphore(self._limits.max_concurrent)
        self._endings: set[asyncio.Task[None]] = set()
        sweep_scratch()

    async def execute(self, execution: Execution) -> Outcome:
        """Runs the function. Being cancelled kills the child."""
        started = time.monotonic()
        try:
            prepared = self._prepare(execution)
        except _Refused as refused:
            return Outcome(False, error_kind=refused.kind, error=str(refused), attempts=0)
        outcome = await self._in_slot(prepared)
        return replace(outcome, duration_ms=(time.monotonic() - started) * 1000)

    async def close(self) -> None:
        """Waits for the last children to be gone."""
        if self._endings:
            await asyncio.wait(self._endings)

    def _prepare(self, execution: Execution) -> _Prepared:
        tool = execution.tool
        tier = self._tiers.choose(tool.isolation, self._floor)
        if tier is None:
            demanded = at_least(tool.isolation, self._floor)
            whose = "the tool demands" if demanded == tool.isolation else "Python tools demand"
            raise _Refused(
                "unavailable",
                f"{whose} the isolation tier `{demanded}` or a stronger one, which this host does not offer",
            )
        if tool.egress:
            raise _Refused(
                "unavailable",
                "egress rules cannot be enforced for a Python tool: make it an HTTP tool, or leave them out",
            )
        try:
            target = self._packages.find(tool.target)
        except NotRegistered as error:
            raise _Refused("unavailable", str(error)) from None
        variables = self._variables(execution)
        return _Prepared(
            execution,
            tier,
            target,
            variables,
            Redactor(variables.values()),
            self._bounds(execution),
            self._libraries,
        )

    def _variables(self, execution: Execution) -> dict[str, str]:
        variables = {}
        for use in execution.tool.secrets:
            try:
                value = self._secrets.value(use.name, execution.tool.id, None)
            except SecretWithheld as error:
                raise _Refused("denied", str(error)) from None
            if value is None and not use.required:
                continue
            if value is None or "\0" in value:
                raise _Refused(
                    "unavailable",
                    f"the tool needs the secret `{use.name}`, which is not configured",
                )
            variables[use.variable or use.name.upper().replace("-", "_")] = value
        return variables

    def _bounds(self, execution: Execution) -> Limits:
        asked, own = execution.tool.limits, self._limits
        return Limits(
            cpu_s=math.ceil(min(asked.cpu_s or own.cpu_s, execution.tool.timeout_s + 1)),
            memory_bytes=min(asked.memory_mb or own.memory_mb, own.most_memory_mb) << 20,
            scratch_bytes=min(
                own.disk_mb if asked.disk_mb is None else asked.disk_mb, own.most_disk_mb
            )
            << 20,
            open_files=min(asked.open_files or own.open_files, own.most_open_files),
            threads=(asked.processes or 1) > 1,
        )

    async def _in_slot(self, prepared: _Prepared) -> Outcome:
        try:
            async with asyncio.timeout(prepared.execution.deadline.remaining()):
                await self._slots.acquire()
        except TimeoutError:
            error = "the Python executor is busy: retry later"
            return Outcome(
                False,
                error_kind="unavailable",
                error=error,
                retryable=True,
                attempts=0,
                tier=prepared.tier,
            )
        try:
            return await self._run(prepared)
        finally:
            self._slots.release()

    async def _run(self, prepared: _Prepared) -> Outcome:
        scratch = make_scratch()
        child: ChildProcess | None = None
        try:
            child = prepared.start(scratch)
            async with asyncio.timeout(prepared.execution.deadline.remaining()):
                frame = await child.frame()
            return await prepared.outcome(frame)
        except TimeoutError:
            return prepared.failure("timeout", "the tool did not finish in time", retryable=True)
        except OutputFlood:
            return prepared.failure("too_large", "the tool printed more than it may")
        except ScratchFull:
            return prepared.failure(
                "too_large", "the tool stored more than its scratch folder may hold"
            )
        except CallUnsendable:
            return prepared.failure(
                "invalid_args",
                "the arguments cannot be sent: too deep, numbers beyond 64 bits, or lone surrogates",
            )
        except Died as died:
            return prepared.died(died)
        except OSError as error:
            self._events.emit(
                "tool.sandbox_failed",
                tool_id=prepared.execution.tool.id,
                error=type(error).__name__,
            )
            return prepared.failure(
                "unavailable", "the sandbox cannot be started now", retryable=True
            )
        finally:
            await self._ended(child, scratch)

    async def _ended(self, child: ChildProcess | None, scratch: str) -> None:
        """Ends the child even when the caller is cancelled meanwhile; the slot is free only afterwards."""
        ending = asyncio.ensure_future(_end(child, scratch))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        await asyncio.shield(ending)


async def _end(child: ChildProcess | None, scratch: str) -> None:
    try:
        if child is not None:
            await child.end()
    finally:
        await asyncio.to_thread(remove_scratch, scratch)


class _Refused(Exception):
    def __init__(self, kind: ErrorKind, text: str) -> None:
        super().__init__(text)
        self.kind: ErrorKind = kind


@dataclass(frozen=True)
class _Prepared:
    """A call that may start, and how what comes of it is told."""

    execution: Execution
    tier: IsolationTier
    target: FunctionTarget
    variables: dict[str, str]
    redactor: Redactor
    limits: Limits
    libraries: list[str]

    def start(self, scratch: str) -> ChildProcess:
        """Starts the child. Raises OSError or CallUnsendable."""
        tool = self.execution.tool
        launch = plan(
            self.tier,
            self.limits,
            packages=[self.target.path, *self.libraries],
            network=tool.network,
            scratch=scratch,
        )
        call = {
            "package": {"name": self.target.package, "path": self.target.path},
            "libraries": self.libraries,
            "module": self.target.module,
            "function": self.target.function,
            "args": self.execution.args,
            "context": self.execution.context,
            "variables": self.variables,
            "max_result_bytes": tool.max_result_bytes,
        }
        frame_bytes = tool.max_result_bytes + FRAME_OVERHEAD_BYTES
        return ChildProcess(
            launch, call, max_frame_bytes=frame_bytes, scratch_bytes=self.limits.scratch_bytes
        )

    async def outcome(self, frame: Frame) -> Outcome:
        """Reads the frame; whatever stands in it is the tool's word and is checked."""
        if frame.tag == b"R" and len(frame.body) <= self.execution.tool.max_result_bytes:
            try:
                return Outcome(True, result=await self._result(frame.body), tier=self.tier)
            except InvalidResult as error:
                return self.failure("invalid_result", str(error))
        try:
            told = orjson.loads(frame.body)
            kind, text = told["kind"], str(told["error"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return self.failure("invalid_result", "the tool's process answered garbage")
        return self.failure(
            kind if kind in _TOLD else "upstream", told_by_tool(self.redactor.text(text))
        )

    async def _result(self, body: bytes) -> Any:
        def read() -> Any:
            return self.redactor.json(parse_result(body))

        return await asyncio.to_thread(read) if len(body) > PARSE_IN_THREAD_BYTES else read()

    def died(self, died: Died) -> Outcome:
        """The child ended without an answer."""
        if died.signal == signal.SIGXCPU or (
            died.signal == signal.SIGKILL and self.limits.cpu_s <= self.execution.tool.timeout_s
        ):
            return self.failure("timeout", "the tool used up its CPU time, or was killed")
        name = signal.Signals(died.signal).name if died.signal in set(signal.Signals) else None
        return self.failure(
            "upstream", "the tool's process ended without a result" + (f" ({name})" if name else "")
        )

    def failure(self, kind: ErrorKind, error: str, *, retryable: bool = False) -> Outcome:
        """Returns a failed outcome. Without network nothing that a tool does leaves its process."""
        possible = self.execution.tool.network and self.execution.tool.effect != "read"
        return Outcome(
            False,
            error_kind=kind,
            error=self.redactor.text(error),
            retryable=retryable,
            effect_possible=possible,
            tier=self.tier,
        )
