"""Calls in the ledger: claimed by owners that are gone, or run by a slow tool."""

from __future__ import annotations

import asyncio
import contextlib

import psycopg

from backends.tools.ledger import LedgerLimits
from contracts.tools.ledger import CallFilter, CallIntent
from services.tools.values import digest
from tests.support.tools.toolcore import AGENT, replica, tool

# No lease of a test runs out by itself: `run_out` ends them, so a busy machine changes nothing.
LONG = LedgerLimits(lease_s=300)
OURS = CallFilter(microdao_id="microdao:7")


def intent(call_id="c-1", effect="write", **fields):
    values = {
        "call_id": call_id,
        "microdao_id": "microdao:7",
        "agent_id": "agent:sofia",
        "tool_id": "test.echo",
        "tool_version": 1,
        "effect": effect,
        "via": "http",
        "request_id": "r",
        "fingerprint": b"f",
        "rule": "default",
    }
    return CallIntent(**{**values, **fields})


async def run_out(owner_url):
    """Ends every lease, as time would."""
    async with await psycopg.AsyncConnection.connect(owner_url, autocommit=True) as owner:
        changed = await owner.execute(
            "UPDATE tool_calls SET leased_until = now() - interval '1 minute' "
            "WHERE state = 'running'"
        )
    assert changed.rowcount > 0


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def slow_replica(database_url, seconds, **definition):
    """A replica whose tool takes a while, and can be asked how often it ran."""

    async def work(execution):
        await asyncio.sleep(seconds)
        return {"n": execution.attempt}

    async with replica(database_url, tool(**definition), script=work) as here:
        yield here


async def claim_as(ledger, here, call_id, effect="write"):
    """Claims a call as `here` would, by an owner that never comes back."""
    fingerprint = digest("test.echo", AGENT["agent_id"], {})
    assert await ledger.claim(intent(call_id, effect, fingerprint=fingerprint)) is None
