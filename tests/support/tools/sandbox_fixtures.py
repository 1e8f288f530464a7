"""Fixtures of the tests of Python tools: what this host offers, and each tier of it in turn."""

import asyncio

import pytest

from contracts.tools.api import ISOLATION_TIERS
from executors.python.tiers import HostTiers, probe_tiers


@pytest.fixture(scope="session")
def host() -> HostTiers:
    return asyncio.run(probe_tiers())


@pytest.fixture(params=ISOLATION_TIERS)
def tier(request, host):
    if request.param not in host.available:
        pytest.skip(f"{request.param}: {host.refusals[request.param]}")
    return request.param
