"""The policy pipeline, the decision about a taken call id, names, previews and pages: pure functions."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.environment import REPOSITORY
from configs.tools import ToolsSettings
from configs.yaml_files import load_yaml, parse_yaml
from contracts.errors import ConfigurationError, InvalidRequest
from contracts.tools.api import TOOL_ID, ToolCallRequest, ToolDefinition, plain_name, tool_id_of
from contracts.tools.ledger import RecordedCall, Settlement, StoredResult
from contracts.tools.policy import CallBounds, PolicyRules
from contracts.tools.registry import RegisteredTool
from executors.mcp.source import tool_id_in
from interfaces.http.tools import is_admin_route
from services.tools.policy import Policy
from services.tools.registry import check_definition, compile_tool
from services.tools.resolution import Resolver
from services.tools.results import PageRequest, page, preview, to_text
from services.tools.resume import Resume, resume
from services.tools.schemas import CompiledSchema
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


def recorded(**fields):
    values = {
        "id": UUID(int=1),
        "microdao_id": "m",
        "tool_version": 1,
        "effect": "write",
        "fingerprint": b"f",
        "state": "settled",
        "attempt": 1,
        "expired": False,
        "approval": None,
        "settlement": Settlement(ok=True, body="1"),
        "result_kept_until": None,
    }
    return RecordedCall(**{**values, **fields})


def failure(**fields):
    return Settlement(ok=False, error_kind="upstream", **fields)


@pytest.mark.parametrize(
    ("call", "step"),
    [
        (recorded(fingerprint=b"g"), Resume.CONFLICT),
        (recorded(fingerprint=b"g", state="running", settlement=None), Resume.CONFLICT),
        (recorded(), Resume.REPLAY),
        (recorded(settlement=Settlement(ok=True, body=None)), Resume.FORGOTTEN),
        (recorded(settlement=failure()), Resume.REPLAY),
        (recorded(settlement=failure(retryable=True)), Resume.RUN),
        (recorded(settlement=failure(retryable=True, effect_possible=True)), Resume.REPLAY),
        (
            recorded(settlement=failure(retryable=True, effect_possible=True), effect="idempotent"),
            Resume.RUN,
        ),
        (
            recorded(settlement=failure(retryable=True, effect_possible=True), effect="read"),
            Resume.RUN,
        ),
        (recorded(state="running", settlement=None), Resume.WAIT),
        (recorded(state="running", settlement=None, expired=True), Resume.LOST),
        (recorded(state="running", settlement=None, expired=True, effect="idempotent"), Resume.RUN),
        (recorded(state="awaiting_approval", settlement=None), Resume.APPROVAL_PENDING),
        (recorded(state="awaiting_approval", settlement=None, approval="granted"), Resume.RUN),
        (
            recorded(state="awaiting_approval", settlement=None, approval="rejected"),
            Resume.APPROVAL_REJECTED,
        ),
    ],
)
def test_what_follows_from_a_taken_call_id(call, step):
    assert resume(call, b"f") is step


def waiting(**fields):
    return recorded(
        **{
            "state": "awaiting_approval",
            "settlement": None,
            "approval": "granted",
            "approval_digest": b"d",
            **fields,
        }
    )


PASSING = Settlement(ok=False, error_kind="unavailable", retryable=True)


@pytest.mark.parametrize(
    ("call", "step"),
    [
        (waiting(approval=None), Resume.APPROVAL_PENDING),
        (waiting(), Resume.RUN),
        (waiting(approval_ended=True), Resume.APPROVAL_PENDING),
        (waiting(approval_digest=b"e"), Resume.APPROVAL_LAPSED),
        (waiting(approval=None, approval_digest=None), Resume.APPROVAL_LAPSED),
        (waiting(approval="rejected", approval_digest=b"e"), Resume.APPROVAL_REJECTED),
        (waiting(state="settled", settlement=PASSING), Resume.RUN),
        (waiting(state="settled", settlement=PASSING, approval_ended=True), Resume.APPROVAL_LAPSED),
        (
            waiting(state="settled", settlement=PASSING, approval_digest=b"e"),
            Resume.APPROVAL_LAPSED,
        ),
        (waiting(state="settled", settlement=PASSING, approval=None), Resume.APPROVAL_LAPSED),
        (
            waiting(
                state="settled", settlement=Settlement(ok=True, body="1"), approval_digest=b"e"
            ),
            Resume.REPLAY,
        ),
        (waiting(state="running", expired=True, effect="idempotent"), Resume.RUN),
        (
            waiting(state="running", expired=True, effect="idempotent", approval_digest=b"e"),
            Resume.APPROVAL_LAPSED,
        ),
        (waiting(state="running", approval_digest=b"e"), Resume.WAIT),
    ],
)
def test_what_follows_where_approval_is_needed(call, step):
    assert resume(call, b"f", b"d") is step


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


RESULTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=60) | st.dictionaries(st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=60,
)


@given(result=RESULTS, limit=st.integers(256, 5_000))
def test_a_preview_fits(result, limit):
    shown = preview(result, None, limit)
    assert shown is None or len(orjson.dumps(shown)) <= limit


def test_a_preview_matches_the_schema_or_is_none():
    schema = CompiledSchema(
        {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"minLength": 150}},
            },
        }
    )
    rows = [{"name": "н" * 200} for _ in range(1_000)]
    shown = preview(rows, schema, 4_000)
    assert shown
    assert schema.violation(shown) is None
    assert preview(rows, CompiledSchema({"minItems": 500}), 4_000) is None


@given(items=st.lists(st.text(max_size=20), max_size=40), limit=st.integers(1, 10))
def test_pages_of_items_are_the_whole(items, limit):
    assert _read(items, limit, "result") == items


@given(text=st.text(max_size=500), limit=st.integers(1, 100))
def test_pages_of_text_are_the_whole(text, limit):
    assert orjson.loads("".join(_read(text, limit, "text"))) == text


def _read(result, limit, part):
    items = len(result) if isinstance(result, list) else None
    stored = StoredResult(UUID(int=1), to_text(result), items, NOW)
    found, offset = [], 0
    while offset is not None:
        one = page(stored, PageRequest(microdao_id="m", offset=offset, limit=limit))
        found += getattr(one, part)
        offset = one.next_offset
    return found


def test_an_offset_beyond_the_end_is_refused():
    stored = StoredResult(UUID(int=1), "[1]", 1, NOW)
    with pytest.raises(InvalidRequest):
        page(stored, PageRequest(microdao_id="m", offset=2))


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
    resolve = Resolver(
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
            "tools: [{id: a.b, name: n, input_schema: {}, executor: http, target: 'http://h', secrets: [{name: s}]}]",
            "`s`",
        ),
        (f"tools: [{PLAIN}, {PLAIN}]", "twice"),
    ],
)
def test_mistakes_in_the_file_are_named(text, said):
    with pytest.raises(ConfigurationError) as refused:
        parse_yaml(text, ToolsSettings, name="tools.yaml")
    assert said in refused.value.message
