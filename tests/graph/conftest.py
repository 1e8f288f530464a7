"""One real graph for the whole suite."""

import tempfile
from pathlib import Path

import httpx
import pytest

from tests.support.graph.running import RunningGraph


@pytest.fixture(scope="session")
def graph():
    """Yields the ready graph; after the suite, checks that no process is left."""
    # Not pytest's own folder: it is closed to the account that PostgreSQL runs as.
    with tempfile.TemporaryDirectory(prefix="daarion-graph-", ignore_cleanup_errors=True) as folder:
        running = RunningGraph(Path(folder))
        try:
            running.start()
            yield running
        finally:
            left = running.stop()
        assert left == []


@pytest.fixture
async def client(graph):
    async with httpx.AsyncClient(base_url=graph.url, timeout=60) as client:
        yield client
