"""Cursors of pages: time and id of the last row, bound to one query."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson

from contracts.errors import InvalidRequest
from contracts.values import storable


def write_cursor(at: datetime, row_id: str, query: Mapping[str, Any]) -> str:
    """Returns the cursor of the page that ends with this row."""
    return base64.urlsafe_b64encode(orjson.dumps([_digest(query), at, row_id])).decode()


def read_cursor(cursor: str, query: Mapping[str, Any]) -> tuple[datetime, str]:
    """Returns time and id of the last row seen.

    Raises:
        InvalidRequest: the cursor is malformed, or belongs to another query.
    """
    try:
        digest, at, row_id = orjson.loads(base64.urlsafe_b64decode(cursor))
        found = datetime.fromisoformat(at), storable(row_id)
    except (ValueError, TypeError) as error:  # includes what base64 and orjson raise
        raise InvalidRequest("cursor is not one that this query gave") from error
    if digest != _digest(query) or found[0].tzinfo is None:
        raise InvalidRequest("cursor belongs to another query: repeat it with the same filters")
    return found


def _digest(query: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(query, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
