import pytest

from services.llm.continuation import INSTRUCTION, continued

MESSAGES = [{"role": "user", "content": "hi"}]


def test_an_instruction_follows_the_part_that_came():
    asked, options = continued("instruct", MESSAGES, "Half an", {"max_tokens": 5})
    assert asked == [
        *MESSAGES,
        {"role": "assistant", "content": "Half an"},
        {"role": "user", "content": INSTRUCTION},
    ]
    assert options == {"max_tokens": 5}


@pytest.mark.parametrize(
    ("dialect", "message", "extra"),
    [
        ("deepseek", {"role": "assistant", "content": "Half an", "prefix": True}, {"user": "x"}),
        (
            "vllm",
            {"role": "assistant", "content": "Half an"},
            {"user": "x", "continue_final_message": True, "add_generation_prompt": False},
        ),
    ],
)
def test_dialects_go_on_with_the_same_message(dialect, message, extra):
    given = {"extra_body": {"user": "x"}}
    asked, options = continued(dialect, MESSAGES, "Half an", given)
    assert (asked, options) == ([*MESSAGES, message], {"extra_body": extra})
    assert (MESSAGES, given) == (
        [{"role": "user", "content": "hi"}],
        {"extra_body": {"user": "x"}},
    ), "what was given stays as it was"


def test_some_are_never_asked():
    assert continued("none", MESSAGES, "Half an", {}) is None
