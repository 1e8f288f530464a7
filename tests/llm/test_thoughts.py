"""Reasoning is separated from the answer, however the text was cut into pieces."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.llm.thoughts import OPENINGS, ThoughtSplitter, whole_parts

PIECES = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<think",
        ">",
        "a",
        "</thi",
        "nk>",
        "<",
        "[THINK]",
        "[/THINK]",
        "<thinking>",
        "</thinking>",
        " ",
        "\n\n",
        "так",
        "```",
    ]
)
TEXTS = st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=40)


def streamed(text, cuts, *, opened):
    splitter = ThoughtSplitter(opened=opened)
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    parts = [splitter.feed(text[start:end]) for start, end in pairwise(places)]
    parts.append(splitter.finish())
    return "".join(part.content for part in parts), "".join(part.thought for part in parts)


@given(TEXTS, st.lists(st.integers(0, 1_000), max_size=20), st.booleans())
def test_the_cuts_of_a_stream_change_nothing(text, cuts, opened):
    assert streamed(text, cuts, opened=opened) == streamed(text, [], opened=opened)


@given(TEXTS, st.booleans())
def test_no_letter_is_invented_and_none_shown_twice(text, opened):
    content, thought = streamed(text, range(len(text)), opened=opened)
    assert len(content) + len(thought) <= len(text)
    left = text
    for part in (thought, content):
        for letter in part:
            assert letter in left
            left = left.replace(letter, "", 1)


@given(st.text(max_size=60).filter(lambda text: not text.lstrip().startswith(("<", "["))))
def test_an_answer_that_begins_with_words_is_unchanged(text):
    assert streamed(text + "<think>x</think>", [1, 3, 7], opened=False) == (
        (text + "<think>x</think>", "") if text.strip() else (text[:0], "x")
    )


@given(st.sampled_from(sorted(OPENINGS.items())), st.text(max_size=30), st.text(max_size=30))
def test_a_thought_at_the_start_never_reaches_the_answer(tag, thought, answer):
    opening, closing = tag
    if closing[0] in thought or "<" in answer or "[" in answer:
        return
    content, found = streamed(
        f"\n{opening}{thought}{closing}\n\n{answer}", range(0, 90, 2), opened=False
    )
    assert (content, found) == (answer.lstrip(), thought.lstrip())


@pytest.mark.parametrize(
    ("text", "content", "thought"),
    [
        ("<think>\n\n</think>\n\nТак.", "Так.", ""),
        ("<think>Хто? Олена.</think>Олена.", "Олена.", "Хто? Олена."),
        ("<think>раз</think>\n<think>два</think> Три.", "Три.", "раздва"),
        ("<think>і далі, і далі", "", "і далі, і далі"),
        ("<think>", "", ""),
        ("<think>a</thinking>b</think>c", "c", "a</thinking>b"),
        (
            "Тег <think> відкриває думку, а </think> закриває.",
            "Тег <think> відкриває думку, а </think> закриває.",
            "",
        ),
        ("```html\n<think>\n```", "```html\n<think>\n```", ""),
        ("    код", "    код", ""),
        ("<thinker>", "<thinker>", ""),
        ("<thi", "<thi", ""),
        (" " * 300 + "<think>x</think>", " " * 300 + "<think>x</think>", ""),
    ],
)
def test_without_a_reasoning_setting_only_tags_at_the_start_count(text, content, thought):
    assert whole_parts(text, reasoning=False)[:2] == (content, thought)
    assert streamed(text, range(len(text)), opened=False) == (content, thought)


@pytest.mark.parametrize(
    ("text", "content", "thought"),
    [
        ("Хто? Олена.\n</think>\n\nОлена.", "Олена.", "Хто? Олена.\n"),
        ("<think>Хто?</think>Олена.", "Олена.", "Хто?"),
        ("і далі, і далі", "", "і далі, і далі"),
        ("а</think>Тег </think> закриває.", "Тег </think> закриває.", "а"),
        ("", "", ""),
    ],
)
def test_a_thought_that_the_prompt_has_opened_needs_no_opening_tag(text, content, thought):
    assert whole_parts(text, reasoning="opened")[:2] == (content, thought)
    assert streamed(text, range(len(text)), opened=True) == (content, thought)


def test_a_closing_tag_alone_ends_the_thought_of_a_reasoning_model():
    assert whole_parts("Хто?</think>Олена.", reasoning=True)[:2] == ("Олена.", "Хто?")
    assert whole_parts("Тег </think>", reasoning=False)[:2] == ("Тег </think>", "")
    for text in ("Олена.", "Теги <think> і </think>."):
        assert whole_parts(text, reasoning=True)[:2] == (text, "")
