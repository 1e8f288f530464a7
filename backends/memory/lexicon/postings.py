"""The lexical index's data as numpy sees it: records of (gram, chunk), and BM25 over them.

A record is 11 bytes: the gram's CRC-32, the chunk's number, the chunk's length in grams, and how often the gram occurs
there. Terms of a chunk, and buckets of merged postings, are plain arrays of records, so that any number of them are
read as one array. Two grams of one CRC-32 count as the same one: among a few million grams that is rarer than a typo.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from contracts.memory.ports import Weigh

RECORD = np.dtype([("gram", "<u4"), ("chunk", "<u4"), ("length", "<u2"), ("count", "u1")])
BUCKET_BITS = {1: 10, 2: 16}
"""How many of a gram's upper bits number its bucket, by level: more of them where there is more data."""
SUMMARY_BUCKET = -1
DENSE_RANGE = 2_000_000
_SUMMARY = np.dtype([("chunks", "<u8"), ("length", "<u8")])

Records = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Bm25:
    """BM25's constants: saturation of repeated grams, and how much the length of a chunk matters."""

    k1: float
    b: float


@dataclass(frozen=True, slots=True)
class Scored:
    """Chunks by falling score; `ceiling` is the sum of the weights looked for."""

    chunks: list[int]
    scores: list[float]
    ceiling: float


def hashed(gram: str) -> int:
    """Returns the gram's number."""
    return zlib.crc32(gram.encode())


def pack_terms(chunk: int, grams: Mapping[str, int]) -> bytes:
    """Returns the records of one chunk."""
    records = np.empty(len(grams), RECORD)
    records["gram"] = [hashed(gram) for gram in grams]
    records["chunk"] = chunk
    records["length"] = min(sum(grams.values()), 0xFFFF)
    records["count"] = [min(count, 0xFF) for count in grams.values()]
    return records.tobytes()


def unpack(data: bytes) -> Records:
    """Returns records, however many arrays of them were joined."""
    return np.frombuffer(data, RECORD)


def bucket_of(gram: str, level: int) -> int:
    """Returns the bucket that holds a gram on `level`."""
    return hashed(gram) >> (32 - BUCKET_BITS[level])


def split(records: Records, level: int) -> dict[int, Records]:
    """Returns the records by the bucket of `level` that they belong to."""
    ordered = records[np.argsort(records["gram"], kind="stable")]
    numbers = ordered["gram"] >> np.uint32(32 - BUCKET_BITS[level])
    starts = (
        np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1])))
        if len(numbers)
        else np.empty(0, int)
    )
    return (
        {
            int(numbers[start]): part
            for start, part in zip(starts, np.split(ordered, starts[1:]), strict=True)
        }
        if len(starts)
        else {}
    )


def keep(records: Records, alive: npt.NDArray[np.uint32]) -> Records:
    """Returns the records of the chunks in `alive`."""
    return records[np.isin(records["chunk"], alive)]


def pack_summary(chunks: int, length: int) -> bytes:
    """Returns how many chunks a level holds, and their lengths' sum."""
    return np.array([(chunks, length)], _SUMMARY).tobytes()


def read_summaries(data: Sequence[bytes]) -> tuple[int, int]:
    """Returns both sums over several levels and areas."""
    joined = np.frombuffer(b"".join(data), _SUMMARY)
    return int(joined["chunks"].sum()), int(joined["length"].sum())


def measure(records: Records) -> tuple[int, int]:
    """Returns the number of chunks in unmerged records, and their lengths' sum."""
    _, first = np.unique(records["chunk"], return_index=True)
    return len(first), int(records["length"][first].sum())


def score(
    records: Records,
    *,
    chunks: int,
    length: int,
    grams: Sequence[str],
    weigh: Weigh,
    bm25: Bm25,
    allowed: npt.NDArray[np.uint32] | None,
    limit: int,
) -> Scored:
    """Returns the best chunks by BM25.

    Args:
        records: everything that is filed under the question's grams; more does not hurt.
        chunks: how many chunks there are to be found.
        length: the sum of their lengths, in grams.
        grams: of the question.
        weigh: gives the weights, from the frequencies found here.
        bm25: its constants.
        allowed: chunks that pass the filters; None when all do.
        limit: how many to return.
    """
    names = {hashed(gram): gram for gram in grams}
    numbers = np.array(sorted(names), np.uint32)
    records, places = _matching(records, numbers)
    frequencies = np.bincount(places, minlength=len(numbers))
    weights = dict(
        weigh(
            {
                names[int(number)]: int(count)
                for number, count in zip(numbers, frequencies, strict=True)
            },
            chunks,
        )
    )
    by_place = np.array([weights.get(names[int(number)], 0.0) for number in numbers])
    ceiling = float(sum(weights.values()))
    if allowed is not None:
        passing = np.isin(records["chunk"], allowed)
        records, places = records[passing], places[passing]
    if not len(records):
        return Scored([], [], ceiling)
    found, totals = _summed(
        records["chunk"],
        by_place[places] * _saturation(records, length / chunks if chunks else 1.0, bm25),
    )
    best = np.argsort(-totals, kind="stable")[:limit]
    return Scored(found[best].tolist(), totals[best].tolist(), ceiling)


def _summed(
    chunks: npt.NDArray[np.uint32], gains: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float64]]:
    """Returns each chunk once, with the sum of its gains."""
    first = int(chunks.min())
    if int(chunks.max()) - first < DENSE_RANGE:  # counting is several times faster than sorting
        sums: npt.NDArray[np.float64] = np.bincount(chunks - np.uint32(first), gains).astype(
            np.float64, copy=False
        )
        places = np.flatnonzero(sums)
        return (places + first).astype(np.uint32), sums[places]
    found, position = np.unique(chunks, return_inverse=True)
    return found, np.bincount(position, gains, minlength=len(found)).astype(np.float64, copy=False)


def _matching(
    records: Records, numbers: npt.NDArray[np.uint32]
) -> tuple[Records, npt.NDArray[np.intp]]:
    if not len(numbers):
        return records[:0], np.empty(0, np.intp)
    asked = np.ascontiguousarray(records["gram"])
    places = np.minimum(np.searchsorted(numbers, asked), len(numbers) - 1)
    matching = numbers[places] == asked
    return records[matching], places[matching]


def _saturation(records: Records, average: float, bm25: Bm25) -> npt.NDArray[np.float64]:
    counts = records["count"].astype(np.float64)
    dampening = bm25.k1 * (1 - bm25.b + bm25.b * records["length"] / average)
    saturated: npt.NDArray[np.float64] = counts * (bm25.k1 + 1) / (counts + dampening)
    return saturated
