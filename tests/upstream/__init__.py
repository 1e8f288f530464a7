"""A real local OpenAI-compatible server that behaves, and misbehaves, as told."""

from tests.upstream.plays import Play, play
from tests.upstream.server import Call, ScriptedUpstream

__all__ = ["Call", "Play", "ScriptedUpstream", "play"]
