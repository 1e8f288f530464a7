import pickle
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ConfigurationError
from contracts.llm.embeddings import EmbeddingBatch, EmbeddingSpace, check_embedding_space

OLD, NEW = EmbeddingSpace("e5-small@1", 384), EmbeddingSpace("e5-base@1", 768)


@given(
    st.lists(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3
        ),
        max_size=5,
    )
)
def test_vectors_survive_packing_and_pickling(vectors):
    packed = b"".join(struct.pack("<3f", *vector) for vector in vectors)
    batch = pickle.loads(pickle.dumps(EmbeddingBatch(packed, 3, "m@1", tokens=7)))
    assert [batch.row(index) for index in range(len(batch))] == vectors
    assert (len(batch), batch.tokens, batch.space) == (len(vectors), 7, EmbeddingSpace("m@1", 3))


def test_same_space_or_nothing_stored_passes():
    check_embedding_space(None, NEW)
    check_embedding_space(OLD, OLD)


@pytest.mark.parametrize(
    "configured", [NEW, EmbeddingSpace("e5-small@2", 384), EmbeddingSpace("e5-small@1", 256)]
)
def test_another_space_is_refused_with_both_names(configured):
    with pytest.raises(ConfigurationError) as refusal:
        check_embedding_space(OLD, configured)
    for part in (
        OLD.model_version,
        str(OLD.dimension),
        configured.model_version,
        str(configured.dimension),
        "re-embed",
    ):
        assert part in refusal.value.message
