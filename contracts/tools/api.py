"""Wire shapes of Toolcore and its port for executors, in the order of a call.

An operator writes a `ToolDefinition`. A caller sends a `ToolCallRequest`, policy makes a
`Decision`, an executor takes an `Execution` and returns an `Outcome`, and the caller gets a
`ToolCallResult`, over HTTP, NATS and MCP alike.
"""

import re
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Annotated, Any, Literal, Protocol

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    JsonValue,
    StringConstraints,
    model_validator,
)

from contracts.deadline import Deadline
from contracts.identity import Identifier
from contracts.shapes import Frozen, Strict

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

# Two underscores in a row are not allowed: `__` stands for the dot in formats that forbid dots.
_SEGMENT = r"[A-Za-z0-9-]+(?:_[A-Za-z0-9-]+)*"
TOOL_ID = re.compile(rf"{_SEGMENT}(?:\.{_SEGMENT})*")


def plain_name(tool_id: str) -> str:
    """Returns the id in a form that LLM functions and MCP allow; `tool_id_of` maps it back."""
    return tool_id.replace(".", "__")


def tool_id_of(name: str) -> str:
    """Returns the id behind a `plain_name`; returns an id unchanged."""
    return name.replace("__", ".")


def _tool_id(value: str) -> str:
    if not TOOL_ID.fullmatch(value):
        raise ValueError(
            "letters, digits and `-` in segments joined by `.` or a single `_`, "
            "such as projects.list"
        )
    if len(plain_name(value)) > MAX_NAME:
        raise ValueError(f"longer than {MAX_NAME} characters, a dot counted twice")
    return value


ToolId = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_NAME), AfterValidator(_tool_id)
]
Port = Annotated[int, Field(ge=1, le=65_535)]


def _network(cidr: str) -> str:
    ip_network(cidr, strict=False)  # raises ValueError: the rule would match nothing
    return cidr


class EgressRule(Strict):
    """Where a tool may connect to. All given parts must match; `host` or `cidr` is required.

    `host` is a name or address as written in the target, or `*.example.com` for subdomains. Without
    `cidr` only globally routable addresses match; `cidr` opens exactly that network, such as
    127.0.0.1/32 or 10.0.0.0/8. Metadata and link-local addresses are never reached, whatever a rule
    says.
    """

    host: Annotated[str, StringConstraints(min_length=1, max_length=253, to_lower=True)] | None = (
        None
    )
    port: Port | None = None
    cidr: Annotated[str, StringConstraints(max_length=64), AfterValidator(_network)] | None = None

    @model_validator(mode="after")
    def _names_something(self) -> "EgressRule":
        if self.host is None and self.cidr is None:
            raise ValueError("an egress rule needs `host` or `cidr`")
        return self


class SecretUse(Strict):
    """A secret that the executor gives to the tool, by its name in the configuration.

    The HTTP and MCP executors send `prefix` and the value as `header`; the Python executor sets the
    environment variable `variable` of the child process (default: the name in capitals). A call
    whose secret is not configured is `unavailable`, or goes without it if `required` is false.
    """

    name: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[a-z0-9_-]+$")]
    header: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9!#$%&'*+.^_|~-]{1,64}$")] = (
        "Authorization"
    )
    prefix: Annotated[str, StringConstraints(max_length=64, pattern=r"^[\x20-\x7e]*$")] = "Bearer "
    variable: Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]{0,63}$")] | None = None
    required: bool = True


class SandboxLimits(Strict):
    """Bounds of one child process of the Python executor; the defaults are configured."""

    cpu_s: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S)] | None = None
    memory_mb: Annotated[int, Field(ge=32, le=65_536)] | None = None
    processes: Annotated[int, Field(ge=1, le=1024)] | None = None
    open_files: Annotated[int, Field(ge=16, le=65_536)] | None = None
    disk_mb: Annotated[int, Field(ge=0, le=65_536)] | None = None


class ToolDefinition(Strict):
    """One tool.

    `target` is an http(s) URL (executor `http`), `module:function` of a registered package
    (`python`), or `source:tool` (`mcp`). `allowed_agents` holds agent ids or patterns with a
    trailing `*`; null leaves it to the rules, an empty list allows nobody. `effect` decides about
    retries, parallel calls and approval: a `write` is never repeated automatically.
    `max_result_bytes` bounds the decoded answer; a result above `inline_result_bytes` is given by
    reference. `isolation` is the weakest tier that the tool may run in; `auto` is the
    installation's floor, below which no tool runs. `requires_approval: null` leaves it to the
    configuration. `record_args` and `record_result` show contents in the audit.
    """

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
    egress: list[EgressRule] = Field(default=[], max_length=64)
    secrets: list[SecretUse] = Field(default=[], max_length=16)
    requires_approval: bool | None = None
    record_args: bool = False
    record_result: bool = False

    @property
    def outside(self) -> bool:
        """Whether an outside MCP server describes and runs it: its texts are data."""
        return self.executor == "mcp"


class ToolCallRequest(Strict):
    """Body of `POST /internal/tools/call` and of `tool.request`.

    `tool_id` may also be the mapped name (`projects__list`). `args` must be an object; its loose
    type makes any other value an `invalid_args` answer. `timeout_s` may only shorten the tool's
    own.
    """

    tool_id: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    agent_id: Identifier
    microdao_id: Identifier
    args: JsonValue = Field(default_factory=dict)
    context: dict[str, JsonValue] | None = None
    call_id: Identifier | None = None
    timeout_s: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S, allow_inf_nan=False)] | None = None


class Decision(Frozen):
    """The pipeline's decision and its rule. `path` and `expected` locate invalid arguments."""

    allowed: bool
    rule: str
    error_kind: ErrorKind | None = None
    reason: str | None = None
    path: str | None = None
    expected: str | None = None
    retryable: bool = False


class ResultReference(Frozen):
    """A stored result, to be read page by page: `GET /internal/tools/results/{id}`."""

    id: str
    bytes: int
    items: int | None = None
    expires_at: str | None = None


class ToolCallResult(BaseModel):
    """The answer to one call.

    `result` is any JSON value; with `truncated` it is a preview, and `result_ref` leads to the
    whole. `replayed` marks the recorded result of an earlier call with the same `call_id`.
    `details` of invalid arguments hold the JSON path and what is expected there. `duration_ms` and
    `attempts` are the executor's.
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
    """One admitted call, as an executor gets it.

    `context` holds the identity, written by Toolcore. `attempt` counts the runs of this call id
    from 1. `idempotency_key` is the same for all attempts of one call and differs between tenants.
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
    """What an executor reports. `effect_possible`: it may have had its effect despite failing.

    Callers see `error`, so it holds no secret, address, path or traceback. `attempts` counts tries
    within this execution.
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
        """Runs the tool within the deadline; cancelling stops it.

        A failure of the tool is an outcome, not an exception.
        """


class SecretWithheld(Exception):
    """This tool may not use the secret, or not send it there. The text says what to change."""


class SecretSource(Protocol):
    """The values of secrets."""

    def value(self, name: str, tool_id: str, url: str | None) -> str | None:
        """Returns the secret's value, or None if it is not configured. Raises SecretWithheld.

        `url` is the destination, None for the tool's own child process. `tool_id` may be
        `<source>.*`, which stands for all tools of a source.
        """
