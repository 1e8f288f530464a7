"""One child process, from its start until nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from executors.python.launch import Launch
from executors.python.scratch import stored

HEADER_BYTES = 5
READ_BYTES = 1 << 16
MAX_OUTPUT_BYTES = 1 << 20
SCRATCH_CHECK_S = 0.1
REAP_S = 5.0
# One arena: each thread's own would take 64 MiB of the bounded address space. The child clears this
# variable.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}


class OutputFlood(Exception):
    """The child printed more than it may."""


class CallUnsendable(Exception):
    """The arguments have no JSON form."""


class ScratchFull(Exception):
    """The child stored more than it may."""


@dataclass(frozen=True)
class Frame:
    """What the child wrote: a tag and a body. Both come from the tool and are not trusted."""

    tag: bytes
    body: bytes


class ChildDied(Exception):
    """The child ended without a whole frame; `signal` is the signal that ended it, or None."""

    def __init__(self, returncode: int | None) -> None:
        super().__init__(returncode)
        code = returncode or 0
        self.signal = -code if code < 0 else code - 128 if code > 128 else None


class SandboxedProcess:
    """Starts a child, collects its frame, and leaves nothing behind.

    The constructor starts it; it raises OSError or CallUnsendable. The starting thread must live as
    long as the call, because the kernel ends the child with that thread.
    """

    def __init__(
        self, launch: Launch, call: dict[str, Any], *, max_frame_bytes: int, scratch_bytes: int
    ) -> None:
        self._launch = launch
        self._max_frame = max_frame_bytes
        self._scratch_bytes = scratch_bytes
        self._frame = bytearray()
        self._output = 0
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._readers: set[int] = set()
        self._process = self._start(call)

    async def frame(self) -> Frame:
        """Waits for the frame.

        Raises:
            ChildDied, OutputFlood, ScratchFull: see there. `end` must be awaited in every case.
            PermissionError: this process may not inspect the child for unlinked files.
        """
        # Tier `process` cannot write, and bubblewrap's scratch folder has a fixed size.
        watch = (
            {asyncio.ensure_future(self._watch_scratch())}
            if self._launch.sandbox["tier"] == "landlock"
            else set()
        )
        try:
            ended, _ = await asyncio.wait({*watch, self._done}, return_when=asyncio.FIRST_COMPLETED)
            for end in ended:
                end.result()
        finally:
            for task in watch:
                task.cancel()
        if (frame := self._whole_frame()) is not None:
            return frame
        await self._reap()
        raise ChildDied(self._process.returncode)

    async def end(self) -> None:
        """Kills the child and its descendants, waits until they are gone and releases resources."""
        self._kill()
        try:
            await self._reap()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REAP_S):
                    await asyncio.shield(self._gone)  # the last holder of the output has closed it
        finally:
            self._release()

    def _start(self, call: dict[str, Any]) -> subprocess.Popen[bytes]:
        encoded = _encoded({**call, "sandbox": self._launch.sandbox})
        source = os.memfd_create("call")
        result, sink = os.pipe()
        output, printed = os.pipe()
        try:
            with os.fdopen(os.dup(source), "wb") as file:
                file.write(encoded)
            os.lseek(source, 0, os.SEEK_SET)
            words = {"{call}": str(source), "{result}": str(sink)}
            process = subprocess.Popen(  # noqa: S603  # our interpreter or bubblewrap
                [words.get(word, word) for word in self._launch.command],
                cwd=self._launch.directory,
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                pass_fds=(source, sink),
                start_new_session=True,
            )
        except BaseException:
            for descriptor in (result, output):
                os.close(descriptor)
            raise
        finally:
            for descriptor in (source, sink, printed):
                os.close(descriptor)
        self._read(result, self._take_result, self._done)
        self._read(output, self._take_output, self._gone)
        return process

    def _read(
        self, descriptor: int, take: Callable[[bytes], bool], ended: asyncio.Future[None]
    ) -> None:
        """Feeds `take` until it returns True or the other end is closed; `ended` is set then."""
        os.set_blocking(descriptor, False)
        loop = asyncio.get_running_loop()

        def readable() -> None:
            try:
                data = os.read(descriptor, READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                loop.remove_reader(descriptor)
            if (not data or take(data)) and not ended.done():
                ended.set_result(None)

        self._readers.add(descriptor)
        loop.add_reader(descriptor, readable)

    def _take_result(self, data: bytes) -> bool:
        if len(self._frame) <= self._max_frame:
            self._frame += data
        return self._whole_frame() is not None or len(self._frame) > self._max_frame

    def _take_output(self, data: bytes) -> bool:
        self._output += len(data)
        if self._output > MAX_OUTPUT_BYTES and not self._done.done():
            self._kill()
            self._done.set_exception(OutputFlood())
        return False

    def _whole_frame(self) -> Frame | None:
        if len(self._frame) < HEADER_BYTES:
            return None
        length = int.from_bytes(self._frame[:4], "big")
        if not 1 <= length <= self._max_frame or len(self._frame) < 4 + length:
            return None
        return Frame(bytes(self._frame[4:5]), bytes(self._frame[5 : 4 + length]))

    async def _watch_scratch(self) -> None:
        while True:
            await asyncio.sleep(SCRATCH_CHECK_S)
            found = await asyncio.to_thread(stored, self._launch.directory, self._process.pid)
            if found > self._scratch_bytes:
                raise ScratchFull

    def _kill(self) -> None:
        """Kills the child's session. It is not reaped yet, so its number is still its own."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _reap(self) -> None:
        pause, waited = 0.0005, 0.0
        while self._process.poll() is None and waited < REAP_S:
            await asyncio.sleep(pause)
            waited += pause
            pause = min(2 * pause, 0.02)

    def _release(self) -> None:
        loop = asyncio.get_running_loop()
        for descriptor in self._readers:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        self._readers.clear()
        for future in (self._done, self._gone):
            if not future.done():
                future.cancel()
            elif not future.cancelled():
                future.exception()  # retrieved, so that asyncio does not report it


def _encoded(call: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(call)
    except TypeError:
        raise CallUnsendable from None
