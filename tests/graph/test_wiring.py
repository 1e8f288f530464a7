"""Every wing opens over a real PostgreSQL without Ray, and closes whatever it opened."""

import asyncio

import psycopg
import pytest

from configs.engines.embedder import RemoteEmbedderSettings
from configs.environment import REPOSITORY
from configs.llm.config import LLMSettings
from configs.memory import MemorySettings
from configs.tools import ToolsSettings
from configs.yaml_files import load_yaml
from contracts.errors import ConfigurationError
from contracts.llm.listings import EngineLoad
from deployments.agents.wiring import AgentRuntime, AgentsArgs
from deployments.graph.resources import Reloadable, Resources, WingEnvironment
from deployments.llm.wiring import LLMPorts, LLMRuntime
from deployments.memory.wiring import MemoryRuntime
from deployments.tools.wiring import ToolsRuntime
from deployments.workspace.wiring import WorkspaceArgs, WorkspaceRuntime
from executors.http.executor import HttpToolExecutor
from executors.mcp.executor import McpToolExecutor
from providers.openai_compatible import OpenAICompatibleProvider
from services.llm.limits.lease_book import LeaseBook
from tests.support.access import fixed_access
from tests.support.memory.hashing_embedder import HashingEmbedder

CONFIGS = REPOSITORY / "configs"
EMBEDDER = {
    "type": "openai_compatible", "served_name": "hashing", "version": "hashing-1",
    "dimension": 384, "base_url": "http://127.0.0.1:9", "model": "hashing",
}  # fmt: skip


class Part:
    def __init__(self, name, closed, failure=None):
        self._name, self._closed, self._failure = name, closed, failure

    async def close(self):
        self._closed.append(self._name)
        if self._failure is not None:
            raise self._failure


class Neighbours:
    """An engine, a Python executor and a limit authority in this process."""

    def __init__(self):
        self._book = LeaseBook("one", 0.0)

    async def awake(self, deadline):
        pass

    async def stats(self):
        return EngineLoad(max_running=1, running=0, waiting=0)

    async def exchange(self, report):
        return self._book.exchange(report, 100.0, 1_000.0)

    async def ping(self):
        pass


async def llm(environment, events):
    ports = LLMPorts(Neighbours(), HashingEmbedder(), Neighbours())
    settings = RemoteEmbedderSettings.model_validate(EMBEDDER)
    runtime = LLMRuntime(environment, ports, settings, events)
    await runtime.open()
    for _ in range(2):
        await runtime.reconfigure(load_yaml(CONFIGS / "llm.yaml", LLMSettings))
    return runtime


async def memory(environment, events):
    settings = load_yaml(CONFIGS / "memory.yaml", MemorySettings)
    runtime = MemoryRuntime(settings, environment, HashingEmbedder(), events)
    await runtime.open()
    await runtime.reconfigure(settings)
    return runtime


async def tools(environment, events):
    runtime = ToolsRuntime(environment, Neighbours(), events)
    await runtime.open()
    for _ in range(2):
        await runtime.reconfigure(load_yaml(CONFIGS / "tools.yaml", ToolsSettings))
    return runtime


async def agents(environment, events):
    runtime = AgentRuntime(AgentsArgs(), environment, dict, events)
    await runtime.open()
    return runtime


async def workspace(environment, events):
    runtime = WorkspaceRuntime(WorkspaceArgs(), environment, events)
    await runtime.open()
    return runtime


async def connections(owner_url):
    async with await psycopg.AsyncConnection.connect(owner_url) as owner:
        rows = await owner.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return (await rows.fetchone())[0]


async def gone(owner_url, tasks):
    """Waits until only `tasks` run and PostgreSQL has seen every connection end."""
    async with asyncio.timeout(30):
        while await connections(owner_url) or asyncio.all_tasks() - tasks:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("opened", [llm, memory, tools, agents, workspace])
async def test_closing_ends_every_task_and_connection(
    opened, database_url, database_owner_url, events, tmp_path
):
    before = asyncio.all_tasks()
    environment = WingEnvironment(
        database_url,
        tmp_path,
        "http://127.0.0.1:9",
        fixed_access(),
        nats_url="nats://127.0.0.1:9",
    )
    runtime = await opened(environment, events)
    async with asyncio.timeout(30):  # pools connect in the background
        while not await connections(database_owner_url):
            await asyncio.sleep(0.05)
    assert len(asyncio.all_tasks()) > len(before)
    await runtime.close()
    await gone(database_owner_url, before)
    await runtime.close()  # nothing is closed twice


async def test_an_opening_that_fails_half_way_leaves_nothing_open(
    database_url, database_owner_url, events, tmp_path
):
    (tmp_path / "journal").write_text("a file where the folder should be")
    before = asyncio.all_tasks()
    with pytest.raises(ConfigurationError):
        await llm(
            WingEnvironment(database_url, tmp_path, "http://127.0.0.1:9", fixed_access()), events
        )
    await gone(database_owner_url, before)


def refuse(*_, **__):
    raise ZeroDivisionError


def watched(kind, built, closed):
    """Returns the class with a record of what is built and closed."""

    class Watched(kind):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            built.append(self)

        async def close(self):
            closed.append(self)
            await super().close()

    return Watched


@pytest.mark.parametrize("failing", ["an adapter", "RoutingTable"])
async def test_a_reload_that_fails_closes_the_new_providers(
    failing, database_url, events, tmp_path, monkeypatch
):
    built, closed = [], []
    runtime = await llm(
        WingEnvironment(database_url, tmp_path, "http://127.0.0.1:9", fixed_access()), events
    )
    settings = load_yaml(CONFIGS / "llm.yaml", LLMSettings)
    monkeypatch.setattr(
        "providers.openai_compatible.Provider", watched(OpenAICompatibleProvider, built, closed)
    )
    if failing == "an adapter":
        unknown = settings.providers["openai"].model_copy(update={"type": "unknown"})
        providers = {**settings.providers, "last": unknown}
        settings = settings.model_copy(update={"providers": providers})
    else:
        monkeypatch.setattr(f"deployments.llm.wiring.{failing}", refuse)
    with pytest.raises((ConfigurationError, ZeroDivisionError)):
        await runtime.reconfigure(settings)
    assert built
    assert closed == built[::-1]
    await runtime.close()


@pytest.mark.parametrize(
    ("failing", "in_use"),
    [("deployments.tools.wiring.Policy", 0), ("services.tools.application.Toolcore._sync", 2)],
)
async def test_a_reload_that_fails_closes_the_new_executors_unless_calls_use_them(
    failing, in_use, database_url, events, tmp_path, monkeypatch
):
    built, closed = [], []
    runtime = await tools(
        WingEnvironment(database_url, tmp_path, "http://127.0.0.1:9", fixed_access()), events
    )
    for kind in (HttpToolExecutor, McpToolExecutor):
        monkeypatch.setattr(
            f"deployments.tools.wiring.{kind.__name__}", watched(kind, built, closed)
        )
    monkeypatch.setattr(failing, refuse)
    with pytest.raises(ZeroDivisionError):
        await runtime.reconfigure(load_yaml(CONFIGS / "tools.yaml", ToolsSettings))
    assert (len(built), len(closed)) == (2, 2 - in_use)
    await runtime.close()
    assert set(closed) == set(built)


async def test_parts_close_in_reverse_and_past_a_failure():
    closed = []
    resources = Resources()
    for name, failure in (("first", None), ("second", OSError("second")), ("third", None)):
        resources.closing(Part(name, closed, failure))
    with pytest.raises(OSError, match="second"):
        await resources.aclose()
    assert closed == ["third", "second", "first"]


async def test_replaced_adapters_stay_open_for_calls_under_way():
    closed = []
    adapters = Reloadable(grace_s=3_600)
    adapters.replace([Part("old", closed)])
    adapters.replace([Part("new", closed)])
    await asyncio.sleep(0)
    assert closed == []
    await adapters.close()
    assert sorted(closed) == ["new", "old"]


async def test_replaced_adapters_close_after_their_grace():
    closed = []
    adapters = Reloadable(grace_s=0.01)
    adapters.replace([Part("old", closed)])
    adapters.replace([Part("new", closed)])
    async with asyncio.timeout(30):
        while not closed:
            await asyncio.sleep(0.01)
    assert closed == ["old"]
    await adapters.close()
