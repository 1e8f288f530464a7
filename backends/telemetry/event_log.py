"""Structured events as JSON lines, written by a thread; emitting costs one queue operation."""

from __future__ import annotations

import fcntl
import logging
import logging.handlers
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import orjson

from common.file_locks import lock_abandoned
from common.tracing import current_trace_id

MAX_QUEUED = 20_000
MAX_FILE_BYTES = 32 << 20
BACKUPS = 2
BATCH = 1_000
FLUSH_INTERVAL_S = 0.5
AT_ONCE = 16
PAUSE_S = 0.0001
"""The thread pauses after `AT_ONCE` events, because the event loop waits while it runs."""
MAX_FIELD_CHARS = 2_048
MAX_FILES = 40
ONLY_COUNTED = frozenset({"http.request", "metrics.sampled"})
"""For listeners alone: too frequent to be written."""

_log = logging.getLogger(__name__)

Event = Mapping[str, Any]
Listener = Callable[[Iterable[Event]], None]


class FileEventLog:
    """Implements the EventLog port over one rotating file (three files of 32 MiB at most).

    When the queue is full, events are dropped and counted; the count is emitted as `log.dropped`.
    `listeners` are called with each batch in the thread, for example for metrics.
    """

    def __init__(self, path: Path, application: str, listeners: Iterable[Listener] = ()) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _prune(path.parent)
        self._handler = _OwnedFile(
            path, maxBytes=MAX_FILE_BYTES, backupCount=BACKUPS, encoding="utf-8", delay=True
        )
        self._application = application
        self._listeners = tuple(listeners)
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="event-log", daemon=True)
        self._thread.start()

    def emit(self, event: str, **fields: Any) -> None:
        """Queues one event, with the current trace's id. Never blocks and never raises."""
        if self._queue.qsize() >= MAX_QUEUED:
            self._dropped += 1
            return
        fields["event"] = event
        fields["at"] = time.time()
        if fields.get("trace_id") is None:
            fields["trace_id"] = current_trace_id()
        self._queue.put(fields)

    def close(self) -> None:
        """Writes the queued events and ends the thread."""
        self._queue.put(None)
        self._thread.join(timeout=5)
        self._handler.close()

    def _run(self) -> None:
        while True:
            batch, ended = self._batch()
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                batch.append({"event": "log.dropped", "at": time.time(), "count": dropped})
            if batch:
                self._write(batch)
            if ended:
                return
            time.sleep(FLUSH_INTERVAL_S)

    def _batch(self) -> tuple[list[dict[str, Any]], bool]:
        """Waits for an event and takes the queued ones; the flag: the log was closed."""
        items = [self._queue.get()]
        while items[-1] is not None and len(items) < BATCH and not self._queue.empty():
            items.append(self._queue.get())
        return [item for item in items if item is not None], items[-1] is None

    def _write(self, batch: list[dict[str, Any]]) -> None:
        """Writes a batch. An error of a listener or a line must not end the thread, because all
        later events would be lost.
        """
        lines: list[bytes] = []
        for start in range(0, len(batch), AT_ONCE):
            events = batch[start : start + AT_ONCE]
            self._notify_listeners(events)
            lines += [line for fields in events if (line := self._safe_line(fields))]
            time.sleep(PAUSE_S)
        if lines:
            # The handler reports errors of the file on stderr and raises none.
            self._handler.emit(logging.makeLogRecord({"msg": b"\n".join(lines).decode()}))

    def _notify_listeners(self, events: list[dict[str, Any]]) -> None:
        for listener in self._listeners:
            try:
                listener(events)
            except Exception as error:  # noqa: BLE001
                # Without the traceback, which might show contents.
                _log.error("a listener of the event log failed: %s", type(error).__name__)

    def _safe_line(self, fields: dict[str, Any]) -> bytes | None:
        name = fields.get("event")
        if name in ONLY_COUNTED:
            return None
        try:
            return self._line(fields)
        except Exception as error:  # noqa: BLE001
            _log.error("the event %s could not be written: %s", name, type(error).__name__)
            return None

    def _line(self, fields: dict[str, Any]) -> bytes:
        at = datetime.fromtimestamp(fields.pop("at"), UTC).isoformat(timespec="milliseconds")
        error = fields.pop("exc_info", None)
        if isinstance(error, BaseException):
            fields["traceback"] = "".join(traceback.format_tb(error.__traceback__))[
                -4 * MAX_FIELD_CHARS :
            ]
        shown = {key: _bounded(value) for key, value in fields.items() if value is not None}
        return orjson.dumps({"time": at, "app": self._application, **shown}, default=repr)


class _OwnedFile(logging.handlers.RotatingFileHandler):
    """Holds a lock on its current file; the kernel frees it when the process dies."""

    def _open(self) -> TextIOWrapper:
        while True:
            stream = super()._open()
            fcntl.flock(stream, fcntl.LOCK_SH)
            if os.fstat(stream.fileno()).st_nlink:
                return stream
            stream.close()  # the file of a dead process with our number was just removed


def _prune(directory: Path) -> None:
    """Removes the oldest files of dead processes. Each process writes its own file, so files of
    former replicas would accumulate.
    """
    with suppress(FileNotFoundError):  # another process prunes at the same time
        files = sorted(directory.glob("*.jsonl*"), key=lambda file: file.stat().st_mtime)
        excess = len(files) - MAX_FILES
        for file in files:
            if excess <= 0:
                return
            excess -= _removed(file)


def _removed(file: Path) -> bool:
    """Removes the file unless its process lives and so holds the lock on its current file."""
    try:
        held = lock_abandoned(file.with_name(f"{file.name.partition('.jsonl')[0]}.jsonl"))
        if held is None:
            return False
    except FileNotFoundError:
        held = None  # only rotated files are left
    except PermissionError:  # another user's
        return False
    try:
        file.unlink(missing_ok=True)
    finally:
        if held is not None:
            os.close(held)
    return True


def _bounded(value: Any) -> Any:
    if isinstance(value, str):
        if len(value) <= MAX_FIELD_CHARS and value.isascii():
            return value
        text = value.encode("utf-8", "replace").decode()
        return text if len(text) <= MAX_FIELD_CHARS else f"{text[:MAX_FIELD_CHARS]}…"
    return value
