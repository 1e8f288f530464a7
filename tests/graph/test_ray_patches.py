"""What the patches rely on in Ray's code. After a failure here, review the patch."""

import ast
import hashlib
import inspect
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import ray
from ray.serve import context
from ray.serve._private import haproxy
from ray.serve._private.client import ServeControllerClient

from configs.environment import REPOSITORY, read_environment
from deployments.graph.ray_patches import RAY_VERSION
from deployments.graph.serve_defaults import haproxy_binary, ray_variables

SCRIPT = REPOSITORY / "deployments/graph/haproxy-loopback.sh"

VLLM_ENGINE = "llm/_internal/serve/engines/vllm/vllm_engine.py"
LLM_SERVER = "llm/_internal/serve/core/server/llm_server.py"
# Methods that `deployments/engines` overrides, or whose private attributes it reads, as they were
# when that was written. The comment names what each relies on.
SOURCES = {
    (
        VLLM_ENGINE,
        "VLLMEngine._start_async_llm_engine",
    ): "7ffd505f1fef54c6",  # distributed_executor_backend
    (
        VLLM_ENGINE,
        "VLLMEngine.start",
    ): "62803bfb2fdd1cd1",  # run_init_node, _engine_client, _oai_serving_chat
    (LLM_SERVER, "LLMServer.start"): "1829875871e4335c",  # engine
    (
        LLM_SERVER,
        "LLMServer._start_engine",
    ): "4ab5dabd06bb580d",  # push_telemetry_report_for_all_models
}


def digest(file, name):
    """The source of a class or function, read without importing its module, which may load vLLM."""
    text = (Path(ray.__file__).parent / file).read_text(encoding="utf-8")
    node = ast.parse(text)
    for part in name.split("."):
        node = next(each for each in node.body if getattr(each, "name", None) == part)
    return hashlib.sha256(ast.get_source_segment(text, node).encode()).hexdigest()[:16]


def test_the_patches_are_written_for_this_version_of_ray():
    assert ray.__version__.startswith(f"{RAY_VERSION}."), (
        "look at every patch, then change RAY_VERSION"
    )


@pytest.mark.parametrize(("file", "name"), SOURCES)
def test_a_patched_function_is_the_one_that_was_patched(file, name):
    assert digest(file, name) == SOURCES[file, name], (
        f"{name} has changed in Ray: look at its patch"
    )


def run(program, **variables):
    """Returns the output of a program in a process of its own, which begins as a replica does."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


CALLS_PORT = """
from concurrent.futures import ThreadPoolExecutor
import grpc, psutil
from ray.serve._private import replica
import deployments
server = grpc.server(ThreadPoolExecutor(1))
port = replica.add_port_to_grpc_server(server, "[::]:0")
server.start()
connections = psutil.Process().net_connections("inet")
print(*(one.laddr.ip.removeprefix("::ffff:") for one in connections if one.laddr.port == port))
server.stop(None).wait()
"""


@pytest.mark.parametrize(("cluster", "addresses"), [("0", ["127.0.0.1"]), ("1", ["::"])])
def test_calls_between_deployments_listen_on_loopback_where_the_node_is_alone(cluster, addresses):
    assert run(CALLS_PORT, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=cluster) == addresses


def test_serve_binds_that_port_in_one_place():
    from ray.serve._private import replica  # noqa: PLC0415

    calls = re.findall(r"add_port_to_grpc_server\((.*)\)", inspect.getsource(replica))
    assert calls == ['self._server, "[::]:0"']


HTTP_SERVER = """
import asyncio
from ray.serve._private.http_util import configure_http_middlewares, start_asgi_http_server
from ray.serve.config import HTTPOptions

async def main():
    options = configure_http_middlewares(HTTPOptions(host="127.0.0.1", port=0))
    task, server = await start_asgi_http_server(
        None, options, event_loop=asyncio.get_running_loop()
    )
    while not server.started:
        await asyncio.sleep(0.01)
    print(server.config.http_protocol_class.__name__)
    server.should_exit = True
    await task

asyncio.run(main())
"""


def test_every_http_server_of_serve_bounds_heads(tmp_path):
    variables = ray_variables(read_environment({"DAARION_DATA_DIR": str(tmp_path)}))
    name = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
    assert run(HTTP_SERVER, **{name: variables[name]}) == ["BoundedHeads"]
    assert run(HTTP_SERVER) == ["HttpToolsProtocol"]


def test_serves_client_has_the_calls_without_a_public_function():
    assert list(inspect.signature(context._get_internal_replica_context).parameters) == []
    assert (
        next(iter(inspect.signature(context._get_global_client).parameters.values())).default
        is True
    )
    assert list(inspect.signature(ServeControllerClient.deploy_apps).parameters)[:2] == [
        "self",
        "config",
    ]
    assert list(inspect.signature(ServeControllerClient.list_serve_statuses).parameters) == ["self"]
    assert isinstance(ServeControllerClient.http_config, property)


# The first words of lines that Ray writes, and of the lines that the product's edits make.
EDITS = (
    ("option splice-request", "no option splice-request"),
    ("option splice-response", "no option splice-response"),
    ("errorfile 502 ", "http-error status 502 content-type application/json "),
    ("errorfile 503 ", "http-error status 503 content-type application/json "),
    ("errorfile 504 ", "http-error status 504 content-type application/json "),
    ("bind :9101", "bind 127.0.0.1:9101"),
    ("bind *:8404", "bind 127.0.0.1:8404"),
    ("# Routes endpoint", "http-request set-header X-Request-Id "),
    ("http-request return status 404 ", "http-request return status 503 "),
    ("http-request return status 200 ", "http-request return status 404 "),  # `/-/routes`
    ("", "timeout http-request 10s"),  # after `timeout client`
)


def rendered(folder, *, routes):
    """HAProxy's configuration as Ray writes it, without and with an application."""
    servers = [haproxy.ServerConfig("replica", "127.0.0.1", 30_000)]
    backends = {"llm": haproxy.BackendConfig("llm", "/internal/llm", servers=servers)}
    file = folder / "haproxy.cfg"
    api = haproxy.HAProxyApi(
        haproxy.HAProxyConfig(
            socket_path=str(folder / "admin.sock"),
            server_state_base=str(folder),
            server_state_file=str(folder / "state"),
            timeout_client_s=90,
            has_received_routes=True,
            is_head=True,
        ),
        backends if routes else {},
        str(file),
    )
    api._generate_config_file_internal()
    return file


@pytest.mark.parametrize("routes", [False, True])
def test_haproxys_edits_find_the_lines_that_ray_writes(tmp_path, routes):
    file = rendered(tmp_path, routes=routes)
    before = file.read_text().splitlines()
    checked = subprocess.run(
        [SCRIPT, "-c", "-f", str(file)],
        env={"PATH": "/usr/bin:/bin", "DAARION_HAPROXY": haproxy_binary()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr  # HAProxy accepts the edited file
    after = file.read_text().splitlines()
    gone = list((Counter(before) - Counter(after)).elements())
    made = list((Counter(after) - Counter(before)).elements())
    for original, edited in EDITS:
        assert [line.strip().startswith(edited) for line in made].count(True) == 1, edited
        if original:
            assert [line.strip().startswith(original) for line in gone].count(True) == 1, original
    assert (len(made), len(gone)) == (len(EDITS), len(EDITS) - 1)
