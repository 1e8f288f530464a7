"""A platform whose agent has tools that read and write notes, shared by the tests of a module."""

import pytest
import pytest_asyncio

from services.agents.language import APOLOGIES
from tests.support.agents.platform import blueprint, extra_tool, shared_platform

TOOLS = (
    extra_tool("notes.write", "write"),
    extra_tool("notes.read", "read"),
    extra_tool("slow.read", "read"),
)
NAMES = ["projects.list", "notes.write", "notes.read", "slow.read"]
UNABLE = {kind: APOLOGIES["failed", kind] for kind in ("uk", "en")}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(postgres, tmp_path_factory):
    async with shared_platform(
        postgres, tmp_path_factory.mktemp("platform"), tools=TOOLS
    ) as running:
        yield running


@pytest.fixture
def here(shared):
    shared.fresh(blueprint(tools=NAMES, write_after_untrusted=True))
    return shared


async def tools_step(here, answer):
    return next(
        step for step in (await here.run(answer["run_id"]))["steps"] if step["kind"] == "tools"
    )
