"""docs/events.md lists every event that the product emits, every metric, every subject on NATS."""

import ast
import collections
import re
import subprocess
from decimal import Decimal
from pathlib import Path

from backends.telemetry import metric_table
from contracts.agents.announcements import AgentNotice, AgentUsageEvent
from contracts.llm.limits import LimitWarning
from contracts.llm.usage import UsageRecord
from contracts.tools.ledger import ToolUsageEvent

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/events.md").read_text()
EVENTS, METRICS, MESSAGES = re.split("## Metrics|## Messages on NATS", TEXT)
OUTSIDE = ("tests/", "benchmarks/")
SOURCES = {
    name: ast.parse((ROOT / name).read_text())
    for name in subprocess.check_output(["git", "ls-files", "*.py"], cwd=ROOT, text=True).split()
    if not name.startswith(OUTSIDE)
}
_EVENT = re.compile(r"[a-z_]+\.[a-z_]+")
_SUBJECT = re.compile(r"[a-z]+(\.[a-z]+)+")


def texts(*nodes):
    """Returns the string constants in the nodes."""
    return {
        each.value
        for node in nodes
        for each in ast.walk(node)
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    }


def emits(tree):
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "emit"
        and "events" in ast.unparse(node.func)
    ]


def failure_events(tree):
    """Returns the calls that name the events of periodic work's failures."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "failure_event"
    ]


def failure_fields(call):
    """Returns the fields of each event that such a call names."""
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    defects = texts(keywords.pop("defect")) if "defect" in keywords else set()
    paused = {"seconds"} if keywords.pop("with_pause", None) else set()
    failure = {"error", *keywords} | paused | (set() if defects else {"traceback"})
    return dict.fromkeys(texts(call.args[1]), failure) | {
        name: {"error", "traceback", *keywords} for name in defects
    }


def names_in(tree):
    """Returns the events of a module. Where one is emitted by a name that is no literal, every
    literal of the module that looks like an event counts.
    """
    found = set()
    literals = {text for text in texts(tree) if _EVENT.fullmatch(text)}
    for call in emits(tree):
        found |= texts(call.args[0]) or literals
    for call in failure_events(tree):
        found |= failure_fields(call).keys() or literals
    for node in ast.walk(tree):  # the event log's own event is a plain dict
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            found |= {
                value.value
                for key, value in pairs
                if isinstance(key, ast.Constant)
                and key.value == "event"
                and isinstance(value, ast.Constant)
            }
    return found


def listed():
    """Returns the fields of each documented event."""
    rows = re.findall(r"^\| `(\S+)` \| (?:info|warning|error) \|([^|]*)\|", EVENTS, re.MULTILINE)
    assert len(rows) == len(dict(rows))  # no event twice
    return {name: set(re.findall(r"`(\w+)`", fields)) for name, fields in rows}


def test_the_list_has_every_event_and_no_other():
    emitted = set().union(*map(names_in, SOURCES.values()))
    assert set(listed()) == emitted
    assert len(emitted) > 80  # the search still finds the calls


def test_the_fields_of_an_event_are_listed():
    fields = collections.defaultdict(set)
    open_ended = set()  # with `**fields`: the list may have more
    for tree in SOURCES.values():
        for call in emits(tree):
            for name in texts(call.args[0]):
                given = {keyword.arg for keyword in call.keywords}
                if None in given:
                    open_ended.add(name)
                renamed = {"traceback" if arg == "exc_info" else arg for arg in given - {None}}
                fields[name] |= renamed
        for call in failure_events(tree):
            for name, given in failure_fields(call).items():
                fields[name] |= given
    documented = listed()
    assert {name: given - documented[name] for name, given in fields.items()} == {
        name: set() for name in fields
    }
    exact = fields.keys() - open_ended
    assert {name: documented[name] for name in exact} == {name: fields[name] for name in exact}


def test_the_fields_of_calls_are_those_of_their_records():
    call = UsageRecord(
        **dict.fromkeys(("provider", "physical_model", "outcome", "logical_model"), "x"),
        **dict.fromkeys(("request_id", "agent_id", "microdao_id"), "x"),
        latency_ms=1.0,
        cost_usd=Decimal(1),
    )
    added = {"cached", "attempts", "unreadable_events"}
    assert listed()["llm.call"] == call.event().keys() | added
    left_out = {"id", "occurred_at", "tool_name"}
    assert listed()["tools.call"] == ToolUsageEvent.model_fields.keys() - left_out


def test_the_list_has_every_metric_and_no_other():
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\| (.*) \|$", METRICS, re.MULTILINE)
    documented = [
        (name, kind, tuple(re.findall(r"`(\w+)`", labels)), text)
        for name, kind, labels, text in rows
    ]
    assert documented == [
        (metric.name, metric.kind, metric.labels, metric.help)
        for metric in metric_table.METRICS.values()
    ]


def test_the_list_has_every_subject_and_no_other():
    published = [LimitWarning, ToolUsageEvent, AgentUsageEvent, *AgentNotice.__subclasses__()]
    subjects = {event.subject for event in published}
    for name, tree in SOURCES.items():
        if name.startswith(("interfaces/", "backends/")):
            constants = [node.value for node in tree.body if isinstance(node, ast.Assign)]
            subjects |= {
                node.value
                for node in constants
                if isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and _SUBJECT.fullmatch(node.value)
            }
    first_cells = "".join(re.findall(r"^\|([^|]*)\|", MESSAGES, re.MULTILINE))
    assert sorted(re.findall(r"`([^`]+)`", first_cells)) == sorted(subjects)
