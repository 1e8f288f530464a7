"""Blueprints and invocations as they are read, and blueprints that are fitted to small models."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from backends.http.llm import first_available
from configs.agents import load_blueprints
from configs.environment import REPOSITORY
from contracts.agents.blueprints import Blueprint
from contracts.agents.invocations import AgentInvocation
from contracts.agents.runs import ToolUse
from contracts.errors import ConfigurationError
from contracts.llm.listings import ModelInfo
from services.agents.choices import choices_of
from services.agents.tool_turn import CallOutcome


def test_shipped_blueprints_are_valid_and_name_shipped_tools():
    found = load_blueprints(REPOSITORY / "configs")
    assert {"agent:sofia", "agent:demo"} <= set(found)
    assert found["agent:sofia"].language == "uk"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id: sofia\nname: S\nmodel: m\ninstructions: x", "id"),
        ("id: agent:a\nname: S\nmodel: m\ninstructions: x\nmore: 1", "more"),
        (
            "id: agent:a\nname: S\nmodel: m\ninstructions: x\nwrite_after_untrusted: [a.b]",
            "not among",
        ),
        ("id: agent:a\nname: S\nmodel: m\ninstructions: x\nfirst_step: required", "needs"),
        ("id: agent:a\nname: S\nmodel: m\ninstructions: '  '", "instructions"),
        ("[]", "mapping"),
    ],
)
def test_wrong_blueprints_are_refused_with_file_and_key(tmp_path: Path, text, said):
    folder = tmp_path / "agents"
    folder.mkdir()
    (folder / "a.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=rf"a\.yaml: .*{said}"):
        load_blueprints(tmp_path)


def test_two_files_for_one_agent_are_refused_and_no_folder_is_no_agents(tmp_path: Path):
    assert load_blueprints(tmp_path) == {}
    (tmp_path / "agents").mkdir()
    for name in ("a", "b"):
        (tmp_path / "agents" / f"{name}.yaml").write_text(
            "id: agent:a\nname: S\nmodel: m\ninstructions: x"
        )
    with pytest.raises(ConfigurationError, match="already"):
        load_blueprints(tmp_path)


@pytest.mark.parametrize(
    "body",
    [
        {"agent_id": "agent:a", "entrypoint": "channel_message", "payload": {}},
        {"agent_id": "agent:a", "entrypoint": "direct", "payload": {"text": "  "}},
        {"agent_id": "agent:a", "entrypoint": "other", "payload": {"channel_id": "c"}},
        {"agent_id": "", "entrypoint": "direct", "payload": {"text": "x"}},
        {"agent_id": "agent:a", "entrypoint": "direct", "payload": {"text": "a\x00"}},
    ],
)
def test_wrong_invocations_are_refused(body):
    with pytest.raises(ValidationError):
        AgentInvocation.model_validate(body)


CHOICE = {
    "tool": "projects.list",
    "field": "name",
    "reply": "Проєкти: {choices}.",
    "none": "Немає.",
}


def small_blueprint(**fields):
    given_fields = {
        "id": "agent:a",
        "name": "A",
        "model": "big",
        "instructions": "x",
        "tools": ["projects.list", "followups.create"],
    }
    return Blueprint.model_validate({**given_fields, **fields})


def test_a_blueprint_is_fitted_to_the_model_that_answers():
    blueprint = small_blueprint(
        small={"models": ["tiny"], "answer": CHOICE}, write_after_untrusted=True, tool_mode="text"
    )
    assert blueprint.fitted("big-1") is blueprint
    assert blueprint.fitted(None) is blueprint
    fitted = blueprint.fitted("tiny")
    assert (fitted.tools, fitted.first_step, fitted.tool_mode, fitted.limits.steps) == (
        ["projects.list"],
        "required",
        "native",
        2,
    )
    assert not fitted.may_write_after_untrusted("projects.list")
    for wrong in (
        {"answer": {**CHOICE, "tool": "a.b"}},
        {"answer": {**CHOICE, "reply": "без місця"}},
        {"small": {"models": [], "answer": CHOICE}},
    ):
        with pytest.raises(ValidationError):
            small_blueprint(**wrong)


def outcome(text, *, ok=True, tool_id="projects.list"):
    return CallOutcome(f"tool {tool_id}", text, ToolUse(tool_id=tool_id, executed=True, ok=ok))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('[{"name": "Сад"}, {"name": "Поле"}, {"name": "Сад"}]', ("Сад", "Поле")),
        ("[]", ()),
        ('[{"id": 1}, 2, {"name": 3}]', ()),
        ('{"result": [{"name": "Сад"}], "note": "x"}', ("Сад",)),
        ('{"name": "Сад"}', None),
        ('"x"', None),
    ],
)
def test_choices_are_the_values_of_a_field(text, values):
    settings = small_blueprint(answer=CHOICE).answer
    found = choices_of(settings, [outcome("{}", tool_id="other.tool"), outcome(text)])
    assert (found.values if found is not None else None) == values
    assert choices_of(None, [outcome(text)]) is None
    assert choices_of(settings, [outcome(text, ok=False)]) is None


def info(name, *, available, fallbacks=(), provider_name=None):
    return ModelInfo(
        id=name,
        provider="p",
        name=provider_name or f"{name}-1",
        available=available,
        fallbacks=list(fallbacks),
    )


def test_the_model_that_answers_is_the_first_available_one():
    models = {
        one.id: one
        for one in (
            info("a", available=False, fallbacks=["b", "c"]),
            info("b", available=False),
            info("c", available=True),
        )
    }
    assert first_available("a", models) == "c-1"
    assert first_available("c", models) == "c-1"
    assert first_available("b", models) is None
    assert first_available("none", models) is None
