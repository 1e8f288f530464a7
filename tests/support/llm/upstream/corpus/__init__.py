"""Oddities of upstreams and clients, from public bug reports: input and expected outcome.

`README.md` describes the form.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.support.llm.upstream.plays import Play, play

FOLDER = Path(__file__).parent
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Case:
    """One oddity.

    `upstream` is what the provider answers, `request` what the client asks beside the usual,
    `expect` what comes out.
    """

    id: str
    source: str
    what: str
    expect: dict[str, Any]
    stream: bool = False
    upstream: dict[str, Any] = field(default_factory=dict)
    request: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    fallback: bool = False

    def play(self) -> Play:
        """What the scripted upstream does."""
        upstream = self.upstream
        if not upstream:
            return play("ok", text="so")
        options = {
            name: upstream[name] for name in ("status", "headers", "pause_s") if name in upstream
        }
        default = "text/event-stream" if self.stream else "application/json"
        return play(
            "raw", pieces=self._pieces(), content_type=upstream.get("type", default), **options
        )

    def _pieces(self) -> list[bytes]:
        upstream = self.upstream
        if "raw" in upstream:
            return [piece.encode() for piece in _listed(upstream["raw"])]
        if "latin1" in upstream:
            return [piece.encode("latin-1") for piece in _listed(upstream["latin1"])]
        if "gzip" in upstream:
            return [gzip.compress(piece.encode()) for piece in _listed(upstream["gzip"])]
        if "body" in upstream:
            return [json.dumps(upstream["body"], ensure_ascii=False).encode()]
        if "message" in upstream:
            return [json.dumps(completion(upstream)).encode()]
        frames = list(upstream.get("frames", []))
        if "deltas" in upstream:
            frames = [chunk(delta) for delta in upstream["deltas"]]
            reason = (
                "tool_calls"
                if any("tool_calls" in delta for delta in upstream["deltas"])
                else "stop"
            )
            frames.append(chunk({}, upstream.get("finish", reason)))
            frames += [{"choices": [], "usage": upstream["usage"]}] if "usage" in upstream else []
        end = [DONE] if upstream.get("done", True) else []
        return [b"data: " + _text(frame) + b"\n\n" for frame in frames] + end


def _listed(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def _text(frame: Any) -> bytes:
    return (
        frame.encode() if isinstance(frame, str) else json.dumps(frame, ensure_ascii=False).encode()
    )


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    """One regular chunk of a stream."""
    head = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def completion(upstream: dict[str, Any]) -> dict[str, Any]:
    """A regular whole answer around `message`."""
    reason = upstream.get(
        "finish", "tool_calls" if upstream["message"].get("tool_calls") else "stop"
    )
    choice = {
        "index": 0,
        "message": {"role": "assistant", **upstream["message"]},
        "finish_reason": reason,
    }
    usage = upstream.get("usage", {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5})
    return {
        "id": "c-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


def cases() -> list[Case]:
    """Every case of the corpus."""
    return [
        Case(**entry)
        for path in sorted(FOLDER.glob("*.yaml"))
        for entry in yaml.safe_load(path.read_text("utf-8"))
    ]
