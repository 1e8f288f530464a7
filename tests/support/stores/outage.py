"""A PostgreSQL that hangs or is killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from launcher.postgres import PostgresServer


@contextmanager
def frozen(server: PostgresServer) -> Iterator[None]:
    """Every process of the server stopped: connections stay open and nobody answers."""
    family = _family(server)
    for process in family:
        process.suspend()
    try:
        yield
    finally:
        for process in family:
            process.resume()


async def killed(server: PostgresServer) -> int:
    """Kills the server and returns its exit status, when its sessions are gone, too: a busy one
    ends a little later, and until then no new server starts on the folder.
    """
    postmaster, *sessions = _family(server)
    os.kill(postmaster.pid, signal.SIGKILL)
    status = await server.wait()
    await asyncio.to_thread(psutil.wait_procs, sessions, timeout=30)
    return status


def _family(server: PostgresServer) -> list[psutil.Process]:
    assert server.pid is not None
    postmaster = psutil.Process(server.pid)
    return [postmaster, *postmaster.children(recursive=True)]
