"""pgvector's halfvec as a query parameter, in its binary form."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import psycopg
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format


@dataclass(frozen=True, slots=True)
class HalfVector:
    """A vector as little-endian float32, sent as half precision; the statement says `%(name)s::halfvec`."""

    data: bytes


class _HalfVectorDumper(Dumper):
    format = Format.BINARY
    oid = 0  # the server takes the type from the cast: the extension's types have no fixed number

    def dump(self, obj: HalfVector) -> Buffer:
        """Returns dimension, a reserved word, then big-endian halves."""
        halves = np.frombuffer(obj.data, "<f4").astype(">f2")
        return struct.pack(">HH", len(halves), 0) + halves.tobytes()


def as_text(data: bytes) -> str:
    """Returns a vector (little-endian float32) in pgvector's text form, for arrays of them; five digits are more than a half holds."""
    return f"[{','.join(f'{value:.5g}' for value in np.frombuffer(data, '<f4').tolist())}]"


psycopg.adapters.register_dumper(HalfVector, _HalfVectorDumper)
