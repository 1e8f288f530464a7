r"""The lines of a usage spool. Pure.

    \n  CRC-32 of the rest, 8 hexadecimal digits   kind   number, 10 digits   space   JSON  \n

    D  delivered: the records up to the offset `number` are in the ledger
    S  sealed: the running calls of this file are repeated in a later one
    B  a call has begun: its record as it is if the process dies; `number` is the call's ticket
    E  the call of this ticket has ended: its usage record

JSON holds no line breaks, and each line has its own before and behind it, so damage costs the
lines that it touches.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from zlib import crc32

DELIVERED, SEALED, BEGUN, ENDED = b"D", b"S", b"B", b"E"


@dataclass
class SpoolLines:
    """What lines say: ended calls with the offsets of their ends, running calls by ticket.

    `damaged` counts the bytes that are no valid line, an unfinished last one left out; `readable`:
    there is a valid line.
    """

    ended: deque[tuple[int, bytes]] = field(default_factory=deque)
    running: dict[int, bytes] = field(default_factory=dict)
    damaged: int = 0
    readable: bool = False


def spool_line(kind: bytes, number: int, record: bytes = b"") -> bytes:
    """Returns a line between line breaks."""
    body = b"%b%010d %b" % (kind, number, record)
    return b"\n%08x%b\n" % (crc32(body), body)


def read_lines(data: bytes, start: int = 0) -> SpoolLines:
    """Reads the lines that lie at offset `start` of a file, up to the bytes never written."""
    found = SpoolLines()
    data = data.rstrip(b"\0")
    delivered, sealed, end = 0, False, start
    for line in data.split(b"\n"):
        end += len(line) + 1
        body = line[8:]
        if not body or line[:8] != b"%08x" % crc32(body):
            found.damaged += len(line) if end <= start + len(data) else 0
            continue
        found.readable = True
        kind, number, record = body[:1], int(body[1:11]), body[12:]
        if kind == DELIVERED:
            delivered = number
        elif kind == SEALED:
            sealed = True
        elif kind == BEGUN:
            found.running[number] = record
        else:
            found.running.pop(number, None)
            if end > delivered:
                found.ended.append((end, record))
    if sealed:
        found.running.clear()
    return found
