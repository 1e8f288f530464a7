"""Destinations of secrets: the hosts of their entries; this graph's own: its ingress alone."""

from __future__ import annotations

import contextlib

import pytest

from configs.environment import REPOSITORY
from configs.tools import ConfiguredSecrets, ToolsSettings
from configs.yaml_files import load_yaml, parse_yaml
from contracts.errors import ConfigurationError
from contracts.tools.api import SecretWithheld
from deployments.tools.app import live_config
from tests.support.tools.toolcore import definition

HERE = "http://127.0.0.1:8000"
SECRETS = """
secrets:
  own: {env: DAARION_INTERNAL_SECRET, tools: ["*"]}
  admin: {env: DAARION_ADMIN_SECRET, tools: ["*"], hosts: [ingress]}
  crm: {env: CRM_KEY, tools: [crm.*], hosts: [api.crm.example, "*.crm-cdn.example"]}
  plain: {env: PLAIN_KEY, tools: [crm.*], hosts: [crm, ingress], insecure: true}
"""


def secret_problem(name, target, tool_id="crm.find", executor="http"):
    given = parse_yaml(f"tools: []{SECRETS}", ToolsSettings, name="tools.yaml")
    found = given.secret_problem(
        definition(tool_id=tool_id, executor=executor, target=target, secrets=[{"name": name}]),
        HERE,
    )
    environment = {
        "DAARION_INTERNAL_SECRET": "ours",
        "DAARION_ADMIN_SECRET": "admin's",
        "CRM_KEY": "c",
        "PLAIN_KEY": "p",
    }
    secrets = ConfiguredSecrets(given.secrets, environment.get, HERE)
    if (
        executor != "mcp"
    ):  # what is refused at registration is withheld at a call, and the other way round
        with pytest.raises(SecretWithheld) if found else contextlib.nullcontext():
            assert (
                secrets.value(name, tool_id, target if executor == "http" else None)
                == environment[given.secrets[name].env]
            )
    return found


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("own", f"{HERE}/internal/messaging/tools/x"),
        ("admin", f"{HERE}/x"),
        ("crm", "https://api.crm.example/find"),
        ("crm", "https://API.crm.example.:8443/find"),
        ("crm", "https://eu.crm-cdn.example/find"),
        ("plain", "http://crm:9000/find"),
        ("plain", f"{HERE}/x"),
        ("own", "http://localhost:8000/x"),
        ("own", "http://[::1]:8000/x"),
    ],
)
def test_secrets_go_where_their_entries_say(name, target):
    assert secret_problem(name, target) is None


@pytest.mark.parametrize(
    ("name", "target", "said"),
    [
        ("own", "https://projects-service/internal/tools", "only to its own ingress"),
        ("own", "http://127.0.0.1:8001/x", "only to its own ingress"),
        ("own", "https://127.0.0.1:8000/x", "only to its own ingress"),
        ("own", "http://127.0.0.1:8000@elsewhere.example/x", "only to its own ingress"),
        ("admin", "http://localhost.elsewhere.example:8000/x", "only to its own ingress"),
        ("crm", "https://api.crm.example.elsewhere.example/find", "`hosts`"),
        ("crm", "https://crm-cdn.example/find", "`hosts`"),
        ("crm", f"{HERE}/x", "`hosts`"),
        ("crm", "http://api.crm.example/find", "https"),
        ("plain", "http://elsewhere/find", "`hosts`"),
    ],
)
def test_secrets_go_nowhere_else(name, target, said):
    assert said in secret_problem(name, target)


def test_secrets_of_other_tools_python_tools_and_sources():
    assert "not for this tool" in secret_problem(
        "crm", "https://api.crm.example/find", tool_id="mail.send"
    )
    assert secret_problem("crm", "toolbox.text:summary_stats", executor="python") is None
    assert "only to its own ingress" in secret_problem(
        "own", "toolbox.text:summary_stats", executor="python"
    )
    assert "source" in secret_problem("crm", "crm:find", executor="mcp")
    source = "\nsources: {%s: {url: '%s', secrets: [{name: %s}]}}"
    for name, url, secret, said in [
        ("crm", "https://api.crm.example/mcp", "crm", None),
        ("crm", "https://elsewhere.example/mcp", "crm", "`hosts`"),
        ("crm", "https://mcp.example/mcp", "own", "only to its own ingress"),
        ("mail", "https://api.crm.example/mcp", "crm", "not for this tool"),
        ("crm", "https://api.crm.example/mcp", "nobodys", "not among"),
    ]:
        given = parse_yaml(
            f"tools: []{SECRETS}{source % (name, url, secret)}", ToolsSettings, name="tools.yaml"
        )
        problem = given.source_problem(name, HERE)
        assert problem is None if said is None else said in problem


def test_addresses_hold_no_secrets_and_a_source_keeps_its_last_slash():
    given = "tools: []\nbases: {a: %s}\nsources: {s: {url: %s}}"
    read = parse_yaml(given % ("https://h/x/", "https://h/mcp/"), ToolsSettings, name="tools.yaml")
    assert (read.bases["a"], read.sources["s"].url) == ("https://h/x", "https://h/mcp/")
    for wrong in ("ftp://h", "https://", "https://u:p@h/", "'https://h/?key=1'", "'https://h/#x'"):
        for one, other in ((wrong, "https://h"), ("https://h", wrong)):
            with pytest.raises(ConfigurationError):
                parse_yaml(given % (one, other), ToolsSettings, name="tools.yaml")


def test_this_graphs_secret_under_another_name_stays_here_too():
    given = parse_yaml(f"tools: []{SECRETS}", ToolsSettings, name="tools.yaml")
    secrets = ConfiguredSecrets(
        given.secrets, {"CRM_KEY": "ours", "DAARION_INTERNAL_SECRET": "ours"}.get, HERE
    )
    with pytest.raises(SecretWithheld):
        secrets.value("crm", "crm.find", "https://api.crm.example/find")
    with pytest.raises(ConfigurationError):
        parse_yaml(
            "tools: []\nsecrets: {own: {env: DAARION_INTERNAL_SECRET, tools: ['*'], "
            "hosts: [elsewhere]}}",
            ToolsSettings,
            name="tools.yaml",
        )


def test_the_shipped_secret_does_not_follow_the_tools_to_another_service():
    shipped = load_yaml(REPOSITORY / "configs" / "tools.yaml", ToolsSettings)
    moved = shipped.model_copy(
        update={"bases": {"projects": "http://projects-service:8000/internal/tools"}}
    )
    assert "only to its own ingress" in moved.secret_problem(
        moved.resolve(moved.tools[0], HERE), HERE
    )


PROJECTS = "projects: ingress/internal/messaging/tools"
ELSEWHERE = "projects: http://projects-service:8000/internal/tools"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        (
            {PROJECTS: ELSEWHERE},
            "tools.projects.list",
        ),
        (
            {
                "sources: {}": 'sources: {search: {url: "https://mcp.example.com/mcp", '
                "secrets: [{name: internal}]}}",
                "tools: [projects.list, followups.create]": "tools: ['*']",
            },
            "sources.search",
        ),
        (
            {
                PROJECTS: ELSEWHERE,
                "secrets:\n": "secrets:\n  projects: {env: P, tools: ['*'], "
                "hosts: [projects-service], insecure: true}\n",
                "name: internal,": "name: projects,",
            },
            None,
        ),
    ],
)
def test_the_graph_does_not_take_a_file_that_sends_secrets_elsewhere(
    tmp_path, monkeypatch, changes, said
):
    text = (REPOSITORY / "configs" / "tools.yaml").read_text()
    for one, other in changes.items():
        assert one in text
        text = text.replace(one, other)
    (tmp_path / "tools.yaml").write_text(text)
    monkeypatch.setenv("DAARION_CONFIG_DIR", str(tmp_path))
    if said is None:
        assert live_config({})["Toolcore"]["tools"]
        return
    with pytest.raises(ConfigurationError, match="only to its own ingress") as refused:
        live_config({})
    assert said in refused.value.message
