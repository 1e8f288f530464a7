"""Fixtures of the tools' tests."""

from tests.support.memory.fixtures import embedder, memory
from tests.support.tools.http_executor import executor, server
from tests.support.tools.routes import served
from tests.support.tools.sandbox_fixtures import host, tier

__all__ = ["embedder", "executor", "host", "memory", "served", "server", "tier"]
