"""Wire shapes of Toolcore and its port for executors: what a tool is, how it is called and what came of it.

`ToolDefinition` is what an operator writes, `Execution` and `Outcome` are what crosses the port between the policy
pipeline and an executor, `ToolCallRequest` and `ToolCallResult` are what callers see over HTTP, NATS and MCP alike.
"""

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    model_validator,
)

from contracts.deadline import Deadline
from contracts.identity import Identifier

MAX_TIMEOUT_S = 600.0
MAX_RESULT_BYTES = 64 * 1024 * 1024
MAX_NAME = 64

ErrorKind = Literal[
    "denied",
    "invalid_args",
    "not_found",
    "conflict",
    "timeout",
    "upstream",
    "invalid_result",
    "too_large",
    "cancelled",
    "unavailable",
    "indeterminate",
    "internal",
]
Effect = Literal["read", "idempotent", "write"]
ExecutorName = Literal["http", "python", "mcp"]
IsolationTier = Literal["process", "landlock", "bubblewrap"]
# From the weakest to the strongest: a tool demands "at least this one".
Isolation = Literal["auto", "process", "landlock", "bubblewrap"]
ISOLATION_TIERS: tuple[IsolationTier, ...] = ("process", "landlock", "bubblewrap")

# A single underscore may join parts of a segment, never two: `__` stands for the dot where a format forbids dots.
_SEGMENT = r"[A-Za-z0-9-]+(?:_[A-Za-z0-9-]+)*"
TOOL_ID = re.compile(rf"{_SEGMENT}(?:\.{_SEGMENT})*")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_|~-]{1,64}")


def plain_name(tool_id: str) -> str:
    """Returns the id as function names of LLMs and MCP may hold it; `tool_id_of` is the way back."""
    return tool_id.replace(".", "__")


def tool_id_of(name: str) -> str:
    """Returns the id that `plain_name` made this name from; an id is returned unchanged."""
    return name.replace("__", ".")


def _tool_id(value: str) -> str:
    if not TOOL_ID.fullmatch(value):
        msg = "letters, digits and `-` in segments joined by `.` or a single `_`, such as projects.list"
        raise ValueError(msg)
    if len(plain_name(value)) > MAX_NAME:
        msg = f"longer than {MAX_NAME} characters, a dot counted twice"
        raise ValueError(msg)
    return value


def _header(value: str) -> str:
    if not _HEADER.fullmatch(value):
        msg = "not a header name"
        raise ValueError(msg)
    return value


ToolId = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_NAME), AfterValidator(_tool_id)
]
Port = Annotated[int, Field(ge=1, le=65_535)]
_STRICT = ConfigDict(extra="forbid", frozen=True)


class EgressRule(BaseModel):
    """Where a tool may connect to: every part that is given must match, and at least `host` or `cidr` is.

    `host` is a name or address as written in the target, or `*.example.com` for its subdomains. Without `cidr` only
    globally routable addresses match; `cidr` opens exactly that network, such as 127.0.0.1/32 or 10.0.0.0/8.
    Metadata and link-local addresses are never reached, whatever a rule says.
    """

    model_config = _STRICT

    host: Annotated[str, StringConstraints(min_length=1, max_length=253, to_lower=True)] | None = (
        None
    )
    port: Port | None = None
    cidr: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None

    @model_validator(mode="after")
    def _names_something(self) -> "EgressRule":
        if self.host is None and self.cidr is None:
            msg = "an egress rule needs `host` or `cidr`"
            raise ValueError(msg)
        return self


class SecretUse(BaseModel):
    """A secret that the executor gives to the tool, by the name that the configuration knows it under.

    The HTTP and MCP executors send it as `header` with `prefix` before it; the Python executor sets the environment
    variable `variable` of the child process (default: the name in capitals). A secret that is not configured makes the
    call `unavailable`, unless `required` is false: then it is left out.
    """

    model_config = _STRICT

    name: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[a-z0-9_-]+$")]
    header: Annotated[str, AfterValidator(_header)] = "Authorization"
    prefix: Annotated[str, StringConstraints(max_length=64, pattern=r"^[\x20-\x7e]*$")] = "Bearer "
    variable: Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]{0,63}$")] | None = None
    required: bool = True


class SandboxLimits(BaseModel):
    """Bounds of one child process of the Python executor; what is left out comes from the configuration."""

    model_config = _STRICT

    cpu_s: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S)] | None = None
    memory_mb: Annotated[int, Field(ge=32, le=65_536)] | None = None
    processes: Annotated[int, Field(ge=1, le=1024)] | None = None
    open_files: Annotated[int, Field(ge=16, le=65_536)] | None = None
    disk_mb: Annotated[int, Field(ge=0, le=65_536)] | None = None


class ToolDefinition(BaseModel):
    """One tool.

    `target` is an http(s) URL (executor `http`), `module:function` of a registered package (`python`), or
    `source:tool` (`mcp`). `allowed_agents` holds agent ids or patterns with a trailing `*`; null says nothing, an
    empty list allows nobody. `effect` drives retry, parallelism and approval: a `write` is never repeated by itself.
    `max_result_bytes` bounds the decoded answer; what is longer than `inline_result_bytes` is given by reference.
    `isolation` is the weakest tier the tool may run in, never below the installation's floor; `auto` is that floor.
    `requires_approval: null` leaves it to the configuration.
    `record_args` and `record_result` opt in to showing contents in the audit.
    """

    model_config = _STRICT

    id: ToolId
    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    description: Annotated[str, StringConstraints(max_length=8_000)] = ""
    input_schema: dict[str, JsonValue]
    output_schema: dict[str, JsonValue] | None = None
    executor: ExecutorName
    target: Annotated[str, StringConstraints(min_length=1, max_length=2_048)]
    allowed_agents: Annotated[list[Identifier], Field(max_length=1_000)] | None = None
    timeout_s: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S, allow_inf_nan=False)] = 30.0
    effect: Effect = "write"
    max_concurrency: Annotated[int, Field(ge=1, le=10_000)] | None = None
    max_result_bytes: Annotated[int, Field(ge=2, le=MAX_RESULT_BYTES)] = 4 * 1024 * 1024
    inline_result_bytes: Annotated[int, Field(ge=256, le=MAX_RESULT_BYTES)] = 64 * 1024
    isolation: Isolation = "auto"
    network: bool = False
    limits: SandboxLimits = SandboxLimits()
    egress: Annotated[list[EgressRule], Field(max_length=64)] = []
    secrets: Annotated[list[SecretUse], Field(max_length=16)] = []
    requires_approval: bool | None = None
    record_args: bool = False
    record_result: bool = False

    @property
    def outside(self) -> bool:
        """Whether an outside MCP server describes and runs it: its texts are data, never instructions."""
        return self.executor == "mcp"


class ToolCallRequest(BaseModel):
    """Body of `POST /internal/tools/call` and of `tool.request`.

    `tool_id` may also be the mapped name (`projects__list`). `args` must be an object; it is typed loosely so that
    anything else is answered as invalid arguments. `timeout_s` may only shorten the tool's own.
    """

    model_config = ConfigDict(extra="forbid")

    tool_id: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    agent_id: Identifier
    microdao_id: Identifier
    args: JsonValue = Field(default_factory=dict)
    context: dict[str, JsonValue] | None = None
    call_id: Identifier | None = None
    timeout_s: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S, allow_inf_nan=False)] | None = None


class Decision(BaseModel):
    """What the policy pipeline decided and by which rule; `path` and `expected` tell about invalid arguments."""

    model_config = ConfigDict(frozen=True)

    allowed: bool
    rule: str
    error_kind: ErrorKind | None = None
    reason: str | None = None
    path: str | None = None
    expected: str | None = None
    retryable: bool = False


class ResultReference(BaseModel):
    """Where an oversized result is read page by page: `GET /internal/tools/results/{id}`."""

    model_config = ConfigDict(frozen=True)

    id: str
    bytes: int
    items: int | None = None
    expires_at: str | None = None


class ToolCallResult(BaseModel):
    """What came of one call. `result` is any JSON value; with `truncated` it is a preview and `result_ref` leads to the whole.

    `replayed` marks the recorded result of an earlier call with the same `call_id`. `details` tells a refused caller
    the JSON path and what was expected there. `duration_ms` and `attempts` are the executor's.
    """

    ok: bool
    result: JsonValue = None
    error: str | None = None
    error_kind: ErrorKind | None = None
    retryable: bool | None = None
    request_id: str | None = None
    call_id: str | None = None
    tool_id: str | None = None
    tool_version: int | None = None
    tier: IsolationTier | None = None
    attempts: int | None = None
    duration_ms: float | None = None
    replayed: bool | None = None
    truncated: bool | None = None
    result_ref: ResultReference | None = None
    details: dict[str, JsonValue] | None = None


@dataclass(frozen=True)
class Execution:
    """One admitted call. `context` holds the identity that Toolcore wrote; `attempt` counts runs of this call id from 1.

    `idempotency_key` is the same for every attempt of one call and differs between tenants.
    """

    tool: ToolDefinition
    args: dict[str, Any]
    context: dict[str, Any]
    call_id: str
    deadline: Deadline
    idempotency_key: str
    attempt: int = 1


@dataclass(frozen=True)
class Outcome:
    """What an executor reports. `effect_possible` says whether the tool's effect may have happened in spite of the failure.

    `error` is shown to callers: no secret, address, path or traceback. `attempts` counts tries within this execution.
    """

    ok: bool
    result: Any = None
    error_kind: ErrorKind | None = None
    error: str | None = None
    retryable: bool = False
    effect_possible: bool = False
    tier: IsolationTier | None = None
    attempts: int = 1
    duration_ms: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


class ToolExecutor(Protocol):
    """Runs tools of one kind."""

    async def execute(self, execution: Execution) -> Outcome:
        """Runs the tool within the deadline. Never raises for a failure of the tool; being cancelled stops the work."""

    async def close(self) -> None:
        """Releases what the executor holds."""


class SecretWithheld(Exception):
    """The configuration forbids this tool the secret, or this destination. The text says what to change."""


class SecretSource(Protocol):
    """Where executors find the values of secrets."""

    def value(self, name: str, tool_id: str, url: str | None) -> str | None:
        """The secret's value, or None where it is not configured.

        `url` is where it would be sent, None the tool's own child process; `tool_id` may be `<source>.*`, all tools of a source.

        Raises:
            SecretWithheld: see there.
        """
