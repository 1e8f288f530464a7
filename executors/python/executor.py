"""PythonToolExecutor: calls a registered function in a child process of its own.

The child runs in the strongest isolation tier that this host offers.
"""

from __future__ import annotations

import asyncio
import math
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import orjson
from pydantic import Field

from common.tasks import spawn
from contracts.events import EventLog
from contracts.shapes import Strict
from contracts.tools.api import (
    ErrorKind,
    Execution,
    IsolationTier,
    Outcome,
    SecretSource,
)
from executors.python.launch import ChildLimits, plan
from executors.python.packages import FunctionTarget, Packages
from executors.python.process import (
    CallUnsendable,
    ChildDied,
    Frame,
    OutputFlood,
    SandboxedProcess,
    ScratchFull,
)
from executors.python.scratch import make_scratch, remove_scratch, sweep_scratch
from executors.python.tiers import HostTiers, at_least
from executors.redaction import Redactor
from executors.results import InvalidResult, read_result
from executors.secrets import UNSENDABLE, NotCalled, find_secrets

FRAME_OVERHEAD_BYTES = 64 << 10
# A tool may report these kinds itself.
_OF_TOOLS: frozenset[str] = frozenset(
    {"invalid_args", "upstream", "invalid_result", "too_large", "unavailable"}
)
MAX_ERROR_CHARS = 300
_PATH = re.compile(r"(?<![\w/:])/(?:[\w.@+~-]+/)+[\w.@+~-]*")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")


class PythonLimits(Strict):
    """Bounds of one runner.

    `max_concurrent` bounds its child processes. `memory_mb`, `disk_mb`, `cpu_s` and `open_files`
    are a tool's defaults, the `most_…` the highest values that a tool may ask for.
    """

    max_concurrent: Annotated[int, Field(ge=1, le=256)] = 4
    memory_mb: Annotated[int, Field(ge=32)] = 512
    most_memory_mb: Annotated[int, Field(ge=32)] = 2_048
    disk_mb: Annotated[int, Field(ge=0)] = 16
    most_disk_mb: Annotated[int, Field(ge=0)] = 256
    cpu_s: Annotated[float, Field(gt=0)] = 30.0
    open_files: Annotated[int, Field(ge=16)] = 64
    most_open_files: Annotated[int, Field(ge=16)] = 256


class PythonToolExecutor:
    """Implements the ToolExecutor port for `executor: python`.

    At most `limits.max_concurrent` children run at once; other calls wait within their deadline.
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
        """Removes the scratch folders of processes that were killed.

        Every tool may import from the folders `libraries`, beside the standard library and its own
        package. No tool runs in a tier below `floor`. `slots` bound several executors together.
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
        try:
            prepared = self._prepare(execution)
        except NotCalled as refused:
            return refused.outcome()
        return await self._in_slot(prepared)

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
            raise NotCalled(
                "unavailable",
                f"{whose} the isolation tier `{demanded}` or a stronger one, "
                "which this host does not offer",
            )
        if tool.egress:
            raise NotCalled(
                "unavailable",
                "egress rules cannot be enforced for a Python tool: "
                "make it an HTTP tool, or leave them out",
            )
        target = self._packages.find(tool.target)
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
        tool = execution.tool
        secrets = find_secrets(
            self._secrets, tool.secrets, tool.id, None, usable=lambda _, value: "\0" not in value
        )
        return {use.variable or use.name.upper().replace("-", "_"): value for use, value in secrets}

    def _bounds(self, execution: Execution) -> ChildLimits:
        asked, own = execution.tool.limits, self._limits
        return ChildLimits(
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
            busy = NotCalled("unavailable", "the Python executor is busy: retry later").outcome()
            return replace(busy, retryable=True, tier=prepared.tier)
        try:
            return await self._run(prepared)
        finally:
            self._slots.release()

    async def _run(self, prepared: _Prepared) -> Outcome:
        scratch = make_scratch()
        child: SandboxedProcess | None = None
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
            error = "the tool stored more than its scratch folder may hold"
            return prepared.failure("too_large", error)
        except CallUnsendable:
            return prepared.failure("invalid_args", UNSENDABLE)
        except ChildDied as died:
            return prepared.died(died)
        except OSError as failed:
            tool_id, name = prepared.execution.tool.id, type(failed).__name__
            self._events.emit("tool.sandbox_failed", tool_id=tool_id, error=name)
            error = "the sandbox cannot be started now"
            return prepared.failure("unavailable", error, retryable=True)
        finally:
            await self._ended(child, scratch)

    async def _ended(self, child: SandboxedProcess | None, scratch: str) -> None:
        """Ends the child even if the caller is cancelled; only then the slot becomes free."""
        await asyncio.shield(spawn(_end(child, scratch), self._endings))


async def _end(child: SandboxedProcess | None, scratch: str) -> None:
    try:
        if child is not None:
            await child.end()
    finally:
        await asyncio.to_thread(remove_scratch, scratch)


@dataclass(frozen=True)
class _Prepared:
    """A call that is ready to start, and the outcomes that it can have."""

    execution: Execution
    tier: IsolationTier
    target: FunctionTarget
    variables: dict[str, str]
    redactor: Redactor
    limits: ChildLimits
    libraries: list[str]

    def start(self, scratch: str) -> SandboxedProcess:
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
        return SandboxedProcess(
            launch, call, max_frame_bytes=frame_bytes, scratch_bytes=self.limits.scratch_bytes
        )

    async def outcome(self, frame: Frame) -> Outcome:
        """Reads the frame. Its contents come from the tool, so they are checked."""
        if frame.tag == b"R" and len(frame.body) <= self.execution.tool.max_result_bytes:
            try:
                return Outcome(
                    True, result=await read_result(frame.body, self.redactor), tier=self.tier
                )
            except InvalidResult as error:
                return self.failure("invalid_result", str(error))
        try:
            report = orjson.loads(frame.body)
            kind, text = report["kind"], str(report["error"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return self.failure("invalid_result", "the tool's process sent an unreadable answer")
        return self.failure(
            kind if kind in _OF_TOOLS else "upstream", shown_error(self.redactor.text(text))
        )

    def died(self, died: ChildDied) -> Outcome:
        """Returns the failure of a child that ended without an answer."""
        if died.signal == signal.SIGXCPU or (
            died.signal == signal.SIGKILL and self.limits.cpu_s <= self.execution.tool.timeout_s
        ):
            return self.failure("timeout", "the tool used up its CPU time, or was killed")
        name = signal.Signals(died.signal).name if died.signal in set(signal.Signals) else None
        return self.failure(
            "upstream", "the tool's process ended without a result" + (f" ({name})" if name else "")
        )

    def failure(self, kind: ErrorKind, error: str, *, retryable: bool = False) -> Outcome:
        """Returns a failed outcome. Without a network, no effect can leave the tool's process."""
        possible = self.execution.tool.network and self.execution.tool.effect != "read"
        return Outcome(
            False,
            error_kind=kind,
            error=self.redactor.text(error),
            retryable=retryable,
            effect_possible=possible,
            tier=self.tier,
        )


def shown_error(text: str) -> str:
    """Returns the text on one line, bounded, without file paths and memory addresses."""
    printable = "".join(
        character if character.isprintable() else " " for character in text[: 4 * MAX_ERROR_CHARS]
    )
    return _ADDRESS.sub("…", _PATH.sub("…", " ".join(printable.split())))[:MAX_ERROR_CHARS]
