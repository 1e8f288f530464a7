"""Wire shapes of the agent runtime and the ports of its pipeline: blueprints, invocations, runs.

A blueprint is what an operator writes about one agent; a run is one answer to one triggering message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal, Protocol
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from contracts.deadline import Deadline
from contracts.identity import Identifier, Tenant
from contracts.llm.answers import ProxyResponse
from contracts.llm.messages import ToolSpec
from contracts.memory.api import Item
from contracts.tools.api import ToolCallRequest, ToolCallResult, ToolDefinition, ToolId
from contracts.values import storable

MAX_QUESTION_CHARS = 200_000
MAX_PROMPT_ADDITION = 8_000
MAX_PAGE = 200

Entrypoint = Literal["channel_message", "direct", "cron"]
TRIGGERS: dict[Entrypoint, str] = {
    "channel_message": "message",
    "direct": "manual",
    "cron": "scheduled",
}
"""What the usage engine calls them."""
ToolMode = Literal["native", "json", "text"]
Language = Literal["uk", "en"]
RunState = Literal["queued", "running", "posting", "done"]
StepName = Literal["models", "context", "memory", "tool_list", "llm", "tools", "reply", "store"]
Outcome = Literal["answered", "failed", "ignored", "undelivered", "indeterminate"]
RunStatus = Literal[
    "queued", "running", "answered", "failed", "ignored", "undelivered", "indeterminate"
]

_STRICT = ConfigDict(extra="forbid", frozen=True)
_LENIENT = ConfigDict(extra="ignore", frozen=True)


class RunLimits(BaseModel):
    """Bounds of one run. `seconds` covers everything up to the reply; posting it has a bound of its own.

    `steps` counts calls of the model, the last of which gets no tools. `tokens` counts prompts and answers together;
    once they are used up, the next step is the last. `context_tokens` is the share of channel and memory in a prompt.
    """

    model_config = _STRICT

    steps: Annotated[int, Field(ge=1, le=32)] = 6
    tool_calls: Annotated[int, Field(ge=0, le=128)] = 12
    calls_per_step: Annotated[int, Field(ge=1, le=32)] = 6
    tokens: Annotated[int, Field(ge=100, le=10_000_000)] = 60_000
    answer_tokens: Annotated[int, Field(ge=8, le=100_000)] = 800
    context_tokens: Annotated[int, Field(ge=0, le=1_000_000)] = 3_000
    result_chars: Annotated[int, Field(ge=100, le=1_000_000)] = 8_000
    seconds: Annotated[float, Field(gt=0, le=3_600, allow_inf_nan=False)] = 90.0


class BlueprintMemory(BaseModel):
    """What the agent recalls (`recall` items per run, 0: none) and whether it stores the exchange."""

    model_config = _STRICT

    recall: Annotated[int, Field(ge=0, le=50)] = 5
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.0
    store: bool = True
    timeout_s: Annotated[float, Field(gt=0, le=60, allow_inf_nan=False)] = 5.0


class AnswerChoice(BaseModel):
    """How an agent answers whose model is too small to be trusted with free text: it chooses among a tool's results.

    Once `tool` has answered with objects, the last step offers the model their values of `field`, and nothing else, through a JSON
    schema; the reply is `reply` with what it chose in place of `{choices}`. Without any value the reply is `none`.
    """

    model_config = _STRICT

    tool: ToolId
    field: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    reply: Annotated[str, StringConstraints(min_length=1, max_length=2_000)]
    none: Annotated[str, StringConstraints(min_length=1, max_length=2_000)]

    @model_validator(mode="after")
    def _has_a_place(self) -> AnswerChoice:
        if "{choices}" not in self.reply:
            msg = "reply: needs {choices} in it"
            raise ValueError(msg)
        return self


class SmallModel(BaseModel):
    """What an agent does while one of `models` would answer, named as its provider knows it: it begins with a call of
    `answer.tool`, has no other tool, and answers by choosing.
    """

    model_config = _STRICT

    models: Annotated[list[str], Field(min_length=1, max_length=64)]
    answer: AnswerChoice
    context_tokens: Annotated[int, Field(ge=0, le=1_000_000)] = 400


class Blueprint(BaseModel):
    """One agent.

    `tools` are the ids it may call, of those that Toolcore allows it. `write_after_untrusted` says which tools that change
    something it may call once it has read what nobody vouches for (other messages, memory, tool results): all, none, or these.
    `first_step: required` makes the model begin with a tool call. `model` is a logical model of the LLM proxy.
    """

    model_config = _STRICT

    id: Annotated[Identifier, StringConstraints(pattern=r"^agent:.+$")]
    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    description: Annotated[str, StringConstraints(max_length=2_000)] = ""
    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    instructions: Annotated[
        str, StringConstraints(min_length=1, max_length=50_000, strip_whitespace=True)
    ]
    language: Language = "uk"
    tools: Annotated[list[ToolId], Field(max_length=128)] = []
    tool_mode: ToolMode = "native"
    first_step: Literal["auto", "required"] = "auto"
    answer: AnswerChoice | None = None
    small: SmallModel | None = None
    write_after_untrusted: bool | Annotated[list[ToolId], Field(max_length=128)] = False
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    history: Annotated[int, Field(ge=0, le=200)] = 50
    memory: BlueprintMemory = BlueprintMemory()
    limits: RunLimits = RunLimits()

    @model_validator(mode="after")
    def _consistent(self) -> Blueprint:
        granted = self.write_after_untrusted if isinstance(self.write_after_untrusted, list) else []
        unknown = [name for name in granted if name not in self.tools]
        if unknown:
            msg = f"write_after_untrusted: {', '.join(unknown)} is not among `tools`"
            raise ValueError(msg)
        for choice in (self.answer, self.small.answer if self.small is not None else None):
            if choice is not None and choice.tool not in self.tools:
                msg = f"answer.tool: {choice.tool} is not among `tools`"
                raise ValueError(msg)
        if self.first_step == "required" and not self.tools:
            msg = "first_step: `required` needs `tools`"
            raise ValueError(msg)
        return self

    def fitted(self, model: str | None) -> Blueprint:
        """Returns the blueprint as it is used while `model` answers."""
        small = self.small
        if small is None or model not in small.models:
            return self
        limits = self.limits.model_copy(
            update={
                "steps": 2,
                "context_tokens": min(small.context_tokens, self.limits.context_tokens),
            }
        )
        changes = {
            "first_step": "required",
            "tools": [small.answer.tool],
            "answer": small.answer,
            "write_after_untrusted": False,
        }
        return self.model_copy(
            update={
                **changes,
                "tool_mode": "native",
                "temperature": 0.0,
                "limits": limits,
                "small": None,
            }
        )

    def may_write_after_untrusted(self, tool_id: str) -> bool:
        """Whether this tool may change something once untrusted content was read."""
        granted = self.write_after_untrusted
        return granted if isinstance(granted, bool) else tool_id in granted


class InvocationPayload(BaseModel):
    """What happened. Keys beyond these are ignored.

    `text` is the question where no channel message is (`direct`, `cron`). `rewrite_prompt` is appended to the instructions.
    """

    model_config = _LENIENT

    channel_id: Identifier | None = None
    message_id: Identifier | None = None
    matrix_event_id: Identifier | None = None
    microdao_id: Identifier | None = None
    rewrite_prompt: (
        Annotated[str, StringConstraints(max_length=MAX_PROMPT_ADDITION), AfterValidator(storable)]
        | None
    ) = None
    text: (
        Annotated[str, StringConstraints(max_length=MAX_QUESTION_CHARS), AfterValidator(storable)]
        | None
    ) = None


class AgentInvocation(BaseModel):
    """Body of `POST /invocations` and of `router.invoke.agent`. Keys beyond these are ignored."""

    model_config = _LENIENT

    agent_id: Identifier
    entrypoint: Entrypoint
    payload: InvocationPayload

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> AgentInvocation:
        if self.entrypoint == "channel_message" and self.payload.channel_id is None:
            msg = "payload.channel_id: required for `channel_message`"
            raise ValueError(msg)
        if self.entrypoint != "channel_message" and not (self.payload.text or "").strip():
            msg = f"payload.text: required for `{self.entrypoint}`"
            raise ValueError(msg)
        return self


class InvocationAnswer(BaseModel):
    """What an invocation came to. `duplicate`: the message had been taken before, and this is that run.

    `microdao_id` is the tenant under which the run can be read.
    """

    run_id: UUID
    microdao_id: str
    status: RunStatus
    reply: str | None = None
    duplicate: bool | None = None


class ToolUse(BaseModel):
    """One tool call of a step. Arguments and results are in Toolcore's audit under `call_id`, as its definitions allow."""

    model_config = _LENIENT

    tool_id: str
    call_id: str | None = None
    executed: bool
    ok: bool
    error_kind: str | None = None
    duration_ms: float | None = None
    replayed: bool | None = None


class StepRecord(BaseModel):
    """One step of a run: `started_ms` after its attempt began it took `duration_ms`; `model` and tokens belong to steps of kind `llm`."""

    model_config = ConfigDict(extra="ignore")

    kind: StepName
    started_ms: float = 0.0
    duration_ms: float = 0.0
    attempt: int = 1
    ok: bool = True
    error: str | None = None
    model: str | None = None
    provider: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    items: int | None = None
    calls: list[ToolUse] | None = None


class RunView(BaseModel):
    """One run as `GET /runs/{id}` shows it. `degraded` names what the run had to do without, `error` is an error's type."""

    id: UUID
    agent_id: str
    microdao_id: str
    channel_id: str | None = None
    trigger_id: str
    entrypoint: Entrypoint
    status: RunStatus
    attempt: int
    model: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tool_calls: int = 0
    memory_ids: list[str] = []
    degraded: list[str] = []
    error: str | None = None
    reply: str | None = None
    steps: list[StepRecord] = []
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class RunQuery(BaseModel):
    """Query of `GET /runs`: newest first, one page."""

    model_config = _STRICT

    microdao_id: Identifier
    agent_id: Identifier | None = None
    channel_id: Identifier | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = 50
    cursor: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None


class RunPage(BaseModel):
    """`next_cursor` is absent on the last page. Steps are left out of listings."""

    items: list[RunView]
    next_cursor: str | None = None


class AgentUsageEvent(BaseModel):
    """Published as `usage.agent` once per ended run; `id` is the run's, so that a consumer can tell repeats."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    occurred_at: AwareDatetime
    agent_id: str
    microdao_id: str
    channel_id: str | None
    entrypoint: Entrypoint
    outcome: Outcome
    error: str | None
    model: str | None
    steps: int
    tool_calls: int
    prompt_tokens: int
    completion_tokens: int
    duration_ms: int

    def message(self) -> dict[str, Any]:
        """Returns what is sent: the fields that DAARION's usage engine demands, ours beside them."""
        success = self.outcome in {"answered", "ignored"}
        return self.model_dump(mode="json") | {
            "event_id": str(self.id),
            "timestamp": self.occurred_at.isoformat(),
            "trigger": TRIGGERS[self.entrypoint],
            "llm_calls": self.steps,
            "success": success,
            "error": None if success else self.error or self.outcome,
        }


@dataclass(frozen=True)
class NewRun:
    """A run about to be recorded. `nonce` marks the envelopes of its prompts and is told to nobody but the model."""

    id: UUID
    microdao_id: str
    agent_id: str
    channel_id: str | None
    trigger_id: str
    invocation: AgentInvocation
    nonce: str = field(repr=False)


@dataclass
class Run:
    """A run in work. `journal` is what a replica that takes it over goes on from: prompts and answers of the model so far.

    `claimed`: it was taken over. `posting_since` is when its reply was first about to be posted, `posting_s` how many seconds ago
    that was when the run was taken over.
    """

    id: UUID
    microdao_id: str
    agent_id: str
    channel_id: str | None
    trigger_id: str
    invocation: AgentInvocation
    nonce: str = field(repr=False)
    state: RunState
    attempt: int
    created_at: datetime
    journal: list[dict[str, Any]] = field(default_factory=list, repr=False)
    steps: list[StepRecord] = field(default_factory=list)
    reply: str | None = field(default=None, repr=False)
    error: str | None = None
    memory_ids: list[str] = field(default_factory=list)
    degraded: list[str] = field(default_factory=list)
    model: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tool_calls: int = 0
    claimed: bool = False
    posting_since: datetime | None = None
    posting_s: float = 0.0

    @property
    def tenant(self) -> Tenant:
        """Whose memory and tools the run uses."""
        return Tenant(microdao_id=self.microdao_id, agent_id=self.agent_id)


@dataclass(frozen=True)
class ModelRequest:
    """One question to the model. An answer to one with a `schema` is a JSON text of that shape."""

    model: str
    messages: Sequence[Mapping[str, Any]]
    max_tokens: int
    tools: Sequence[ToolSpec] = ()
    tool_choice: Literal["auto", "required"] | None = None
    schema: Mapping[str, Any] | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class Exchange:
    """What was asked and answered, as memory keeps it."""

    tenant: Tenant
    channel_id: str | None
    user_message: str = field(repr=False)
    agent_reply: str = field(repr=False)
    key: str
    meta: Mapping[str, str] = field(default_factory=dict)


class ChatModel(Protocol):
    """The LLM proxy."""

    async def chat(
        self, request: ModelRequest, tenant: Tenant, channel_id: str | None, deadline: Deadline
    ) -> ProxyResponse:
        """Returns the model's answer. Raises leaves of the error tree, ContextLengthExceeded among them."""

    async def answering(self, logical_model: str, deadline: Deadline) -> str | None:
        """Returns the name, as its provider knows it, of the model that would answer now; None when that is not known."""


class AgentMemory(Protocol):
    """The Memory Orchestrator. Raises leaves of the error tree."""

    async def recall(
        self, tenant: Tenant, channel_id: str | None, query: str, limit: int, deadline: Deadline
    ) -> list[Item]:
        """Returns what is nearest to `query`, best first."""

    async def remember(self, exchange: Exchange, deadline: Deadline) -> str:
        """Stores one exchange, once for its key; returns the memory's id."""


class AgentTools(Protocol):
    """Toolcore."""

    async def allowed(self, tenant: Tenant, deadline: Deadline) -> list[ToolDefinition]:
        """Returns the tools that Toolcore allows this agent. Raises leaves of the error tree."""

    async def call(self, request: ToolCallRequest, deadline: Deadline) -> ToolCallResult:
        """Calls a tool; whatever fails comes back as a result that is not ok."""


class AgentUsage(Protocol):
    """Where ended runs are announced."""

    def publish(self, event: AgentUsageEvent) -> None:
        """Queues one event. Never blocks and never raises."""


class RunStore(Protocol):
    """Where runs are kept. Raises DatabaseUnavailable while it is away.

    Every write of a run in work is made in the name of `owner` and returns False when another replica has taken the run.
    """

    async def accept(self, new: NewRun, owner: UUID, lease_s: float) -> tuple[RunView, Run | None]:
        """Records a run; with the Run when it is new, without one when its trigger had been taken before."""

    async def note(self, run: Run, owner: UUID, lease_s: float) -> bool:
        """Writes what the run has come to: journal, steps, counts and state."""

    async def finish(self, run: Run, outcome: Outcome, owner: UUID) -> bool:
        """Ends the run and forgets its journal and the question."""

    async def postpone(self, run: Run, owner: UUID, seconds: float) -> bool:
        """Lets the run lie for so long; then any replica may take it."""

    async def claim(
        self, owner: UUID, lease_s: float, at_most: int, agents: Sequence[str]
    ) -> list[Run]:
        """Takes runs of these agents whose lease has run out, of every microDAO, and runs of others that nobody has taken for long.

        A run counts as attempted once its work had begun. One that cannot be read is left out and told.
        """

    async def extend(self, owner: UUID, runs: Sequence[UUID], lease_s: float) -> None:
        """Renews the leases of runs in work."""

    async def find(self, microdao_id: str, run_id: UUID) -> RunView | None:
        """Returns one run of this microDAO."""

    async def page(self, query: RunQuery) -> RunPage:
        """Returns one page. Raises InvalidRequest for a foreign cursor."""

    async def purge(self, days: float) -> int:
        """Removes ended runs older than that; returns how many."""
