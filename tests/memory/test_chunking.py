"""Long texts are cut into chunks."""

from hypothesis import given
from hypothesis import strategies as st

from contracts.memory.settings import ChunkSettings
from services.memory.chunking import chunk

SIZE = ChunkSettings(most=100, overlap=20)
words = st.text(alphabet="абвгдеєжзиіїклмн'’.,;!? \n", max_size=1_200)


@given(words)
def test_chunks_are_bounded_and_hold_every_word(text: str):
    chunks = chunk(text, SIZE)
    assert all(0 < len(part) <= SIZE.most for part in chunks)
    assert all(part in text for part in chunks)
    position = 0
    for part in chunks:  # only white space lies between a chunk's end and the next one's beginning
        start = text.index(part, max(0, position - SIZE.most))
        assert not text[position:start].strip()
        position = max(position, start + len(part))
    assert not text[position:].strip()


def test_text_is_cut_at_the_best_place():
    text = (
        "Перше речення про воду. "
        + "слово " * 9
        + "кінець абзацу.\n\n"
        + "Другий абзац про землю " * 3
    )
    assert chunk(text, SIZE)[0].endswith("кінець абзацу.")
