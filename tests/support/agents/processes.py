"""Replicas of the agent runtime and of the workspace as processes that tests kill, behind one
address.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import sys
from pathlib import Path

import httpx
import uvicorn

from backends.http.agent_runtime import AgentRuntimeClient
from contracts.agents.blueprints import Blueprint
from deployments.agents.wiring import AgentRuntime, AgentsArgs
from deployments.graph.resources import WingEnvironment
from interfaces.http.base.ingress import Ingress
from services.workspace.dispatching import DispatchLimits
from tests.support.access import access_control, fixed_access
from tests.support.events import RecordedEvents
from tests.support.uvicorn_server import rooted
from tests.support.workspace.application import workspace

ROOT = Path(__file__).resolve().parents[3]
PREFIXES = {"agents": "/internal/agent-runtime", "workspace": "/internal/messaging"}
NO_REPLICA = json.dumps(
    {
        "error": {
            "type": "unavailable",
            "message": "no replica",
            "retryable": True,
            "request_id": "-",
        }
    }
).encode()
READY_S = 60
LEASE_S = 3.0


class Replicas:
    """Two processes of one application. As an ASGI application it leads to one that lives; with
    none it answers 503.
    """

    def __init__(
        self, name: str, database_url: str, door_url: str, blueprints: list[dict], *, count: int = 2
    ) -> None:
        self.name = name
        self._argv = [
            sys.executable,
            "-m",
            __name__,
            name,
            database_url,
            door_url,
            json.dumps(blueprints),
        ]
        self._count = count
        self._processes: list[tuple[asyncio.subprocess.Process, str]] = []
        self._http = httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))
        self._starting: set[asyncio.Task] = set()

    async def start(self):
        await asyncio.gather(*(self._start_one() for _ in range(self._count)))

    async def stop(self):
        for task in list(self._starting):
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        for process, _ in self._processes:
            process.kill()
        await asyncio.gather(*(process.wait() for process, _ in self._processes))
        await self._http.aclose()

    @property
    def alive(self):
        return len(self._processes)

    async def kill_one(self):
        """SIGKILL for one; a new one is started in its place."""
        victim = random.choice(self._processes)
        self._processes.remove(victim)
        victim[0].send_signal(signal.SIGKILL)
        await victim[0].wait()
        task = asyncio.create_task(self._start_one())
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        return self.name

    async def _start_one(self):
        process = await asyncio.create_subprocess_exec(
            *self._argv, cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(READY_S):
                line = await process.stdout.readline()
        except BaseException:
            process.kill()
            raise
        assert line, f"a replica of {self.name} ended before it was ready"
        self._processes.append((process, f"http://127.0.0.1:{int(line)}"))

    async def __call__(self, scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        status, answer = (
            503,
            NO_REPLICA,
        )
        if self._processes:
            _, url = random.choice(self._processes)
            query = scope["query_string"].decode()
            target = f"{url}{scope['path']}{'?' if query else ''}{query}"
            headers = [
                (name, value)
                for name, value in scope["headers"]
                if name not in {b"host", b"content-length", b"connection"}
            ]
            try:
                got = await self._http.request(
                    scope["method"], target, content=body, headers=headers
                )
                status, answer = got.status_code, got.content
            except httpx.TransportError:
                status, answer = 502, b""
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", b"application/json")],
            }
        )
        await send({"type": "http.response.body", "body": answer})


async def _agents(database_url, door_url, blueprints, listener):
    events = RecordedEvents()
    known = {one["id"]: Blueprint.model_validate(one) for one in blueprints}
    settings = AgentsArgs(lease_s=LEASE_S, claim_every_s=0.2, patience_s=5)
    runtime = AgentRuntime(
        settings,
        WingEnvironment(database_url, Path(), door_url, fixed_access()),
        lambda: known,
        events,
    )
    await runtime.open()
    await _serve(
        Ingress(runtime.router(), access_control(), events, max_concurrent=500),
        "agents",
        listener,
    )


async def _workspace(database_url, door_url, blueprints, listener):
    invoker = AgentRuntimeClient(door_url, fixed_access().delegations.current)
    async with workspace(
        database_url, invoker=invoker, limits=DispatchLimits(max_delay_s=0.5)
    ) as replica:
        await _serve(replica.app, "workspace", listener)


async def _serve(app, name, listener):
    server = uvicorn.Server(
        uvicorn.Config(
            rooted(app, PREFIXES[name]), log_level="error", lifespan="off", access_log=False
        )
    )
    print(listener.getsockname()[1], flush=True)
    await server.serve(sockets=[listener])


def main(name, database_url, door_url, blueprints):
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    role = {"agents": _agents, "workspace": _workspace}[name]
    asyncio.run(role(database_url, door_url, json.loads(blueprints), listener))


if __name__ == "__main__":
    main(*sys.argv[1:])
