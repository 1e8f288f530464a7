"""Tokens of an identity provider on the running graph, and what the graph keeps of refused ones."""

import asyncio

import httpx
import pytest
import yaml

from services.access.tokens import MAX_TOKEN_BYTES
from tests.graph.test_keys_graph import PATIENCE_S, ROUTES
from tests.support.identity_provider import IdentityProvider, section

pytestmark = [pytest.mark.graph, pytest.mark.timeout(420)]

OWN = {"microdaos": "microdao:tokens", "agents": "agent:tokens"}
FOREIGN = {"microdao_id": "microdao:foreign"}
MARKED = "MARKED-marked-MARKED"
ME = ROUTES[0]


async def until_all_answer(client, route, expected, **params):
    """Returns once several answers in a row are as expected: there may be two replicas."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            answers = [await client.get(route, params=params) for _ in range(6)]
            if all(map(expected, answers)):
                return
            await asyncio.sleep(0.1)


def named(beginning):
    return lambda answer: answer.json().get("name", "").startswith(beginning)


def opened(answer):
    return answer.status_code == 200


def refused(answer):
    return answer.status_code == 403


async def test_a_reload_makes_tokens_count_in_every_application_and_nothing_is_kept(graph):
    provider, file = IdentityProvider(), graph.config_dir / "access.yaml"
    original = file.read_text()
    token = provider.token(**OWN, padding="x" * (MAX_TOKEN_BYTES * 3 // 4 - 600)).decode()
    headers = {"Authorization": f"Bearer {token}"}
    assert MAX_TOKEN_BYTES - 1_000 < len(token) <= MAX_TOKEN_BYTES
    try:
        async with (
            provider.serving() as url,
            httpx.AsyncClient(base_url=graph.url, headers=headers, timeout=60) as client,
        ):
            await until_all_answer(client, ME, named("anonymous"))  # tokens mean nothing yet
            settings = yaml.safe_load(original) | {"identity_provider": section(url)}
            file.write_text(yaml.safe_dump(settings))
            graph.reload()
            await until_all_answer(client, ME, named("jwt:"))
            for route in ROUTES[1:]:
                await until_all_answer(client, route, refused, **FOREIGN)
                await until_all_answer(client, route, opened)
            for route in ROUTES:
                for wrong in (f"dk_{MARKED}", f"{token}{MARKED}", f"{MARKED}.{MARKED}.{MARKED}"):
                    answer = await client.get(route, headers={"Authorization": f"Bearer {wrong}"})
                    assert answer.status_code in {401, 429}, answer.text
                    assert MARKED not in answer.text
            file.write_text(original)
            graph.reload()
            await until_all_answer(client, ME, named("anonymous"))
    finally:
        file.write_text(original)
        graph.reload()
    logs = graph.data_dir / "logs"
    found = [*logs.rglob("*"), *(logs / "ray").resolve().rglob("*")]  # that one is a link
    kept = [graph.log, *(path for path in found if path.is_file())]
    assert [path for path in kept if path.name.startswith("replica_llm_")]
    assert [path for path in kept if MARKED.encode() in path.read_bytes()] == []
