"""Continuations: repetitions are left out, starting over is an error, however the text is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import UpstreamInvalidResponse
from services.llm.seams import Seam

SHOWN = "The capital of France is Paris, and the Seine flows"
ANEW = UpstreamInvalidResponse


def joined(shown, pieces, *, in_words=True):
    """The text behind `shown`, or the class of the error."""
    seam = Seam(shown, in_words=in_words)
    try:
        return "".join(seam.feed(piece) for piece in pieces) + seam.finish()
    except UpstreamInvalidResponse as error:
        return type(error)


def pieces_of(text, size):
    return [text[start : start + size] for start in range(0, len(text), size)]


CASES = [
    (SHOWN, " through it.", " through it."),
    (SHOWN, f"{SHOWN} through it.", " through it."),
    (SHOWN, f"\n{SHOWN} through it.", " through it."),
    (SHOWN, SHOWN, ""),
    (SHOWN, "and the Seine flows through it.", " through it."),
    (SHOWN, " the Seine flows through it.", " through it."),
    (SHOWN, "flows through it.", "flows through it."),  # five letters may be chance
    (SHOWN, "The capital of France has two million people.", ANEW),
    (SHOWN, "The capital city of France is Paris.", ANEW),
    (SHOWN, f"Sorry for the break! Here it is: {SHOWN} through it.", ANEW),
    (SHOWN, "The Seine is a river.", "The Seine is a river."),
    (SHOWN, "The", "The"),
    (SHOWN, "", ""),
    ("The", "The capital is Paris.", " capital is Paris."),
    ("The", " capital is Paris.", " capital is Paris."),
    ("Київ — столиця", "Київ — столиця України", " України"),
    ("Київ — столиця", "Київ — столичне місто", ANEW),
]


@pytest.mark.parametrize("size", [1, 3, 7, 1_000])
@pytest.mark.parametrize(("shown", "continuation", "expected"), CASES)
def test_repeated_text_is_left_out_and_starting_over_is_an_error(
    shown, continuation, expected, size
):
    assert joined(shown, pieces_of(continuation, size)) == expected


ROW = "| 0 | 0 | 0 | 0 |"


@pytest.mark.parametrize(
    ("shown", "continuation", "expected"),
    [
        (f"| a | b | c | d |\n{ROW}", f"\n{ROW}\n", f"\n{ROW}\n"),
        ('{"first_name": "A"}', '{"first_name": "B"}', '{"first_name": "B"}'),
        ("The", "The capital", "The capital"),
        (SHOWN, f"{SHOWN} through it.", " through it."),
        (f"{SHOWN} through it. {SHOWN}", f"{SHOWN} past it.", ANEW),
    ],
)
def test_a_continued_message_may_repeat_rows_but_not_start_over(shown, continuation, expected):
    assert joined(shown, pieces_of(continuation, 5), in_words=False) == expected


WORDS = st.lists(
    st.sampled_from(["one", "two", "three", "чотири", "5,", "\n", "six."]), min_size=1, max_size=30
).map(" ".join)


@given(WORDS.filter(lambda text: text.strip()), WORDS, st.integers(1, 40), st.integers(1, 9))
def test_an_answer_that_is_repeated_whole_is_shown_once(shown, rest, cut, size):
    whole = f"{shown.strip()} {rest}"
    shown = whole[: min(cut, len(whole) - 1)].strip()
    text = joined(shown, pieces_of(whole.strip(), size))
    assert shown + text == whole.strip()


@given(WORDS, WORDS, st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_how_it_is_cut_into_pieces_does_not_matter(shown, rest, one, other, in_words):
    shown = shown.strip() or "x"
    assert joined(shown, pieces_of(rest, one), in_words=in_words) == joined(
        shown, pieces_of(rest, other), in_words=in_words
    )
