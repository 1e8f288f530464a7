"""A real local OpenAI-compatible server that behaves, and misbehaves, by script."""

from tests.support.llm.upstream.plays import Play, play
from tests.support.llm.upstream.server import Call, ScriptedUpstream

__all__ = ["Call", "Play", "ScriptedUpstream", "play"]
