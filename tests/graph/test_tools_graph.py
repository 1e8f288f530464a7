"""Tools on the real graph: reloads, callers that leave, replicas that are killed during a call."""

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import psutil
import pytest

pytestmark = [pytest.mark.graph, pytest.mark.timeout(300, func_only=True)]

PATH = "/internal/tools"
CALLER = {"agent_id": "agent:sofia", "microdao_id": "microdao:graph"}
CHILD = "executors.python.child.main"
PATIENCE_S = 120
SLOW_S = 3


class Target:
    """A server behind tools: it counts effects by call and answers `SLOW_S` later."""

    def __init__(self) -> None:
        self.effects: Counter[str] = Counter()
        seen = self.effects

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                seen[body["context"]["call_id"]] += 1
                time.sleep(SLOW_S)
                answer = json.dumps({"done": body["context"]["call_id"]}).encode()
                with contextlib.suppress(OSError):
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                """Logs nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def definitions(port):
    common = {"input_schema": {"type": "object"}, "timeout_s": 60}
    egress = [{"host": "127.0.0.1", "port": port, "cidr": "127.0.0.1/32"}]
    slow = {"executor": "http", "target": f"http://127.0.0.1:{port}/", "egress": egress, **common}
    python = {"executor": "python", "effect": "read", **common}
    return [
        {"id": "graph.write", "name": "a slow write", "effect": "write", **slow},
        {
            "id": "graph.idempotent",
            "name": "a slow idempotent call",
            "effect": "idempotent",
            **slow,
        },
        {"id": "graph.sleep", "name": "sleeps", "target": "hostile_toolbox:sleep", **python},
        {
            "id": "graph.echo",
            "name": "before the reload",
            "target": "hostile_toolbox:echo",
            **python,
        },
    ]


async def until(condition, timeout_s=PATIENCE_S):
    """Waits until `await condition()` returns something true, and returns it."""
    async with asyncio.timeout(timeout_s):
        while True:
            if found := await condition():
                return found
            await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def target():
    running = Target()
    yield running
    running.close()


@pytest.fixture(scope="module")
def configured(graph, target):
    """The graph with this module's package and tools in `tools.yaml`; restores the shipped file."""
    shipped = graph.tools()
    tools = {
        **shipped,
        "python_packages": ["toolbox", "hostile_toolbox"],
        "tools": [*shipped["tools"], *definitions(target.port)],
    }
    graph.write_tools(tools)
    graph.reload()
    yield graph
    graph.write_tools(shipped)
    graph.reload()


async def answer_of(client, tool_id, call_id=None, **args):
    """Calls as a careful caller does: retries under the same `call_id` until a final answer."""

    async def final():
        body = {"tool_id": tool_id, "args": args, "call_id": call_id, **CALLER}
        with contextlib.suppress(httpx.TransportError, ValueError):
            answer = (await client.post(f"{PATH}/call", json=body, timeout=90)).json()
            return answer if answer.get("ok") or answer.get("retryable") is False else None

    return await until(final)


async def child_of(graph):
    """The process of the sandbox that runs now."""

    async def started():
        return graph.named(CHILD)

    return await until(started)


async def gone(processes):
    async def ended():
        return not any(
            process.is_running() and process.status() != psutil.STATUS_ZOMBIE
            for process in processes
        )

    await until(ended)


async def test_a_reload_reaches_replicas_and_the_python_runner_without_a_restart(
    configured, client
):
    before = [
        process.pid
        for name in ("Toolcore", "PythonToolRunner")
        for process in configured.replicas("tools", name)
    ]

    async def listed():
        response = await client.get(f"{PATH}/graph.echo")
        return response.status_code == 200 and response.json()["name"] == "before the reload"

    await until(listed)
    answer = await answer_of(client, "graph.echo", value="так")
    assert answer["result"]["args"] == {"value": "так"}
    assert answer["tier"] in {"landlock", "bubblewrap"}
    changed = configured.tools()
    changed["tools"] = [
        tool | {"name": "after the reload"} if tool["id"] == "graph.echo" else tool
        for tool in changed["tools"]
    ]
    configured.write_tools(changed)
    configured.reload()

    async def renamed():
        return (await client.get(f"{PATH}/graph.echo")).json()["name"] == "after the reload"

    await until(renamed)
    assert [
        process.pid
        for name in ("Toolcore", "PythonToolRunner")
        for process in configured.replicas("tools", name)
    ] == before


async def test_a_caller_that_leaves_kills_the_child(configured, client):
    calling = asyncio.create_task(
        client.post(
            f"{PATH}/call",
            json={"tool_id": "graph.sleep", "args": {"seconds": 50}, "call_id": "left", **CALLER},
            timeout=90,
        )
    )
    children = await child_of(configured)
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    await gone(children)

    async def recorded():
        rows = (
            await client.get(
                f"{PATH}/calls", params={"microdao_id": CALLER["microdao_id"], "call_id": "left"}
            )
        ).json()["calls"]
        return rows and rows[0]["error_kind"] == "cancelled"

    await until(recorded)


async def test_a_killed_runner_ends_its_child_with_a_typed_failure_and_comes_back(
    configured, client
):
    calling = asyncio.create_task(
        client.post(
            f"{PATH}/call",
            json={"tool_id": "graph.sleep", "args": {"seconds": 50}, "call_id": "killed", **CALLER},
            timeout=90,
        )
    )
    children = await child_of(configured)
    (runner,) = configured.replicas("tools", "PythonToolRunner")
    runner.kill()
    response = await calling
    answer = response.json()
    assert (response.status_code, answer["ok"], answer["error_kind"], answer["retryable"]) == (
        200,
        False,
        "unavailable",
        True,
    )
    await gone(children)
    assert (await answer_of(client, "graph.sleep", seconds=0))["result"] == "awake"


async def test_a_killed_toolcore_runs_no_write_twice_and_loses_no_idempotent_call(
    configured, client, target
):
    calls = {
        f"{kind}-{number}": f"graph.{kind}"
        for kind in ("write", "idempotent")
        for number in range(4)
    }
    answering = {
        call_id: asyncio.create_task(answer_of(client, tool_id, call_id=call_id))
        for call_id, tool_id in calls.items()
    }

    async def all_begun():
        return len(target.effects) == len(calls)

    await until(all_begun)
    (toolcore,) = configured.replicas("tools", "Toolcore")
    toolcore.kill()
    for call_id, task in answering.items():
        answer = await task
        if calls[call_id] == "graph.write":
            assert target.effects[call_id] == 1
            assert answer["ok"] or answer["error_kind"] == "indeterminate", answer
        else:
            assert answer["result"] == {"done": call_id}
    cut_off = [call_id for call_id, task in answering.items() if not task.result()["ok"]]
    assert cut_off, "the replica was killed too late to cut anything off"
