"""Alerts, their runbook, and dashboards: checked without a running graph."""

import json
import re
import subprocess

import pytest
import yaml

from backends.telemetry.metric_table import METRICS
from configs.environment import METRICS_OFFSET
from tests.support.prometheus import PROGRAMS, ROOT, needs_prometheus

FOLDER = ROOT / "ops/prometheus"
RULES = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
BOARDS = {
    file.stem: json.loads(file.read_text())
    for file in sorted((ROOT / "ops/grafana/dashboards").glob("*.json"))
}
QUERIES = [
    (f"{name}: {panel['title']}", target["expr"])
    for name, board in BOARDS.items()
    for panel in board["panels"]
    for target in panel["targets"]
]
OF_RAY = {
    "ray_serve_deployment_replica_healthy",
    "ray_serve_replica_processing_queries",
    "ray_serve_deployment_queued_queries",
    "ray_serve_deployment_replica_starts_total",
    "ray_serve_autoscaling_target_replicas",
    "ray_node_mem_used",
    "ray_node_mem_total",
    "ray_node_cpu_utilization",
    "ray_node_disk_utilization_percentage",
}
"""Of Ray 2.60; tests/graph/test_dashboards_graph.py sees them."""
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def exported():
    return {
        f"ray_{metric.name}{suffix}"
        for metric in METRICS.values()
        for suffix in SUFFIXES[metric.kind]
    }


def labels_of(name):
    base = re.sub(r"^ray_|_(total|bucket|sum|count)$", "", name)
    return METRICS[base].labels if base in METRICS else ()


@pytest.mark.parametrize(
    ("where", "expression"), [*((rule["alert"], rule["expr"]) for rule in RULES), *QUERIES]
)
def test_metrics_and_their_labels_exist(where, expression):
    named = set(re.findall(r"\bray_\w+", expression))
    assert named, where
    assert named <= exported() | OF_RAY
    for name, selected in re.findall(r"(ray_\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", selected)) <= set(labels_of(name)), where
    for grouped in re.findall(r"by \(([^)]*)\)", expression):
        of_ours = {name for name in named if name not in OF_RAY}
        own = {label.strip() for label in grouped.split(",")} - {"le"}
        assert not of_ours or own <= set().union(*map(labels_of, of_ours)), where


def test_every_metric_is_on_a_dashboard():
    shown = " ".join(expression for _, expression in QUERIES)
    missing = {
        name
        for name, metric in METRICS.items()
        if not any(f"ray_{name}{suffix}" in shown for suffix in SUFFIXES[metric.kind])
    }
    # They are for alerts: while nothing is wrong there is nothing to look at.
    assert missing == {"daarion_usage_lost", "daarion_audit_dropped", "daarion_events_dropped"}
    alerts = " ".join(rule["expr"] for rule in RULES)
    assert all(f"ray_{name}_total" in alerts for name in missing)


def test_every_alert_has_a_section_of_the_runbook():
    text = (ROOT / "docs/runbook.md").read_text()
    sections = re.findall(r"^### (\w+)\n\*\*(\w+)\*\* · .+\n", text, re.MULTILINE)
    assert sections == [(rule["alert"], rule["labels"]["severity"]) for rule in RULES]
    for rule in RULES:
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in {"page", "ticket", "info"}
        assert rule["labels"]["severity"] != "page" or "for" in rule or "increase" in rule["expr"]


@needs_prometheus
@pytest.mark.parametrize("check", [("check", "alerts.yml"), ("test", "alerts_test.yml")])
def test_promtool_accepts_the_alerts(check):
    word, file = check
    command = [PROGRAMS / "promtool", word, "rules", file]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_promtool_accepts_the_configuration_and_every_query(tmp_path):
    config = (FOLDER / "prometheus.yml").read_text().replace("/etc/prometheus", str(FOLDER))
    (tmp_path / "prometheus.yml").write_text(config)
    rules = [
        {"record": f"query:n{number}", "expr": expression.replace("$__rate_interval", "1m")}
        for number, (_, expression) in enumerate(QUERIES)
    ]
    (tmp_path / "queries.yml").write_text(
        yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]})
    )
    for check in (["config", "prometheus.yml"], ["rules", "queries.yml"]):
        command = [PROGRAMS / "promtool", "check", *check]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_dashboards_are_whole():
    assert set(BOARDS) == {"graph", "llm", "memory", "tools", "agents", "engines"}
    sources = yaml.safe_load(
        (ROOT / "ops/grafana/provisioning/datasources/prometheus.yml").read_text()
    )["datasources"]
    for name, board in BOARDS.items():
        assert board["uid"] == f"daarion-{name}"
        places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
        assert len(places) == len(set(places))
        for panel in board["panels"]:
            used = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
            assert {source["uid"] for source in used} == {sources[0]["uid"]}


def test_the_compose_files_prometheus_reaches_the_metrics():
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    port = int(COMPOSE["graph"]["environment"]["DAARION_PORT"]) + METRICS_OFFSET
    assert config["scrape_configs"][0]["static_configs"] == [{"targets": [f"127.0.0.1:{port}"]}]
    assert "DAARION_METRICS_PORT" not in COMPOSE["graph"]["environment"]
    prometheus, grafana = COMPOSE["prometheus"], COMPOSE["grafana"]
    assert prometheus["network_mode"] == "service:graph"
    assert all(service["profiles"] == ["monitoring"] for service in (prometheus, grafana))
    assert grafana["ports"] == ["127.0.0.1:3000:3000"]
    mounted = [volume.split(":")[0] for volume in prometheus["volumes"] + grafana["volumes"]]
    assert all((ROOT / path).exists() for path in mounted if path.startswith("./"))
