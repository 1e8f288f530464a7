"""The policy pipeline, names of tools and the configuration file: pure functions."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.environment import REPOSITORY
from configs.tools import ToolsSettings
from configs.yaml_files import load_yaml, parse_yaml
from contracts.errors import ConfigurationError
from contracts.tools.api import TOOL_ID, ToolCallRequest, ToolDefinition, plain_name, tool_id_of
from contracts.tools.policy import CallBounds, PolicyRules
from contracts.tools.registry import RegisteredTool
from executors.mcp.source import tool_id_in
from interfaces.http.tools import is_admin_route
from services.tools.policy import Policy
from services.tools.registry import check_definition, compile_tool
from services.tools.resolution import DefinitionResolver
from tests.support.tools.toolcore import tool

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def compiled(*, enabled=True, **fields):
    return compile_tool(
        RegisteredTool(ToolDefinition.model_validate(tool(**fields)), 1, enabled, "file", NOW)
    )


def request(args=None, **fields):
    values = {
        "tool_id": "test.echo",
        "agent_id": "agent:sofia",
        "microdao_id": "microdao:7",
        "args": {} if args is None else args,
    }
    return ToolCallRequest(**{**values, **fields})


def decide(given_tool, given_request=None, **rules):
    return Policy(PolicyRules(**rules), CallBounds()).decide(given_tool, given_request or request())


def test_unknown_and_disabled_tools_look_the_same():
    unknown, disabled = decide(None), decide(compiled(enabled=False))
    assert unknown == disabled
    assert (unknown.error_kind, unknown.rule) == ("not_found", "tool")


@pytest.mark.parametrize(
    ("agents", "rules", "allowed", "rule"),
    [
        (None, {}, True, "default"),
        (None, {"default": "deny"}, False, "default"),
        (["agent:sofia"], {"default": "deny"}, True, "allowed_agents:agent:sofia"),
        (["agent:*"], {"default": "deny"}, True, "allowed_agents:agent:*"),
        (["agent:pm"], {}, False, "allowed_agents"),
        ([], {}, False, "allowed_agents"),
        (
            None,
            {"default": "deny", "tenants": {"microdao:7": {"allow": ["test.*"]}}},
            True,
            "tenants.microdao:7.allow",
        ),
        (
            None,
            {"tenants": {"microdao:7": {"allow": ["other.*"]}}},
            False,
            "tenants.microdao:7.allow",
        ),
        (None, {"tenants": {"microdao:7": {"allow": []}}}, False, "tenants.microdao:7.allow"),
        (
            ["agent:sofia"],
            {"tenants": {"microdao:7": {"deny": ["test.echo"]}}},
            False,
            "tenants.microdao:7.deny",
        ),
        (
            None,
            {"tenants": {"microdao:7": {"allow": ["*"], "deny": ["test.*"]}}},
            False,
            "tenants.microdao:7.deny",
        ),
        (["agent:pm"], {"tenants": {"microdao:7": {"allow": ["*"]}}}, False, "allowed_agents"),
        (
            None,
            {"tenants": {"*": {"allow": []}, "microdao:*": {"allow": ["*"]}}},
            True,
            "tenants.microdao:*.allow",
        ),
        (
            None,
            {"tenants": {"microdao:*": {"allow": ["*"]}, "microdao:7": {"deny": ["*"]}}},
            False,
            "tenants.microdao:7.deny",
        ),
        (None, {"tenants": {"microdao:8": {"deny": ["*"]}}}, True, "default"),
    ],
)
def test_access(agents, rules, allowed, rule):
    decision = decide(compiled(allowed_agents=agents), **rules)
    assert (decision.allowed, decision.rule) == (allowed, rule)
    assert allowed or decision.error_kind == "denied"


def test_access_is_decided_before_arguments_are_looked_at():
    assert decide(compiled(allowed_agents=[]), request(args=[1])).error_kind == "denied"


@pytest.mark.parametrize("foreign", ["microdao:8", "", None, 7, ["microdao:7"]])
def test_a_foreign_tenant_in_the_arguments_is_denied(foreign):
    decision = decide(compiled(), request(args={"microdao_id": foreign}))
    assert (decision.error_kind, decision.rule) == ("denied", "args.microdao_id")
    assert decide(compiled(), request(args={"microdao_id": "microdao:7"})).allowed


def test_bounds_of_arguments_and_context():
    deep = {}
    for _ in range(100):
        deep = {"a": deep}
    for args in (deep, {"a": "x" * 300_000}, {"a": list(range(30_000))}, {"a": 10**30}):
        assert decide(compiled(), request(args=args)).error_kind == "invalid_args"
        assert decide(compiled(), request(context=args)).error_kind == "invalid_args"


@pytest.mark.parametrize(
    ("effect", "required", "rules", "needed"),
    [
        ("write", None, [], False),
        ("write", None, ["write"], True),
        ("read", None, ["write"], False),
        ("read", True, [], True),
        ("write", False, ["write"], False),
    ],
)
def test_approval(effect, required, rules, needed):
    policy = Policy(PolicyRules(require_approval_for=rules), CallBounds())
    assert (
        policy.needs_approval(compiled(effect=effect, requires_approval=required).definition)
        is needed
    )


WORDS = st.text("aZ0-", min_size=1, max_size=3)
IDS = st.lists(st.lists(WORDS, min_size=1, max_size=2).map("_".join), min_size=1, max_size=4).map(
    ".".join
)


@given(IDS)
def test_names_are_mapped_both_ways(tool_id):
    assert TOOL_ID.fullmatch(tool_id)
    name = plain_name(tool_id)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", name)
    assert tool_id_of(name) == tool_id_of(tool_id) == tool_id


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a__b",
        "_a",
        "a_",
        "a_.b",
        "a b",
        "а",
        "a/b",
        "x" * 65,
        ".".join("x" * 25),
    ],
)
def test_ids_that_could_not_be_mapped_back_are_refused(wrong):
    with pytest.raises(ValidationError):
        ToolDefinition.model_validate(tool(wrong))


@given(st.text(max_size=200))
def test_ids_of_source_tools_are_always_ids(name):
    ToolDefinition.model_validate(tool(tool_id_in("my-source", name)))


@pytest.mark.parametrize(
    ("method", "path", "admin"),
    [
        ("GET", "/", False),
        ("POST", "/call", False),
        ("GET", "/calls", False),
        ("GET", "/results/x", False),
        ("POST", "/mcp", False),
        ("DELETE", "/mcp", False),
        ("PUT", "/projects.list", True),
        ("DELETE", "/projects.list", True),
        ("GET", "/approvals", True),
        ("POST", "/approvals/x", True),
    ],
)
def test_admin_routes(method, path, admin):
    assert is_admin_route(method, path) is admin


def test_the_shipped_file_can_be_served():
    shipped = load_yaml(REPOSITORY / "configs" / "tools.yaml", ToolsSettings)
    here = "http://127.0.0.1:8000"
    resolve = DefinitionResolver(
        lambda definition: shipped.resolve(definition, here),
        lambda definition: shipped.secret_problem(definition, here),
        ["toolbox"],
        [],
    )
    for definition in shipped.tools:
        check_definition(resolve(definition))
    assert {definition.id for definition in shipped.tools} == {
        "projects.list",
        "followups.create",
        "text.summary_stats",
    }
    resolved = resolve(shipped.tools[0])
    assert resolved.target == "http://127.0.0.1:8000/internal/messaging/tools/projects.list"
    assert [(rule.host, rule.port, rule.cidr) for rule in resolved.egress] == [
        ("127.0.0.1", 8000, "127.0.0.1/32")
    ]


PLAIN = "{id: a, name: n, input_schema: {}, executor: http, target: 'http://h'}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tools: [{id: a}]", "tools.0.name"),
        ("tools: []\nunknown: 1", "unknown"),
        ("tools: []\nbases: {x: 'http://u:p@h'}", "credentials"),
        ("tools: []\npolicy: {tenants: {'a*b': {}}}", "tenants"),
        (
            "tools: [{id: a.b, name: n, input_schema: {}, executor: http, target: '{nobase}/x'}]",
            "nobase",
        ),
        (
            f"tools: [{PLAIN[:-1]}, secrets: [{{name: s}}]}}]",
            "`s`",
        ),
        (f"tools: [{PLAIN}, {PLAIN}]", "twice"),
    ],
)
def test_mistakes_in_the_file_are_named(text, said):
    with pytest.raises(ConfigurationError) as refused:
        parse_yaml(text, ToolsSettings, name="tools.yaml")
    assert said in refused.value.message
