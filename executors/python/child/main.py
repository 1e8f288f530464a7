"""The child: reads the call, gives up its rights, runs the function, writes one frame and ends.

A frame is a length (4 bytes, big-endian), a tag and a body: `R` with the result as JSON, `F` with
`{"kind", "error"}`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CoroutineType, FunctionType

from executors.python.child import kernel, landlock

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` costs a tenth of the start
    from typing import Any

RESULT, FAILURE = b"R", b"F"
MAX_ERROR_CHARS = 1_000


class Failed(Exception):
    """The call ends with this kind and text."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def main() -> None:
    """Entry of the child: `argv` holds the descriptors of the call and of the result."""
    source, sink = int(sys.argv[1]), int(sys.argv[2])
    with os.fdopen(source, "rb") as file:
        call = json.load(file)
    try:
        confine(call["sandbox"])
    except (OSError, KeyError) as error:
        _end(sink, FAILURE, _failure("unavailable", f"the sandbox cannot be set up: {error}"))
    try:
        body = _run(call)
    except Failed as failed:
        _end(sink, FAILURE, _failure(failed.kind, str(failed)))
    _end(sink, RESULT, body)


def confine(sandbox: dict[str, Any]) -> None:
    """Gives up rights, in an order in which each step is still allowed. Raises OSError."""
    kernel.die_with_parent(sandbox["parent"])
    kernel.limit(sandbox["limits"])
    tier = sandbox["tier"]
    if tier == "bubblewrap":
        kernel.mount_scratch(sandbox["scratch"], sandbox["scratch_bytes"], sandbox["scratch_files"])
    # In tier `landlock` the runner counts open files that have lost their names, through /proc.
    kernel.drop_privileges(visible=tier == "landlock")
    if tier == "landlock":
        landlock.confine(sandbox["readable"], sandbox["writable"], sandbox["scratch"])
    kernel.filter_calls(bytes.fromhex(sandbox["filter"]))


def _run(call: dict[str, Any]) -> bytes:
    os.environ.clear()
    os.environ.update(call["variables"])
    if call["sandbox"]["network"]:
        _pair_by_internet()
    try:
        result = _function(call)(call["args"], call["context"])
        if isinstance(result, CoroutineType):
            import asyncio  # noqa: PLC0415  # costs more than a plain function's whole call

            result = asyncio.run(result)
    except Failed:
        raise
    except MemoryError:
        raise Failed("upstream", "the tool ran out of the memory it may use") from None
    except ValueError as error:
        raise Failed("invalid_args", str(error)[:MAX_ERROR_CHARS]) from None
    except BaseException as error:  # noqa: BLE001  # a tool's SystemExit fails, too
        text = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise Failed("upstream", f"{type(error).__name__}: {text}"[:MAX_ERROR_CHARS]) from None
    return _encoded(result, call["max_result_bytes"])


def _function(call: dict[str, Any]) -> Any:
    package, module = call["package"], call["module"]
    sys.path.extend(call.get("libraries", ()))
    if package is not None:
        sys.meta_path.insert(0, _Package(package["name"], package["path"]))
    try:
        found = getattr(importlib.import_module(module), call["function"], None)
    except ModuleNotFoundError as error:
        if error.name and module.startswith(error.name):
            raise Failed("unavailable", "the tool's package has no such module") from None
        raise
    if (
        not isinstance(found, FunctionType)
        or found.__module__.partition(".")[0] != module.partition(".")[0]
    ):
        raise Failed("unavailable", "the tool's module defines no such function")
    return found


class _Package:
    """Finds one package in its folder, without making the folder's neighbours importable."""

    def __init__(self, name: str, path: str) -> None:
        self._name = name
        self._path = path

    def find_spec(
        self, name: str, _path: object = None, _target: object = None
    ) -> ModuleSpec | None:
        if name != self._name:
            return None
        origin = f"{self._path}/__init__.py"
        spec = ModuleSpec(name, SourceFileLoader(name, origin), origin=origin, is_package=True)
        spec.submodule_search_locations = [self._path]
        spec.has_location = True
        return spec


def _pair_by_internet() -> None:
    """Replaces `socket.socketpair`, which asyncio needs, by a pair of internet sockets.

    The filter refuses pairs of Unix sockets where a network is granted: `sendmsg`, allowed then,
    could pass descriptors through them and hide files.
    """
    import socket  # noqa: PLC0415

    by_kernel = socket.socketpair

    def pair(*asked: Any, **named: Any) -> tuple[socket.socket, socket.socket]:
        if asked or named:
            return by_kernel(*asked, **named)
        with socket.create_server(("127.0.0.1", 0), backlog=1) as server:
            first = socket.create_connection(server.getsockname())
            second, address = server.accept()
        if address != first.getsockname():
            raise ConnectionError("another process connected to the pair")
        return first, second

    socket.socketpair = pair


def _encoded(result: Any, limit: int) -> bytes:
    try:
        body = json.dumps(
            result, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        ).encode()
    except MemoryError:
        raise Failed("upstream", "the tool ran out of the memory it may use") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise Failed(
            "invalid_result", f"the tool's result is not a JSON value: {error}"[:MAX_ERROR_CHARS]
        ) from None
    if len(body) > limit:
        raise Failed("too_large", f"the tool's result is over its limit of {limit} bytes")
    return body


def _failure(kind: str, text: str) -> bytes:
    return json.dumps({"kind": kind, "error": text}).encode()


def _end(sink: int, tag: bytes, body: bytes) -> None:
    """Writes the frame and ends at once: no exit handler of the tool runs."""
    frame = memoryview((len(body) + 1).to_bytes(4, "big") + tag + body)
    while frame:
        frame = frame[os.write(sink, frame) :]
    os._exit(0)
