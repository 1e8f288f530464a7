"""The graph's metrics, on one port for all of its processes."""

import re
import time

import httpx

from backends.telemetry.metric_table import METRICS

TENANT = {"agent_id": "agent:demo", "microdao_id": "microdao:metrics"}
_SAMPLE = re.compile(r"^ray_(daarion_\w+)\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
OF_RAY = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId"}
"""Labels that Ray adds to every metric, beside those of its exporter, `otel_…`."""


def scraped(graph):
    """Returns (name, labels, value) of each of the product's samples."""
    text = httpx.get(f"http://127.0.0.1:{graph.metrics_port}/metrics", timeout=30).text
    return [
        (name, dict(_LABEL.findall(labels)), float(value))
        for name, labels, value in _SAMPLE.findall(text)
    ]


def found(samples, name, **labels):
    return sum(
        value
        for metric, given, value in samples
        if metric == name and labels.items() <= given.items()
    )


async def test_one_port_has_the_metrics_of_every_application(graph, client):
    question = [{"role": "user", "content": "Say hello"}]
    call = {"model": "dagi-local-8b", "messages": question, "metadata": TENANT}
    answers = [
        await client.post("/internal/llm/proxy", json=call),
        await client.post("/internal/llm/proxy", json={**call, "model": "no-such-model"}),
        await client.post("/internal/agent-memory/query", json={**TENANT, "query": "каса"}),
        await client.post(
            "/internal/tools/call",
            json={**TENANT, "tool_id": "text.summary_stats", "args": {"text": "a b"}},
        ),
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 200, 200]
    local = {"provider": "local", "logical_model": "dagi-local-8b"}
    memory = {"application": "memory", "route": "/query"}
    expected = [
        ("daarion_llm_calls_total", {**local, "outcome": "ok"}),
        ("daarion_llm_tokens_total", {**local, "direction": "prompt"}),
        ("daarion_llm_latency_ms_count", local),
        ("daarion_http_requests_total", {**memory, "status": "200"}),
        ("daarion_http_duration_ms_count", memory),
        ("daarion_http_errors_total", {"application": "llm", "type": "model_not_found"}),
        ("daarion_tool_calls_total", {"tool_id": "text.summary_stats", "outcome": "ok"}),
        ("daarion_usage_spool_bytes", {}),
    ]
    until, samples = time.monotonic() + 60, []
    while missing := [pair for pair in expected if not found(samples, pair[0], **pair[1])]:
        assert time.monotonic() < until, missing
        time.sleep(1)
        samples = scraped(graph)
    for application, dependency in (("llm", "engine"), ("root", "memory"), ("agents", "database")):
        up = {"application": application, "dependency": dependency}
        assert found(samples, "daarion_dependency_up", **up) >= 1
    pools = {
        (labels["application"], labels["pool"])
        for name, labels, _ in samples
        if name == "daarion_database_connections"
    }
    assert {("llm", "ledger"), ("llm", "answers"), ("memory", "background")} < pools
    assert ("root", "access") in pools
    queues = {labels["queue"] for name, labels, _ in samples if name == "daarion_waiting"}
    assert {"embeddings", "agent_runs_queued", "batch_requests"} < queues


async def test_labels_are_those_of_the_table(graph, client):
    samples = scraped(graph)
    assert samples
    for name, labels, _ in samples:
        metric = METRICS[re.sub(r"_(total|bucket|sum|count)$", "", name)]
        own = {label for label in labels if not label.startswith("otel_")} - OF_RAY - {"le"}
        assert own == set(metric.labels), name
        assert not any("microdao:" in value or "agent:" in value for value in labels.values())
