"""Erased calls of tools: their records and results, also while they run."""

import asyncio

from backends.postgres.erasing import TenantRows
from contracts.memory.administration import EraseRequest
from tests.support.tools.ledger import OURS, until
from tests.support.tools.toolcore import replica, tool

ALL = EraseRequest(microdao_id="microdao:7")


async def test_erased_calls_are_in_no_listing_and_their_results_cannot_be_read(
    database, database_url
):
    async with replica(database_url, tool(effect="write")) as here:
        assert (await here.call(call_id="c-1")).result.ok
        (call,) = (await here.ledger.list_calls(OURS)).calls
        other = EraseRequest(microdao_id="microdao:7", agent_id="agent:other")
        assert (await TenantRows(database).erase(other))["tool_calls"] == 0
        assert await here.ledger.read_result("microdao:7", call.id) is not None
        assert (await TenantRows(database).erase(ALL))["tool_calls"] == 1
        assert (await here.ledger.list_calls(OURS)).calls == []
        assert await here.ledger.read_result("microdao:7", call.id) is None


async def test_a_call_that_runs_keeps_its_record_until_it_has_ended(database, database_url):
    release = asyncio.Event()

    async def work(_):
        await release.wait()
        return {"n": 1}

    async with replica(database_url, tool(effect="write"), script=work) as here:
        running = asyncio.create_task(here.call(call_id="c-1"))
        await until(lambda: here.executor.seen)
        assert (await TenantRows(database).erase(ALL))["tool_calls"] == 0
        release.set()
        assert (await running).result.ok
        assert (await TenantRows(database).erase(ALL))["tool_calls"] == 1
        assert (await here.ledger.list_calls(OURS)).calls == []
