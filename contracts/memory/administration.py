"""Wire shapes of the memory's administration: erase, export, import, reindex."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from contracts.identity import Identifier, Tenant
from contracts.memory.fields import Content, ItemId, Kind, Meta
from contracts.shapes import Strict
from contracts.values import Instant


class EraseRequest(Strict):
    """Body of `POST /erase`: the whole microDAO, one agent or one channel of it, or what is one
    agent's in one channel.
    """

    microdao_id: Identifier
    agent_id: Identifier | None = None
    channel_id: Identifier | None = None


class EraseReceipt(BaseModel):
    """Removed records, counted by class; the receipt is kept in the database under `id`.

    `kept` says by class what stays, and why.
    """

    ok: Literal[True] = True
    id: str
    microdao_id: str
    agent_id: str | None = None
    channel_id: str | None = None
    erased: dict[str, int]
    kept: dict[str, str] = {}
    at: datetime


class ExportFilter(Tenant, Strict):
    """Query string of `GET /export`."""

    channel_id: Identifier | None = None


class ExportedMemory(Strict):
    """One line of an export. It has no vectors: an import embeds the text again."""

    type: Literal["memory"] = "memory"
    id: ItemId
    kind: Kind
    content: Content
    channel_id: Identifier | None = None
    meta: Meta = Field(default_factory=dict)
    created_at: Instant


class ExportEnd(Strict):
    """The last line of an export; an export without it is truncated."""

    type: Literal["end"] = "end"
    count: Annotated[int, Field(ge=0)]


class ImportResponse(BaseModel):
    """`imported` memories are new, `known` ones were stored before."""

    ok: Literal[True] = True
    imported: int
    known: int


class ReindexRequest(Strict):
    """Body of `POST /kb/reindex`: one microDAO's folder, or every folder."""

    microdao_id: Identifier | None = None


class RefusedFile(BaseModel):
    """A file that was not indexed; `path` is relative to the folder."""

    path: str
    reason: str


class ReindexReport(BaseModel):
    """Counts of one run over the folders; `chunks` counts those that need an embedding."""

    ok: Literal[True] = True
    files: int = 0
    added: int = 0
    changed: int = 0
    moved: int = 0
    deleted: int = 0
    unchanged: int = 0
    chunks: int = 0
    refused: list[RefusedFile] = []
