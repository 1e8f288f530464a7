"""1,000 calls, 32 at a time, while replicas are killed: one result each, no write twice."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import random
import signal
import socket
import sys
import time
from pathlib import Path

import aiohttp
import httpx
import psycopg
import pytest

from tests.support.tools.toolcore import AGENT, PREFIX, tool
from tests.support.uvicorn_server import served

REPOSITORY = Path(__file__).resolve().parents[2]
CALLS = 1_000
CONCURRENCY = 32
KILLS = 4
START_TIMEOUT_S = 40
CALL_TIMEOUT_S = 45
EFFECTS = ("write", "write", "idempotent", "read")


class Target:
    """The service behind the tools: counts effects, which happen a moment after the request."""

    def __init__(self):
        self.effects = collections.Counter()
        self.keys = collections.defaultdict(set)

    async def __call__(self, scope, receive, send):
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        call_id = json.loads(body)["context"]["call_id"]
        await asyncio.sleep(random.uniform(0, 0.02))
        self.effects[call_id] += 1
        self.keys[call_id].add(dict(scope["headers"])[b"idempotency-key"])
        await asyncio.sleep(random.uniform(0, 0.02))
        answer = json.dumps({"done": call_id}).encode()
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"application/json")],
            }
        )
        await send({"type": "http.response.body", "body": answer})


class Replica:
    """One process, started again on its port after each kill."""

    def __init__(self, database_url, tools):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}{PREFIX}"
        self._argv = [
            sys.executable,
            "-m",
            "tests.support.tools.process",
            database_url,
            str(self.port),
            json.dumps(tools),
        ]
        self.process = None

    async def start(self):
        self.process = await asyncio.create_subprocess_exec(*self._argv, cwd=REPOSITORY)
        async with httpx.AsyncClient() as http, asyncio.timeout(START_TIMEOUT_S):
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await http.get(f"{self.url}/health")).status_code == 200:
                        return
                assert self.process.returncode is None
                await asyncio.sleep(0.1)

    async def kill(self):
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
            await self.process.wait()


async def call(session, replicas, number):
    """A caller: repeats its call with the same id at any replica until the answer is final."""
    effect = EFFECTS[number % len(EFFECTS)]
    body = {
        "tool_id": f"target.{effect}",
        "args": {"n": number},
        "call_id": f"call-{number}",
        **AGENT,
    }
    given_up = time.monotonic() + CALL_TIMEOUT_S
    while time.monotonic() < given_up:
        try:
            async with session.post(f"{random.choice(replicas).url}/call", json=body) as response:
                answer = await response.json()
        except (aiohttp.ClientError, TimeoutError, ValueError):
            await asyncio.sleep(0.1)
            continue
        if answer["ok"] or not answer["retryable"]:
            return answer
        await asyncio.sleep(0.2)
    raise AssertionError(f"call {number} never ended")


async def kill_and_restart(replicas, answers):
    """Kills replicas by turns as calls end; at times no replica is left for a while."""
    starting = [None] * len(replicas)
    for kill in range(KILLS):
        while sum(answer is not None for answer in answers) < CALLS * (kill + 0.5) / (KILLS + 1):
            await asyncio.sleep(0.02)
        index = kill % len(replicas)
        if starting[index] is not None:
            await starting[index]
        await replicas[index].kill()
        starting[index] = asyncio.create_task(replicas[index].start())
    await asyncio.gather(*(task for task in starting if task is not None))


@pytest.mark.timeout(180)
async def test_every_call_ends_in_one_record_and_no_write_happens_twice(
    database_url, database_owner_url
):
    target = Target()
    async with served(target) as url, contextlib.AsyncExitStack() as stack:
        port = int(url.rsplit(":", 1)[1])
        egress = [{"host": "127.0.0.1", "port": port, "cidr": "127.0.0.1/32"}]
        tools = [
            tool(f"target.{effect}", target=f"{url}/", effect=effect, egress=egress)
            for effect in set(EFFECTS)
        ]
        replicas = [Replica(database_url, tools) for _ in range(2)]
        for one in replicas:
            stack.push_async_callback(one.kill)
        await asyncio.gather(*(one.start() for one in replicas))
        answers = await run(replicas)
    records = await records_of(database_owner_url)

    assert len(records) == CALLS
    assert {record["state"] for record in records.values()} == {"settled"}
    for number, answer in enumerate(answers):
        call_id, effect = f"call-{number}", EFFECTS[number % len(EFFECTS)]
        record = records[call_id]
        assert (record["ok"], record["error_kind"]) == (answer["ok"], answer.get("error_kind")), (
            answer,
            record,
        )
        if effect == "write":
            assert target.effects[call_id] <= 1, (
                f"{call_id} happened {target.effects[call_id]} times"
            )
            assert answer["ok"] or answer["error_kind"] in {
                "indeterminate",
                "upstream",
                "timeout",
                "cancelled",
            }
        else:
            assert answer["ok"], answer
            assert len(target.keys[call_id]) == 1
        if answer["ok"]:
            assert target.effects[call_id] >= 1
            assert answer["result"] == {"done": call_id}
    cut_off = sum(not answer["ok"] for answer in answers)
    assert cut_off < CALLS / 10
    sys.stdout.write(f"{KILLS} kills, {cut_off} writes indeterminate\n")


async def run(replicas):
    numbers, answers = iter(range(CALLS)), [None] * CALLS

    async def caller(session):
        for number in numbers:
            answers[number] = await call(session, replicas, number)

    killer = asyncio.create_task(kill_and_restart(replicas, answers))
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        await asyncio.gather(*(caller(session) for _ in range(CONCURRENCY)))
    await killer
    return answers


async def records_of(owner_url):
    """Every record that holds a call id, as the owner of the schema sees them."""
    async with await psycopg.AsyncConnection.connect(
        owner_url, row_factory=psycopg.rows.dict_row
    ) as connection:
        found = await connection.execute(
            "SELECT call_id, state, ok, error_kind FROM tool_calls WHERE state <> 'refused'"
        )
        rows = await found.fetchall()
    assert len({row["call_id"] for row in rows}) == len(rows)
    return {row["call_id"]: row for row in rows}
