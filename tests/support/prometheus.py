"""Debian's Prometheus, where ops/prometheus/fetch.sh could fetch it."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("DAARION_DATA_DIR") or ROOT / ".data")
PROGRAMS = DATA / "cache/prometheus/usr/bin"

needs_prometheus = pytest.mark.skipif(
    not (PROGRAMS / "promtool").exists(),
    reason="Prometheus is not there: ops/prometheus/fetch.sh could not fetch it",
)
