"""Ports of the memory's background work: storage and the file system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from contracts.llm.embeddings import EmbeddingBatch
from contracts.memory.administration import EraseReceipt, EraseRequest, RefusedFile
from contracts.memory.documents import StoredDocument
from contracts.memory.ports import Area


class Upkeep(Protocol):
    """A periodic job. `run` returns quickly when nothing is due; one process runs it at a time."""

    name: str
    interval_s: float

    async def run(self) -> None:
        """Does the work that is due."""


class JobLeases(Protocol):
    """Mutual exclusion between processes, limited in time."""

    async def lease(self, name: str, lease_s: float) -> bool:
        """Takes or renews the lease; False while another process holds it."""

    async def release(self, name: str) -> None:
        """Ends this process's lease."""


@dataclass(frozen=True, slots=True)
class PendingChunk:
    """A chunk without an embedding."""

    chunk_no: int
    content: str


@dataclass(frozen=True, slots=True)
class Claim:
    """Chunks of one area that this process embeds until its lease ends."""

    area: Area
    chunks: Sequence[PendingChunk]


class IngestionQueue(Protocol):
    """Chunks that wait for their embedding. A dead process's chunks return after their lease."""

    async def lease(self, limit: int) -> Claim | None:
        """Leases chunks of the next area in turn; None while nothing waits."""

    async def finish(self, claim: Claim, vectors: EmbeddingBatch) -> None:
        """Writes the vectors and removes the chunks from the queue, atomically and idempotently."""

    async def release(self, claim: Claim) -> None:
        """Ends the lease, so that the chunks can be leased again."""

    async def refuse(self, claim: Claim, most: int) -> int:
        """Counts a refusal per chunk and drops chunks with `most` of them; returns how many."""


@dataclass(frozen=True, slots=True)
class DocumentFile:
    """A readable file. `path` is relative to its folder, with `/`."""

    path: str
    size: int
    modified_ns: int


class UnreadableFile(ValueError):
    """A file that cannot be indexed, or not now; the message is the reason, without a path."""

    def __init__(self, reason: str, *, for_now: bool = False) -> None:
        super().__init__(reason)
        self.for_now = for_now


class DocumentFolders(Protocol):
    """The knowledge base's folders on disk. No symbolic link is followed."""

    async def of_microdaos(self) -> Mapping[str, Sequence[Path]]:
        """Returns each microDAO's folders: named by its id, plain or percent-encoded."""

    async def scan(self, folder: Path) -> tuple[Sequence[DocumentFile], Sequence[RefusedFile]]:
        """Returns readable and refused files, in order of their path; nothing for no folder."""

    def home(self, microdao_id: str) -> Path:
        """Returns the microDAO's folder for uploads, the first of its folders if it exists."""

    async def find(self, folders: Sequence[Path], path: str) -> tuple[Path, DocumentFile] | None:
        """Returns the readable file of this path, and the first folder that has it."""

    async def read(self, folder: Path, file: DocumentFile) -> tuple[bytes, bytes]:
        """Returns the file's contents and SHA-256. Raises UnreadableFile."""

    def most_bytes(self, path: str) -> int:
        """Returns how large a file of this path may be."""

    async def write(self, microdao_id: str, path: str, data: bytes) -> DocumentFile:
        """Writes the file into the microDAO's `home`, at once and durably.

        Raises:
            Conflict: a folder, a file or a symbolic link is in its way.
            Unavailable: the disk is full, or not writable.
        """

    async def unlink(self, folder: Path, path: str) -> bool:
        """Deletes a file, and folders that are empty then; False if there is none.

        Raises Unavailable where the disk is not writable.
        """

    async def remove(self, folder: Path) -> None:
        """Deletes the folder with everything in it."""


@dataclass(frozen=True, slots=True)
class Document:
    """An indexed file.

    `digest` is the file's SHA-256 and a fingerprint of the rules that cut it, which is empty in
    documents of older releases.
    """

    id: int
    file: DocumentFile
    digest: bytes

    @property
    def file_hash(self) -> bytes:
        """The file's SHA-256."""
        return self.digest[:32]


@dataclass(frozen=True, slots=True)
class DocumentChunk:
    """A searchable piece of a document; `meta` says where it stands."""

    content: str
    meta: Mapping[str, Any]


class DocumentStore(Protocol):
    """Indexed documents of one tree at a time; the shared tree's microdao_id is empty."""

    async def trees(self) -> Sequence[str]:
        """Returns the microDAOs that have, or had, indexed documents."""

    async def known(self, microdao_id: str) -> dict[str, Document]:
        """Returns the tree's documents by path."""

    async def find(self, microdao_id: str, path: str) -> Document | None:
        """Returns the document of this path."""

    async def page(
        self, microdao_id: str, *, after: str = "", path: str | None = None, limit: int = 1
    ) -> list[StoredDocument]:
        """Returns documents in order of their paths: those after `after`, or the one of `path`."""

    async def count(self, microdao_id: str) -> int:
        """Returns the number of the tree's documents."""

    async def chunks(self, microdao_id: str, document: Document) -> Sequence[DocumentChunk]:
        """Returns the document's chunks in their order."""

    async def save(
        self,
        microdao_id: str,
        file: DocumentFile,
        digest: bytes,
        chunks: Sequence[DocumentChunk],
    ) -> int:
        """Writes a new or changed document; returns how many chunks need an embedding.

        A chunk whose text did not change keeps its vector.
        """

    async def touch(
        self, microdao_id: str, document: Document, file: DocumentFile, digest: bytes
    ) -> bool:
        """Records a document's new path, size, time or digest; its chunks are the same.

        Returns False, and changes nothing, if the document was removed, or another one has that
        path.
        """

    async def remove(self, microdao_id: str, document: Document) -> int:
        """Removes a document; returns the number of its chunks."""


class RowErasure(Protocol):
    """Removal of what other wings store."""

    async def erase(self, request: EraseRequest) -> dict[str, int]:
        """Removes every row that the request selects; returns removed rows by class."""


class ErasureStore(Protocol):
    """Removal of memories of whole tenants and channels."""

    async def agents(self, microdao_id: str) -> Sequence[str]:
        """Returns the microDAO's agents that have, or had, memories."""

    async def erase(self, area: Area, channel_id: str | None) -> dict[str, int]:
        """Removes an area, or one channel of it, from every tier; returns removed rows by kind."""

    async def receipt(self, request: EraseRequest, erased: Mapping[str, int]) -> EraseReceipt:
        """Stores and returns the receipt."""
