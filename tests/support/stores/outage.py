"""A PostgreSQL that hangs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from launcher.postgres import PostgresServer


@contextmanager
def frozen(server: PostgresServer) -> Iterator[None]:
    """Every process of the server stopped: connections stay open and nobody answers."""
    assert server.pid is not None
    postmaster = psutil.Process(server.pid)
    family = [postmaster, *postmaster.children(recursive=True)]
    for process in family:
        process.suspend()
    try:
        yield
    finally:
        for process in family:
            process.resume()
