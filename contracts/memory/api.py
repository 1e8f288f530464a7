"""Wire shapes of the memory's routes for agents: query, store, summarize, items."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, model_validator

from contracts.identity import Identifier, Tenant
from contracts.memory.fields import (
    MAX_WAIT_S,
    Content,
    ItemId,
    Kind,
    Limit,
    Meta,
    Seconds,
    TenantWithAliases,
)
from contracts.shapes import Strict
from contracts.values import Instant, not_blank, storable

MAX_QUERY_CHARS = 8_000
MAX_SUMMARY_EVENTS = 1_000
SPEAKER_PATTERN = r"^[\p{L}][\p{L}\p{N}_.'’ -]*$"
"""A name, without a colon: a letter, then letters, digits, blanks and `._'’-`."""


_SAID = frozenset({"text", "user_message", "agent_reply"})
Speaker = Annotated[
    str,
    StringConstraints(strip_whitespace=True, max_length=41, pattern=SPEAKER_PATTERN),
    AfterValidator(storable),
]


def _at_least_one(kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
    if not kinds:
        raise ValueError("give at least one kind, or leave it out for all")
    return kinds


class QueryRequest(TenantWithAliases):
    """Body of `POST /query`.

    `channel_id` selects that channel and items without a channel; `kinds`, `since` (inclusive) and
    `until` (exclusive) narrow further. `explain` adds each arm's rank and score.
    """

    aliases: ClassVar = {"kind_filter": "kinds"}

    query: Annotated[
        str,
        StringConstraints(min_length=1, max_length=MAX_QUERY_CHARS),
        AfterValidator(storable),
        AfterValidator(not_blank),
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
    """One piece of memory. `score` is in 0..1 (see docs/retrieval.md); listings have none.

    `meta` has the caller's own keys unchanged, and `source`, `timestamp` and `memory` unless the
    caller uses these names.
    """

    id: str
    kind: Kind
    content: str
    meta: dict[str, Any]
    score: float | None = None
    explain: dict[str, Any] | None = None


class QueryResponse(BaseModel):
    """Items, best first. `degraded` names the arms that failed."""

    items: list[Item]
    degraded: list[str] | None = None


class StoreRequest(TenantWithAliases):
    """Body of `POST /store`.

    `speaker` is who says `text` or `user_message`: it is stored in front, as `Name: …`, by which a
    query knows it. `created_at` is when it happened, by default now. `wait_indexed_s` waits for the
    embedding.
    """

    aliases: ClassVar = {"metadata": "meta"}

    kind: Kind
    content: Content
    speaker: Speaker | None = None
    channel_id: Identifier | None = None
    meta: Meta = Field(default_factory=dict)
    created_at: Instant | None = None
    wait_indexed_s: Seconds = 0.0

    @model_validator(mode="after")
    def _with_speaker(self) -> StoreRequest:
        if self.speaker is None:
            return self
        for key in ("user_message", "text"):
            said = self.content.get(key)
            if isinstance(said, str) and said.strip() and self.content.keys() <= _SAID:
                if not said.strip().startswith(f"{self.speaker}:"):
                    self.content[key] = f"{self.speaker}: {said}"
                return self
        raise ValueError("speaker: for a content of {text} or {user_message, agent_reply}")


class StoreResponse(BaseModel):
    """`indexed`: dense search finds it; lexical search does at once. `duplicate`: not new."""

    ok: Literal[True] = True
    id: str
    indexed: bool
    duplicate: bool | None = None


class SummarizeRequest(Tenant, Strict):
    """Body of `POST /summarize`: the newest `limit` events of one channel, or of all channels."""

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


class ItemsFilter(Tenant, Strict):
    """Query string of `GET /items`: newest first, page by page."""

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


class ForgetRequest(Tenant, Strict):
    """Arguments of the MCP tool `forget`; `DELETE /items/{id}` has them in path and query."""

    id: ItemId


class DeleteResponse(BaseModel):
    """Answer of `DELETE /items/{id}`."""

    ok: Literal[True] = True
    id: str
