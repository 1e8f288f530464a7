"""The records of the lexical index: one per gram or lemma and chunk, in numpy arrays. Pure.

A record is 11 bytes: the gram's CRC-32, the chunk's number, the chunk's length in grams, and how
often the gram occurs there. The terms of a chunk and the buckets of merged postings are arrays of
records, so any number of them can be read as one array. Two grams with the same CRC-32 count as the
same gram: among a few million grams that is rarer than a typo.

A lemma's record is like a gram's, with the length in grams, too: BM25 takes lengths relative to
their average, which is the same in words. So a chunk has one length whatever its terms.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.memory.lexicon.lemmas import MARK

RECORD = np.dtype([("gram", "<u4"), ("chunk", "<u4"), ("length", "<u2"), ("count", "u1")])
BUCKET_BITS = {1: 10, 2: 16}
"""How many of a gram's upper bits are its bucket's number, by level; level 2 has more data."""
SUMMARY_BUCKET = -1
"""The bucket of a level that holds its number of chunks and the sum of their lengths."""
_SUMMARY = np.dtype([("chunks", "<u8"), ("length", "<u8")])

Records = npt.NDArray[Any]


def hashed(gram: str) -> int:
    """Returns the gram's number in records."""
    return zlib.crc32(gram.encode())


def pack_terms(chunk: int, terms: Mapping[str, int]) -> bytes:
    """Returns the records of one chunk."""
    records = np.empty(len(terms), RECORD)
    records["gram"] = [hashed(term) for term in terms]
    records["chunk"] = chunk
    length = sum(count for term, count in terms.items() if not term.startswith(MARK))
    records["length"] = min(length, 0xFFFF)
    records["count"] = [min(count, 0xFF) for count in terms.values()]
    return records.tobytes()


def renumbered(packed: bytes, chunk: int) -> bytes:
    """Returns a chunk's records with another number of the chunk."""
    records = unpack(packed).copy()
    records["chunk"] = chunk
    return records.tobytes()


def unpack(data: bytes) -> Records:
    """Returns records from the bytes of one or more joined arrays."""
    return np.frombuffer(data, RECORD)


def bucket_of(gram: str, level: int) -> int:
    """Returns the number of a gram's bucket on `level`."""
    return hashed(gram) >> (32 - BUCKET_BITS[level])


def split(records: Records, level: int) -> dict[int, Records]:
    """Returns the records by their bucket on `level`."""
    ordered = records[np.argsort(records["gram"], kind="stable")]
    numbers = ordered["gram"] >> np.uint32(32 - BUCKET_BITS[level])
    if not len(ordered):
        return {}
    starts = np.flatnonzero(np.diff(numbers)) + 1
    buckets = numbers[np.append(0, starts)].tolist()
    return dict(zip(buckets, np.split(ordered, starts), strict=True))


def in_order(records: Records) -> tuple[Records, Records]:
    """Returns the records ordered by their buckets, and of each chunk one record."""
    first = np.unique(records["chunk"], return_index=True)[1]
    return records[np.argsort(records["gram"], kind="stable")], records[first]


def in_slices(parts: Sequence[Records], level: int, most: int) -> Iterator[dict[int, Records]]:
    """Yields `split` of all parts, about `most` records at a time; each part is `in_order`."""
    slices = 1 + sum(map(len, parts)) // most
    buckets = np.linspace(0, 1 << BUCKET_BITS[level], slices + 1)[1:-1].astype(np.int64)
    starts = buckets << (32 - BUCKET_BITS[level])
    cut = [np.split(part, np.searchsorted(part["gram"], starts)) for part in parts]
    for pieces in zip(*cut, strict=True):
        yield split(np.concatenate(pieces), level)


def keep(records: Records, alive: npt.NDArray[np.uint32]) -> Records:
    """Returns the records of the chunks in `alive`."""
    return records[np.isin(records["chunk"], alive)]


def pack_summary(chunks: int, length: int) -> bytes:
    """Returns the data of SUMMARY_BUCKET."""
    return np.array([(chunks, length)], _SUMMARY).tobytes()


def read_summaries(data: Sequence[bytes]) -> tuple[int, int]:
    """Returns chunks and length, each summed over several summaries."""
    joined = np.frombuffer(b"".join(data), _SUMMARY)
    return int(joined["chunks"].sum()), int(joined["length"].sum())


def measure(records: Records) -> tuple[int, int]:
    """Returns the number of chunks in complete records, and the sum of their lengths."""
    _, first = np.unique(records["chunk"], return_index=True)
    return len(first), int(records["length"][first].sum())
