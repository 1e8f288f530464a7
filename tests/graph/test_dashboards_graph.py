"""Every query of the dashboards and alerts, asked a Prometheus that scraped the graph at work."""

import subprocess
import time

import httpx
import pytest
import yaml

from tests.ops.test_monitoring import QUERIES, RULES
from tests.support.graph.running import _free_port as free_port
from tests.support.prometheus import PROGRAMS, ROOT, needs_prometheus

pytestmark = needs_prometheus
TENANT = {"agent_id": "agent:demo", "microdao_id": "microdao:dashboards"}
# Series of what need not have happened in a run of the tests.
MAY_BE_EMPTY = (
    "ray_daarion_http_errors_total", "ray_daarion_defects_total", "ray_daarion_llm_cost_usd_total",
    "ray_daarion_llm_circuit_turns_total", "ray_daarion_llm_limit_warnings_total", "outcome!",
    "ray_daarion_llm_embedded_tokens_total", "ray_daarion_memory_arms_down_total",
    "ray_daarion_memory_documents_total", "ray_daarion_tool_refusals_total",
    "ray_daarion_parked_messages_total", "ray_serve_deployment_queued_queries",
    "ray_daarion_llm_first_token_ms", "ray_daarion_agent_", "ray_serve_autoscaling_target_replicas",
)  # fmt: skip


@pytest.fixture
def prometheus(graph, tmp_path):
    """Yields the URL of a Prometheus that scrapes the graph every second."""
    config = yaml.safe_load((ROOT / "ops/prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(ROOT / "ops/prometheus/alerts.yml")]
    target = {"targets": [f"127.0.0.1:{graph.metrics_port}"]}
    config["scrape_configs"][0] |= {"static_configs": [target]}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    url = f"127.0.0.1:{free_port()}"
    command = [
        PROGRAMS / "prometheus",
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address={url}",
    ]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield f"http://{url}"
    finally:
        process.terminate()
        process.wait(timeout=20)


def answered(prometheus, query):
    answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": query}, timeout=30).json()
    assert answer["status"] == "success", (query, answer)
    return answer["data"]["result"]


def waited_for(prometheus, query):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            if found := answered(prometheus, query):
                return found
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"nothing came of {query}")


async def test_every_query_has_an_answer(graph, client, prometheus):
    waited_for(prometheus, "ray_daarion_dependency_up")
    question = [{"role": "user", "content": "Say hello"}]
    call = {"model": "dagi-local-8b", "messages": question, "metadata": TENANT}
    tool = {**TENANT, "tool_id": "text.summary_stats", "args": {"text": "a b"}}
    tools = "sum(increase(ray_daarion_tool_calls_total[1m])) > 0"
    for _ in range(30):  # a series needs two values before it has a rate
        for path, body in (
            ("/internal/llm/proxy", call),
            ("/internal/agent-memory/query", {**TENANT, "query": "каса"}),
            ("/internal/tools/call", tool),
        ):
            (await client.post(path, json=body)).raise_for_status()
        (await client.get("/internal/agent-runtime/agents", params=TENANT)).raise_for_status()
        if answered(prometheus, tools):
            break
        time.sleep(2)
    assert answered(prometheus, tools)
    empty = {}
    for where, query in QUERIES:
        if not answered(prometheus, query.replace("$__rate_interval", "1m")):
            empty[where] = query
    assert {
        where: query
        for where, query in empty.items()
        if not any(series in query for series in MAY_BE_EMPTY)
    } == {}
    for rule in RULES:
        answered(prometheus, rule["expr"])
    groups = httpx.get(f"{prometheus}/api/v1/rules", timeout=30).json()["data"]["groups"]
    health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    assert health == {rule["alert"]: "ok" for rule in RULES}
    firing = {rule["name"] for group in groups for rule in group["rules"] if rule["alerts"]}
    assert "GraphDown" not in firing
