"""Vectors on their way to PostgreSQL."""

import json

import numpy as np

from backends.memory.vectors import half_vectors
from backends.postgres.pool import Database
from contracts.llm.embeddings import EmbeddingBatch

ROWS = np.array([[1 / 3, -65_504, 6e-5, 0], [1, 2, 3, 4]], "<f4")


async def test_both_forms_of_a_vector_arrive_in_half_precision(database: Database):
    batch = EmbeddingBatch(ROWS.tobytes(), 4, "m@1")
    async with database.transaction() as connection:
        for expected, vector in zip(ROWS.astype("f2"), half_vectors(batch), strict=True):
            row = await (
                await connection.execute(
                    "SELECT %(binary)s::halfvec::text AS sent, "
                    "%(binary)s::halfvec = %(text)s::halfvec AS same",
                    {"binary": vector, "text": vector.to_text()},
                )
            ).fetchone()
            assert row["same"]
            assert np.array_equal(np.array(json.loads(row["sent"]), "f2"), expected)


def test_no_vectors_are_an_empty_list():
    assert half_vectors(EmbeddingBatch(b"", 4, "m@1")) == []
