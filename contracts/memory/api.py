"""Wire shapes of the Memory Orchestrator, and what retrieval passes between storage and fusion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    StringConstraints,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from contracts.identity import Identifier, Tenant
from contracts.values import Instant, storable

Kind = Literal["conversation", "kb", "task", "dao-event"]
Tier = Literal["short-term", "mid-term", "long-term"]
Arm = Literal["dense", "lexical", "recent"]

MAX_QUERY_CHARS = 8_000
MAX_CONTENT_CHARS = 400_000
MAX_META_CHARS = 32_000
MAX_DEPTH = 32
MAX_LIMIT = 100
MAX_SUMMARY_EVENTS = 1_000
MAX_WAIT_S = 60.0
MEMORY_META = "memory"
"""The key of `meta` under which this service tells where an item comes from; never stored."""

_STRICT = ConfigDict(extra="forbid", frozen=True)


def _not_blank(value: str) -> str:
    if not value.strip():
        msg = "must not be blank"
        raise ValueError(msg)
    return value


def _at_least_one(kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
    if not kinds:
        msg = "give at least one kind, or leave it out for all"
        raise ValueError(msg)
    return kinds


def _small_meta(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    _check_json(value, MAX_META_CHARS)
    return value


def _full_content(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    _check_json(value, MAX_CONTENT_CHARS)
    if not any(text.strip() for text in texts_of(value)):
        msg = "holds no text: give {user_message, agent_reply}, {text} or an object with text in it"
        raise ValueError(msg)
    return value


def texts_of(value: JsonValue) -> list[str]:
    """Returns every text among the values of a JSON value, in its order."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in texts_of(item)]
    if isinstance(value, list):
        return [text for item in value for text in texts_of(item)]
    return []


def _check_json(value: JsonValue, max_chars: int) -> None:
    """Raises ValueError for what cannot be stored and given back unchanged. Walks without recursion, so depth cannot hurt."""
    left = max_chars
    pending: list[tuple[JsonValue, int]] = [(value, 1)]
    while pending:
        item, depth = pending.pop()
        left -= _cost(item)
        if left < 0:
            msg = f"is over {max_chars} characters"
            raise ValueError(msg)
        if depth > MAX_DEPTH:
            msg = f"is nested deeper than {MAX_DEPTH} levels"
            raise ValueError(msg)
        if isinstance(item, dict):
            pending.extend((part, depth + 1) for pair in item.items() for part in pair)
        elif isinstance(item, list):
            pending.extend((part, depth + 1) for part in item)


def _cost(item: JsonValue) -> int:
    if isinstance(item, str):
        return len(storable(item)) + 2
    if isinstance(item, int) and not isinstance(item, bool) and not -(2**63) <= item < 2**64:
        msg = "holds an integer of more than 64 bits: send it as a text"
        raise ValueError(msg)
    if isinstance(item, float) and not math.isfinite(item):
        msg = "holds a number that is not finite"
        raise ValueError(msg)
    return 4


Meta = Annotated[
    dict[str, JsonValue],
    BeforeValidator(lambda given: {} if given is None else given),
    AfterValidator(_small_meta),
]
"""The caller's own keys; null says that there are none."""
Content = Annotated[dict[str, JsonValue], AfterValidator(_full_content)]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT)]
Seconds = Annotated[float, Field(ge=0, le=MAX_WAIT_S, allow_inf_nan=False)]
ItemId = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(storable)]


class _Renamed(Tenant):
    """Takes some fields under another name too, which neighbours use."""

    other_names: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _one_name(cls, given: Any) -> Any:
        """Moves each field to its own name. Raises ValueError where both stand there and differ; null is not given."""
        if not isinstance(given, dict):
            return given
        fields = dict(given)
        for other, name in cls.other_names.items():
            value = fields.pop(other, None)
            if value is None:
                continue
            if fields.get(name) is not None and repr(fields[name]) != repr(
                value
            ):  # 1 and true are equal, and not the same
                msg = f"{other}: another name of `{name}`, which says otherwise: send one of them"
                raise ValueError(msg)
            fields[name] = value
        return fields

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Documents both names."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for other, name in cls.other_names.items():
            properties[other] = {
                **properties[name],
                "title": other,
                "description": f"Another name of `{name}`.",
            }
        return schema


class QueryRequest(_Renamed):
    """Body of `POST /query`.

    `channel_id` keeps to that channel and to what belongs to no channel; `kinds`, `since` and `until` (half open) narrow
    further. `explain` adds the rank that each arm gave.
    """

    model_config = _STRICT
    other_names: ClassVar = {"kind_filter": "kinds"}

    query: Annotated[
        str,
        StringConstraints(min_length=1, max_length=MAX_QUERY_CHARS),
        AfterValidator(storable),
        AfterValidator(_not_blank),
    ]
    channel_id: Identifier | None = None
    limit: Limit = 5
    kinds: (
        Annotated[tuple[Kind, ...], Field(max_length=16), AfterValidator(_at_least_one)] | None
    ) = None
    since: Instant | None = None
    until: Instant | None = None
    explain: bool = False
    timeout_s: Annotated[float, Field(gt=0, le=MAX_WAIT_S, allow_inf_nan=False)] | None = None


class Item(BaseModel):
    """One piece of memory. `score` is in 0..1 (see the specification for its meaning); listings carry none.

    `meta` holds the caller's own keys unchanged, then `source`, `timestamp` and `memory` where the caller has none of that name.
    """

    id: str
    kind: Kind
    content: str
    meta: dict[str, Any]
    score: float | None = None
    explain: dict[str, Any] | None = None


class QueryResponse(BaseModel):
    """Best first. `degraded` names the arms that could not answer."""

    items: list[Item]
    degraded: list[str] | None = None


class StoreRequest(_Renamed):
    """Body of `POST /store`. `created_at` is when it happened, by default now. `wait_indexed_s` waits for the embedding."""

    model_config = _STRICT
    other_names: ClassVar = {"metadata": "meta"}

    kind: Kind
    content: Content
    channel_id: Identifier | None = None
    meta: Meta = Field(default_factory=dict)
    created_at: Instant | None = None
    wait_indexed_s: Seconds = 0.0


class StoreResponse(BaseModel):
    """`indexed` tells whether dense search knows it already; lexical search does in any case. `duplicate`: it was known."""

    ok: Literal[True] = True
    id: str
    indexed: bool
    duplicate: bool | None = None


class SummarizeRequest(Tenant):
    """Body of `POST /summarize`: the newest `limit` events, of one channel or of all."""

    model_config = _STRICT

    channel_id: Identifier | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_SUMMARY_EVENTS)] = 50
    timeout_s: Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)] | None = None


class SummarizeResponse(BaseModel):
    """`sources` are the ids of the memories that went into the summary, oldest first."""

    summary: str
    items_processed: int
    sources: list[str] = []
    since: datetime | None = None
    until: datetime | None = None
    cached: bool = False
    model: str | None = None


class ItemsFilter(Tenant):
    """Query string of `GET /items`: newest first, page by page."""

    model_config = _STRICT

    channel_id: Identifier | None = None
    kind: Kind | None = None
    since: Instant | None = None
    until: Instant | None = None
    limit: Limit = 50
    cursor: Annotated[str, StringConstraints(max_length=2_048)] | None = None


class ItemsPage(BaseModel):
    """`next_cursor` is absent on the last page."""

    items: list[Item]
    next_cursor: str | None = None


class DeleteResponse(BaseModel):
    """Answer of `DELETE /items/{id}`."""

    ok: Literal[True] = True
    id: str


class EraseRequest(BaseModel):
    """Body of `POST /erase`: the whole microDAO, one agent of it, or one channel of that agent."""

    model_config = _STRICT

    microdao_id: Identifier
    agent_id: Identifier | None = None
    channel_id: Identifier | None = None

    @model_validator(mode="after")
    def _channel_of_an_agent(self) -> EraseRequest:
        if self.channel_id is not None and self.agent_id is None:
            msg = "channel_id: needs agent_id"
            raise ValueError(msg)
        return self


class EraseReceipt(BaseModel):
    """What was removed, by kind of record; kept in the database under `id`."""

    ok: Literal[True] = True
    id: str
    microdao_id: str
    agent_id: str | None = None
    channel_id: str | None = None
    erased: dict[str, int]
    at: datetime


class ExportFilter(Tenant):
    """Query string of `GET /export`."""

    model_config = _STRICT

    channel_id: Identifier | None = None


class ExportedMemory(BaseModel):
    """One line of an export. Vectors are not part of it: an import embeds anew."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["memory"] = "memory"
    id: ItemId
    kind: Kind
    content: Content
    channel_id: Identifier | None = None
    meta: Meta = Field(default_factory=dict)
    created_at: Instant


class ExportEnd(BaseModel):
    """The last line of an export; without it the file was cut off."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["end"] = "end"
    count: Annotated[int, Field(ge=0)]


class ImportResponse(BaseModel):
    """`imported` are new, `known` were there already."""

    ok: Literal[True] = True
    imported: int
    known: int


class ReindexRequest(BaseModel):
    """Body of `POST /kb/reindex`: one microDAO's folder, or every folder."""

    model_config = _STRICT

    microdao_id: Identifier | None = None


class RefusedFile(BaseModel):
    """A file that is not indexed; `path` is relative to the knowledge base."""

    path: str
    reason: str


class ReindexReport(BaseModel):
    """What a run over the folders found."""

    ok: Literal[True] = True
    files: int = 0
    added: int = 0
    changed: int = 0
    moved: int = 0
    deleted: int = 0
    unchanged: int = 0
    chunks: int = 0
    refused: list[RefusedFile] = []


@dataclass(frozen=True, slots=True)
class Candidate:
    """An item as one arm found it: the best of its chunks.

    `score` is the arm's own: dense, cosine similarity (−1..1); lexical, BM25 (≥ 0, see `QuerySignals.lexical_ceiling`);
    recent, 0 (its order is all it says). `chunk` is the number of the chunk that scored.
    """

    id: str
    score: float
    created_at: datetime
    kind: Kind
    tier: Tier = "mid-term"
    chunk: int = 0


@dataclass(frozen=True, slots=True)
class QuerySignals:
    """What fusion knows about the question.

    `lexical_ceiling` is the BM25 that a chunk of average length would get that holds every gram of the question once:
    the lexical arm's score divided by it tells how much of the question was found.
    """

    text: str
    lexical_ceiling: float = 0.0


@dataclass(frozen=True, slots=True)
class Fused:
    """An item after fusion. `score` is in 0..1; `ranks` has its 1-based rank in each arm that found it."""

    id: str
    score: float
    ranks: Mapping[str, int] = field(default_factory=dict)
