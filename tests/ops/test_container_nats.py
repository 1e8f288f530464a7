"""The containers' NATS configuration, in a real server: two users, their passwords not among the
arguments.
"""

import asyncio
import socket
import sysconfig
from pathlib import Path

import nats
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SERVICE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["nats"]
# Digits as `openssl rand -hex 32` may make them: without quotes the server takes them for a number.
PASSWORDS = {"NATS_PASSWORD": "12345678", "NATS_ROUTER_PASSWORD": "1234e567"}


@pytest.fixture
async def port(tmp_path):
    """Runs the server as the container does, with its environment; yields its port."""
    conf = (ROOT / "ops/compose/nats.conf").read_text()
    assert conf.count('"/data"') == conf.count("8222") == 1
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        number, monitoring = one.getsockname()[1], two.getsockname()[1]
    (tmp_path / "nats.conf").write_text(
        conf.replace("/data", str(tmp_path / "data")).replace("8222", str(monitoring))
    )
    environment = {}
    for name, value in SERVICE["environment"].items():
        assert value == f'"${{{name}:?set it in .env}}"'
        environment[name] = f'"{PASSWORDS[name]}"'
    server = await asyncio.create_subprocess_exec(
        f"{sysconfig.get_path('scripts')}/nats-server",
        *("--config", tmp_path / "nats.conf", "--addr", "127.0.0.1", "--port", str(number)),
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        while b"Server is ready" not in (line := await server.stderr.readline()):
            assert line, "the server ended"
    yield number
    server.terminate()
    await server.communicate()


def test_no_password_is_among_the_arguments():
    assert SERVICE["command"] == ["--config", "/etc/nats/daarion.conf"]
    assert "./ops/compose/nats.conf:/etc/nats/daarion.conf:ro" in SERVICE["volumes"]


async def test_the_router_may_publish_invocations_and_nothing_else(port):
    refused = asyncio.Event()

    async def note(error):
        assert "permissions violation" in str(error)
        refused.set()

    own = await nats.connect(
        f"nats://127.0.0.1:{port}", user="daarion", password=PASSWORDS["NATS_PASSWORD"]
    )
    await own.jetstream().add_stream(name="INVOCATIONS", subjects=["router.invoke.agent"])
    router = await nats.connect(
        f"nats://127.0.0.1:{port}",
        user="router",
        password=PASSWORDS["NATS_ROUTER_PASSWORD"],
        inbox_prefix=b"_INBOX.router",
        error_cb=note,
    )
    stored = await router.jetstream().publish("router.invoke.agent", b"{}")
    assert stored.stream == "INVOCATIONS"
    for attempt in (router.publish("tool.request", b"{}"), router.subscribe("_INBOX.>")):
        refused.clear()
        await attempt
        async with asyncio.timeout(60):
            await refused.wait()
    await router.close()
    await own.close()
