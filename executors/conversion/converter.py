"""Implements DocumentConverter: each file is converted in a child process of its own."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from configs.tools import ConfiguredSecrets
from contracts.deadline import Deadline
from contracts.events import EventLog
from contracts.memory.background import UnreadableFile
from contracts.memory.documents import PLAIN, DocumentPart, kind_of
from contracts.tools.api import MAX_RESULT_BYTES, Execution, IsolationTier, ToolDefinition
from contracts.values import is_storable
from executors.conversion.formats import MAX_PAGES
from executors.python.executor import PythonLimits, PythonToolExecutor
from executors.python.packages import Packages, site_packages
from executors.python.tiers import probe_tiers

LIMITS = PythonLimits(max_concurrent=2, memory_mb=1_024, disk_mb=0, cpu_s=60)
LIBRARIES = ("html-to-markdown", "mammoth", "pypdfium2")
_TOOL = ToolDefinition(
    id="documents.convert",
    name="Conversion of a document",
    input_schema={},
    executor="python",
    target="conversion.formats:convert",
    timeout_s=120,  # a file may wait for its turn
    effect="read",
    max_result_bytes=MAX_RESULT_BYTES,
)
_PARTS = TypeAdapter(Annotated[list[DocumentPart], Field(max_length=MAX_PAGES)])


class SandboxedConverter:
    """Decodes plain files here; other files are read in the strongest tier that the host offers,
    from `floor` up.

    The tiers are tried before the first conversion. All texts of a file together have at most
    `characters`. At most two conversions run at a time, and others wait.
    """

    def __init__(self, events: EventLog, *, characters: int, floor: IsolationTier) -> None:
        self.version = " ".join(version(library) for library in LIBRARIES)
        self._events = events
        self._characters = characters
        self._floor = floor
        self._executor: PythonToolExecutor | None = None
        self._starting = asyncio.Lock()

    async def close(self) -> None:
        """Waits until the last children are gone."""
        if self._executor is not None:
            await self._executor.close()

    async def convert(self, path: str, data: bytes) -> Sequence[DocumentPart]:
        kind = kind_of(path)
        if kind in PLAIN:
            return [DocumentPart(text=_decoded(data))]
        executor = await self._started()
        encoded = await asyncio.to_thread(lambda: base64.b64encode(data).decode())
        args = {"kind": kind, "data": encoded}
        deadline = Deadline.after(_TOOL.timeout_s)
        outcome = await executor.execute(Execution(_TOOL, args, {}, _TOOL.id, deadline, _TOOL.id))
        if not outcome.ok:
            reason = (outcome.error or "").replace("the tool", "the converter")
            for_now = outcome.retryable or outcome.error_kind == "unavailable"
            raise UnreadableFile(f"it cannot be read as {kind}: {reason}", for_now=for_now)
        return await asyncio.to_thread(self._checked, outcome.result)

    async def _started(self) -> PythonToolExecutor:
        async with self._starting:
            if self._executor is None:
                self._executor = PythonToolExecutor(
                    Packages(["conversion"]),
                    await probe_tiers(),
                    ConfiguredSecrets({}, lambda _name: None, ""),
                    self._events,
                    limits=LIMITS,
                    libraries=site_packages(),
                    floor=self._floor,
                )
        return self._executor

    def _checked(self, result: object) -> list[DocumentPart]:
        """The child read a file that may be hostile, so its answer is not trusted either."""
        try:
            parts = [part for part in _PARTS.validate_python(result) if part.text.strip()]
        except ValidationError:
            raise UnreadableFile("its text cannot be stored") from None
        if not parts:
            raise UnreadableFile("it holds no text; a scan needs text recognition first")
        if sum(len(part.text) for part in parts) > self._characters:
            raise UnreadableFile(f"it holds more than {self._characters} characters of text")
        return parts


def _decoded(data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableFile(f"not UTF-8 (byte {error.start})") from None
    if not is_storable(text):
        raise UnreadableFile("contains NUL characters")
    return text
